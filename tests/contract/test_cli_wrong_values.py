"""Every option that takes a value, given a wrong one: a line that names the option and says what to write.

The programs are the real ones up to hyperd's checks of a request; behind those nothing is found.
"""

from __future__ import annotations

import argparse
import io
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from runtime import api
from runtime.cli import completion, main
from runtime.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

WRONG = {
    "--attach": "stdlog", "--build-arg": "=x", "--canary": "10", "--cidfile": "/nowhere/id", "--cpus": "99",
    "--detach-keys": "ctrl-", "--drain": "soon", "--driver": "nfs", "--env": "=x", "--env-file": "/nowhere",
    "--expose": "http", "--file": "/nowhere", "--filter": "colour=red", "--format": "xml", "--health-interval": "30h",
    "--health-retries": "0", "--health-start-period": "10", "--health-timeout": "30h", "--hostname": "under_score",
    "--input": "/nowhere", "--label": "=x", "--label-file": "/nowhere", "--last": "0", "--limit": "none",
    "--memory": "4k", "--mount": "type=nfs", "--name": "two words", "--platform": "vax/vms",
    "--publish": "70000", "--pull": "perhaps", "--restart": "sometimes", "--rollback-on": "rain",
    "--shm-size": "much", "--signal": "NOSUCH", "--since": "never", "--size": "huge",
    "--snapshot": "two words", "--sort": "colour", "--stop-signal": "NOSUCH", "--stop-timeout": "100000",
    "--tail": "some", "--target": "two words", "--timeout": "soon", "--tmpfs": "run", "--type": "network",
    "--until": "never", "--user": "a:b:c", "--username": "a:b", "--volume": "two words", "--watch": "soon",
    "--workdir": "relative",
}  # fmt: skip
# Any text is right, or only what it names can tell: a container, an image, a registry.
FREE = {
    "--author", "--authfile", "--cert-dir", "--change", "--container", "--entrypoint", "--health-cmd", "--iidfile",
    "--image", "--message", "--output", "--reason", "--tag", "--to",
}  # fmt: skip


class Nothing:
    """An engine of which every part is there and finds nothing."""

    data_dir = Path("/nowhere")

    def __getattr__(self, name: str) -> Any:
        return Nothing()

    def __call__(self, *_args: object, **_options: object) -> Any:
        raise NotFound("there is no such thing")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a hyperd that has nothing; a Containerfile is there too."""
    directory = tmp_path_factory.mktemp("wrong")
    (directory / "Containerfile").write_text("FROM scratch\n")
    engine: Any = Nothing()
    server = uvicorn.Server(
        uvicorn.Config(api.build(engine, {}), uds=str(directory / "hyperd.sock"), log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)  # uvicorn has nothing to wait on
    yield directory
    server.should_exit = True
    thread.join()


def switches() -> Iterator[tuple[str, str]]:
    """Commands, and the options that are on or off."""
    for name, parser in completion.parsers():
        for option, action in parser._option_string_actions.items():
            if isinstance(action.const, bool) and "=" not in option:
                yield name, option


def options() -> Iterator[tuple[str, str, list[str]]]:
    """Commands, their options with a value, and as many words as the command needs."""
    for name, parser in completion.parsers():
        words = [
            "." if action.metavar == "CONTEXT" else "x"
            for action in parser._actions
            if not action.option_strings and action.nargs not in ("?", "*", argparse.REMAINDER)
        ]
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and "=" not in action.option_strings[-1]:
                yield name, action.option_strings[-1], words


def test_every_option_is_tried_or_free() -> None:
    assert {option for _, option, _ in options()} == WRONG.keys() | FREE
    assert not WRONG.keys() & FREE


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_value_is_told_in_a_line_with_the_option(
    option: str, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYPER_STATE_DIR", str(directory))
    monkeypatch.chdir(directory)
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(isatty=lambda: False, read=lambda _: "secret", buffer=io.BytesIO())
    )
    for name, tried, words in options():
        if tried != option:
            continue
        password = ["--password-stdin"] if option == "--username" else []
        volume = ["--volume", "data"] if name == "snapshot create" and option != "--volume" else []
        argv = [*name.split(), *password, *volume, f"{option}={WRONG[option]}", *words]
        code = main.main(argv)
        done = capsys.readouterr()
        shown = f"{' '.join(argv)}: {code}\n{done.out}{done.err}"
        assert (code, done.out) == (125, ""), shown
        assert done.err.startswith("hyper: "), shown
        assert done.err.count("\n") == 1, shown
        assert option in done.err, shown
        assert "hould" not in done.err, shown
        assert "there is no such thing" not in done.err, shown


def test_a_switch_is_on_or_off(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(directory)
    found = list(switches())
    assert {("run", "--rm"), ("run", "-i"), ("history", "--human"), ("attach", "--sig-proxy")} <= set(found)
    for name, option in found:
        assert main.main([*name.split(), f"{option}=perhaps", "x"]) == 125
        error = capsys.readouterr().err
        assert error == f"hyper: {option} 'perhaps': write true or false, or nothing\n", name
