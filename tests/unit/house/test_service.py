"""The demo's supervisor, with a small web server as the program that it starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scripts.stack import service
from scripts.stack.service import Service
from scripts.stack.settings import Settings, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = """
import http.server, signal, sys
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Service]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    yield Service(
        name="web",
        argv=(sys.executable, "-c", SERVER, str(port)),
        ready_url=f"http://{address}/",
        address=address,
        variable="WEB_PORT",
        files={tmp_path / "config/web.conf": "text"},
        ready_timeout_s=20,
    )
    service.stop(tmp_path, "web", 5)


def variant(web: Service, *more: str) -> Service:
    return Service(
        name=web.name,
        argv=(*web.argv, *more),
        ready_url=web.ready_url,
        address=web.address,
        variable=web.variable,
        ready_timeout_s=web.ready_timeout_s,
    )


def reap(pid: int) -> None:
    """The test is the parent here; in the demo it is init."""
    os.waitpid(pid, 0)


def test_start_is_idempotent_and_stop_ends_it(web: Service, tmp_path: Path) -> None:
    assert service.start(web, tmp_path)
    assert (tmp_path / "config/web.conf").read_text() == "text"
    running = service.find(tmp_path, "web")
    assert running is not None
    assert not service.start(web, tmp_path)
    assert service.find(tmp_path, "web") == running
    assert service.stop(tmp_path, "web", 5)
    assert service.find(tmp_path, "web") is None
    assert not service.stop(tmp_path, "web", 5)
    reap(running.pid)


def test_a_changed_one_is_started_again(web: Service, tmp_path: Path) -> None:
    service.start(web, tmp_path)
    first = service.find(tmp_path, "web")
    assert first is not None
    assert service.start(variant(web, "changed"), tmp_path)
    second = service.find(tmp_path, "web")
    assert second is not None
    assert second.pid != first.pid
    reap(first.pid)


def test_one_that_ignores_sigterm_is_killed(web: Service, tmp_path: Path) -> None:
    service.start(variant(web, "deaf"), tmp_path)
    running = service.find(tmp_path, "web")
    assert running is not None
    assert service.stop(tmp_path, "web", 0.2)
    assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == -signal.SIGKILL


def test_a_reused_process_id_is_left_alone(web: Service, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        ticks = service.start_ticks(stranger.pid)
        assert ticks is not None
        (tmp_path / "web.pid").write_text(json.dumps({"pid": stranger.pid, "start_ticks": ticks - 1, "key": web.key}))
        assert service.find(tmp_path, "web") is None
        assert not service.stop(tmp_path, "web", 1)
        assert stranger.poll() is None
        stranger.kill()


def test_a_broken_process_file_is_no_process(web: Service, tmp_path: Path) -> None:
    (tmp_path / "web.pid").write_text("{half")
    assert service.find(tmp_path, web.name) is None


def test_a_taken_port_names_the_variable(web: Service, tmp_path: Path) -> None:
    assert web.address is not None
    host, _, port = web.address.rpartition(":")
    with socket.create_server((host, int(port))), pytest.raises(StackError, match=r"move it with WEB_PORT"):
        service.start(web, tmp_path)


def test_one_that_ends_shows_its_last_words(web: Service, tmp_path: Path) -> None:
    dying = Service(
        name="web", argv=(sys.executable, "-c", "raise SystemExit('no such luck')"), ready_url=web.ready_url
    )
    with pytest.raises(StackError, match=r"ended with exit code 1; its log is .*web\.log(.|\n)*no such luck"):
        service.start(dying, tmp_path)
    assert service.find(tmp_path, "web") is None


def test_one_that_is_never_ready_is_not_left_running(web: Service, tmp_path: Path) -> None:
    sleeper = Service(name="web", argv=("sleep", "60"), ready_url=web.ready_url, ready_timeout_s=0.3)
    with pytest.raises(StackError, match=r"was not ready in 0.3 s"):
        service.start(sleeper, tmp_path)
    assert service.find(tmp_path, "web") is None


def test_a_missing_program_says_what_to_do(web: Service, tmp_path: Path) -> None:
    missing = Service(name="web", argv=("/nonexistent/program",), ready_url=web.ready_url)
    with pytest.raises(StackError, match="make setup"):
        service.start(missing, tmp_path)


@pytest.mark.parametrize("text", ["abc", "0", "65536", "-1", ""])
def test_a_port_that_is_none_names_its_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_PORT", text)
    with pytest.raises(StackError, match="DEMO_PORT"):
        Settings()
