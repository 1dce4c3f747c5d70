"""The `hyper` command as a process, against a server on a unix socket that answers as `docs/reference/api.md` says."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.version import VERSION
from tests.contract.fake_hyperd import Daemon, Refusal, bound, exited, record, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
ID = "3f" * 32
DIGEST = "sha256:" + "ab" * 32
CONTAINER: dict[str, Any] = {
    "id": ID, "name": "web", "image": "nginx", "image_digest": DIGEST,
    "args": ["nginx", "-g", "daemon off; a long one"],
    "state": "running", "desired": "running", "status": "Up 3 minutes", "health": "none",
    "created_at": time.time() - 3.5 * 3600,
    "network": {"ports": [{"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "protocol": "tcp"}]},
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "digest": DIGEST, "references": ["docker.io/library/nginx:latest", "127.0.0.1:5000/n:1"], "created_at": None,
    "pulled_at": 1.0, "size_bytes": 187_654_321, "file": "/x", "config": {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}},
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "hyperd.sock") as daemon:
        yield daemon


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HYPER_STATE_DIR": str(tmp_path),
        "HYPER_CONFIG": str(tmp_path / "none.toml"),
        "COLUMNS": "140",
    }


@pytest.fixture
def hyper(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime.cli.program", *args]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=30, env={**environment, **env}, check=False
        )

    return run


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    assert text.startswith("hyper: ")
    assert "Traceback" not in text
    return text


def test_no_daemon(hyper: Any, tmp_path: Path) -> None:
    done = hyper("ps")
    assert done.returncode == 125
    assert f"hyperd is not running (nothing answers on {tmp_path}/hyperd.sock)" in one_line(done.stderr)
    assert "start it as root with" in done.stderr
    assert hyper("-H", "unix:///nowhere/x.sock", "info").returncode == 125
    assert "is not unix://" in one_line(hyper("-H", "tcp://x", "info").stderr)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "there is no command 'nonsense'"),
        (["--nonsense", "ps"], "unknown option --nonsense"),
        (["run"], "IMAGE"),
        (["run", "-p", "70000:80", "x"], "--publish '70000:80': the host port '70000' is not a number from 1 to 65535"),
        (["run", "-p", "80-90:80-85", "x"], "11 host ports and 6 container ports do not fit; write 8000-8005:80-85"),
        (["run", "--network", "host", "x"], "--network of docker is not offered: every container has one address"),
        (["container", "nonsense"], "there is no command 'container nonsense'; see: hyper container --help"),
        (["run", "--memory", "much", "x"], "--memory 'much': write a number of bytes"),
        (["run", "--cpus", "0", "x"], "--cpus '0': write a number of CPUs above 0"),
        (["run", "-e", "=1", "x"], "--env '=1': it has no name"),
        (["run", "--env-file", "/nowhere", "x"], "--env-file '/nowhere': it cannot be read: No such file"),
        (["logs", "--tail", "some", "x"], "--tail 'some': write a number of lines"),
        (["kill", "-s", "NO SUCH", "x"], "--signal 'NO SUCH': it is no signal"),
        (["ps", "--format", "xml"], "--format: invalid choice: 'xml'"),
        (["stop"], "CONTAINER"),
    ],
)
def test_wrong_arguments(hyper: Any, args: list[str], message: str) -> None:
    done = hyper(*args)
    assert (done.returncode, done.stdout) == (125, "")
    assert message in one_line(done.stderr)


def test_ps(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers?all=false"] = [CONTAINER]
    daemon.answers["GET /v1/containers?all=true"] = [CONTAINER, {**CONTAINER, "id": "aa" * 32, "name": "\x1b[2Jevil"}]
    done = hyper("ps")
    heading, row = done.stdout.splitlines()
    assert heading.split("   ")[0] == "CONTAINER ID"
    assert re.split(r" {3,}", row) == [
        ID[:12], "nginx", '"nginx -g daemon off…"', "3 hours ago", "Up 3 minutes", "0.0.0.0:8080->80/tcp", "web",
    ]  # fmt: skip
    assert "\x1b" not in hyper("ps", "-a").stdout
    assert hyper("ps", "-aq").stdout.split() == [ID[:12], "a" * 12]
    assert hyper("ps", "-q", "--no-trunc").stdout.strip() == ID
    assert json.loads(hyper("ps", "--format", "json").stdout) == [CONTAINER]
    narrow = hyper("ps", COLUMNS="100").stdout.splitlines()
    assert max(map(len, narrow)) <= 100
    assert ID[:12] in narrow[1]
    assert narrow[1].endswith("web")


def test_images(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/images"] = [IMAGE, {**IMAGE, "digest": "sha256:" + "c" * 64, "references": []}]
    rows = [re.split(r" {3,}", line) for line in hyper("images").stdout.splitlines()]
    assert rows == [
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"],
        ["nginx", "latest", "ab" * 6, "N/A", "188MB"],
        ["127.0.0.1:5000/n", "1", "ab" * 6, "N/A", "188MB"],
        ["<none>", "<none>", "c" * 12, "N/A", "188MB"],
    ]
    assert len(json.loads(hyper("images", "--format", "json").stdout)) == 2


def test_images_by_filter(hyper: Any, daemon: Daemon) -> None:
    found = [("nginx", 3.0), ("redis", 2.0), ("job", 1.0), ("undated", None)]
    daemon.answers["GET /v1/images"] = [
        {
            **IMAGE, "digest": f"sha256:{number}{'0' * 63}", "references": [f"docker.io/library/{name}:1"],
            "created_at": at, "config": {"Labels": {"name": name, "all": ""}},
        }
        for number, (name, at) in enumerate(found)
    ] + [{**IMAGE, "digest": "sha256:" + "c" * 64, "references": []}]  # fmt: skip
    for line, names in (
        ("-f reference=nginx -f reference=redis", ["nginx", "redis"]), ("nginx", ["nginx"]),
        ("-f reference=nginx -f reference=redis -f before=nginx:1", ["redis"]), ("-f reference=none", []),
        ("-f before=nginx:1", ["redis", "job"]), ("-f before=redis:1 -f before=nginx:1", ["redis", "job"]),
        ("-f since=redis:1 -f since=job:1", ["nginx", "redis"]), ("-f before=nginx:1 -f since=job:1", ["redis"]),
        ("-f before=job:1 -f since=nginx:1", []),
        ("-f label=all -f label=name=job", ["job"]), ("-f label=name=job -f label=name=nginx", []),
        ("-f dangling=true", ["<none>"]), ("nginx -f reference=redis", ["nginx", "redis"]),
        ("-f dangling=true -f dangling=false", ["nginx", "redis", "job", "undated", "<none>"]),
    ):  # fmt: skip
        done = hyper("images", "--format", "{{.Repository}}", *line.split())
        assert (done.stderr, done.stdout.split()) == ("", names), line


def test_packages(hyper: Any, daemon: Daemon) -> None:
    one = {"name": "libssl3", "version": "3.0.2-1+b1", "source": "openssl", "source_version": "3.0.2-1"}
    found = {"digest": DIGEST, "distribution": "debian", "version": "12", "packages": [one]}
    daemon.answers["GET /v1/packages/host:5000/a:1"] = found
    assert [line.split() for line in hyper("image", "packages", "host:5000/a:1").stdout.splitlines()] == [
        ["NAME", "VERSION", "SOURCE", "SOURCE_VERSION"],
        ["libssl3", "3.0.2-1+b1", "openssl", "3.0.2-1"],
    ]
    assert json.loads(hyper("image", "packages", "--format", "json", "host:5000/a:1").stdout) == found
    daemon.answers["GET /v1/packages/x"] = {**found, "packages": None}
    done = hyper("image", "packages", "x")
    assert done.returncode != 0
    assert "no list of packages" in one_line(done.stderr)


def test_pull(hyper: Any, daemon: Daemon) -> None:
    lines = [
        {"status": "downloading", "layer": None, "current": 1, "total": 2},
        {"status": "unpacking"},
        {"image": IMAGE},
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    daemon.answers["POST /v1/images/pull"] = [content[:20], content[20:90], content[90:]]  # cut anywhere
    done = hyper("pull", "--no-tls-verify", "nginx")
    assert (done.returncode, done.stdout) == (0, f"Digest: {DIGEST}\nnginx\n")
    assert done.stderr == "nginx: downloading\nnginx: unpacking\n"
    assert daemon.bodies("POST /v1/images/pull") == [{"reference": "nginx", "tls_verify": False}]
    error = {"error": {"code": "upstream", "message": "the registry x cannot be reached; check", "field": None}}
    daemon.answers["POST /v1/images/pull"] = [json.dumps(error).encode()]
    done = hyper("pull", "x/y")
    assert (done.returncode, done.stdout) == (125, "")
    assert one_line(done.stderr) == "hyper: the registry x cannot be reached; check\n"
    daemon.answers["POST /v1/images/pull"] = [b'{"status": "downloading"}\n']
    assert "without a result" in hyper("pull", "-q", "x/y").stderr
    removed = {"untagged": ["host:5000/a/b:1"], "deleted": [DIGEST], "freed_bytes": 1}
    daemon.answers["DELETE /v1/images/host:5000/a/b:1"] = removed
    assert hyper("rmi", "host:5000/a/b:1").stdout == f"Untagged: host:5000/a/b:1\nDeleted: {DIGEST}\n"


def test_save_replaces_files_alone(hyper: Any, daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers["POST /v1/images/save"] = [b"arch", b"ive"]
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "far" / "file.tar"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        done = hyper("save", "-o", str(place), "nginx")
        assert done.returncode == 125
        assert f"--output {place}: it is no regular file; name one" in one_line(done.stderr)
    assert pipe.is_fifo()
    assert not daemon.asked, "nothing is packed for it"
    file.parent.mkdir()
    link.symlink_to(file)
    for _ in range(2):  # a link to nothing yet, and to a file
        assert hyper("save", "-o", str(link), "nginx").returncode == 0
        assert (link.readlink(), file.read_bytes(), list(file.parent.iterdir())) == (file, b"archive", [file])
    assert hyper("save", "nginx").stdout == "archive"


def runnable(daemon: Daemon, output: list[bytes], code: int) -> None:
    daemon.answers |= {
        "POST /v1/containers": {"id": ID, "name": "web", "warnings": []},
        f"POST /v1/containers/{ID}/start": CONTAINER,
        f"GET /v1/containers/{ID}/attach?offset=0": output,
        f"POST /v1/containers/{ID}/wait": {"exit_code": code, "oom_killed": False, "error": None},
        f"GET /v1/containers/{ID}": {**CONTAINER, "state": "exited"},
        f"DELETE /v1/containers/{ID}?force=true&volumes=true": None,
    }


def test_run_in_the_foreground(hyper: Any, daemon: Daemon) -> None:
    both = record(1, b"to stdout\n") + record(2, b"to stderr\n") + exited(7)
    runnable(daemon, [both[:7], both[7:33], both[33:]], 7)
    done = hyper("run", "--rm", "--name", "w", "-e", "A=1", "-e", "B", "-p", "127.0.0.1:8080:80/udp", "-m", "64m",
                 "-l", "team=shop", "--entrypoint", "/bin/x", "-w", "/d", "-u", "u:g", "--cpus", "1.5",
                 "nginx", "-g", "--name", "x", B="2")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "to stdout\n", "to stderr\n")
    (spec,) = daemon.bodies("POST /v1/containers")
    assert {key: value for key, value in spec.items() if value} == {
        "image": "nginx", "name": "w", "args": ["-g", "--name", "x"], "entrypoint": ["/bin/x"], "env": ["A=1", "B=2"],
        "cwd": "/d", "user": "u:g", "labels": {"team": "shop"}, "memory_bytes": 64 << 20, "cpus": 1.5,
        "ports": [{"host_ip": "127.0.0.1", "host_port": 8080, "container_port": 80, "protocol": "udp"}],
        "auto_remove": True, "removed_by": "client",
    }  # fmt: skip
    assert daemon.asked[-1] == (f"DELETE /v1/containers/{ID}?force=true&volumes=true", None)


def test_run_detached_pulls_what_is_unknown(hyper: Any, daemon: Daemon) -> None:
    runnable(daemon, [], 0)
    made = [Refusal(404, "image_unknown", "there is no image nginx"), {"id": ID, "name": "web", "warnings": ["mind"]}]
    daemon.answers["POST /v1/containers"] = lambda _body: made.pop(0)
    daemon.answers["POST /v1/containers?pulled_s=…"] = daemon.answers["POST /v1/containers"]
    daemon.answers["POST /v1/images/pull"] = [json.dumps({"image": IMAGE}).encode()]
    done = hyper("run", "-d", "--rm", "nginx")
    assert (done.returncode, done.stdout) == (0, f"{ID}\n")
    assert done.stderr == "Unable to find image 'nginx' locally\nWARNING: mind\n"
    asked = [call for call, _ in daemon.asked if call.startswith("POST /v1/containers")]
    assert asked[:2] == ["POST /v1/containers", "POST /v1/containers?pulled_s=…"], "it tells how long it pulled"
    specs = [daemon.bodies(call)[0] for call in asked[:2]]
    assert [(spec["auto_remove"], "removed_by" in spec) for spec in specs] == [(True, False)] * 2
    made = [Refusal(404, "image_unknown", "there is no image nginx; get it")]
    assert one_line(hyper("run", "--pull", "never", "nginx").stderr) == "hyper: there is no image nginx; get it\n"


def test_publish_all(hyper: Any, daemon: Daemon) -> None:
    runnable(daemon, [], 0)
    daemon.answers["GET /v1/images/nginx"] = IMAGE
    assert hyper("run", "-dP", "-p", "8080:80", "nginx").returncode == 0
    ports = daemon.bodies("POST /v1/containers")[0]["ports"]
    assert [(one["host_port"], one["container_port"], one["protocol"]) for one in ports] == [
        (8080, 80, "tcp"),
        (0, 53, "udp"),
    ]
    exposed = {"5000/sctp": {}, "\x1b[1m": {}, "80/tcp": {}}
    daemon.answers["GET /v1/images/odd"] = {**IMAGE, "config": {"ExposedPorts": exposed}}
    done = hyper("run", "-dP", "odd")
    assert (done.returncode, [one.split(":")[:2] for one in done.stderr.splitlines()]) == (0, [
        ["WARNING", " the image's port 5000/sctp is not published"],
        ["WARNING", " the image's port ?[1m is not published"],
    ])  # fmt: skip
    assert [one["container_port"] for one in daemon.bodies("POST /v1/containers").pop()["ports"]] == [80]
    daemon.asked.clear()
    args = ("-P", "--expose", "9000-9001", "--expose", "80", "-p", "8000-8005:80", "-p", "7000-7001:7000-7001/udp")
    assert hyper("run", "-d", *args, "nginx").returncode == 0
    ports = daemon.bodies("POST /v1/containers")[0]["ports"]
    assert [(one["host_port"], one.get("host_port_last"), one["container_port"]) for one in ports] == [
        (8000, 8005, 80), (7000, None, 7000), (7001, None, 7001), (0, None, 53), (0, None, 9000), (0, None, 9001),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "expected"),
    [("command_not_found", 127), ("command_not_executable", 126), ("port_in_use", 125), ("internal", 125)],
)
def test_a_start_that_fails(hyper: Any, daemon: Daemon, tmp_path: Path, code: str, expected: int) -> None:
    runnable(daemon, [], 0)
    daemon.answers[f"POST /v1/containers/{ID}/start"] = Refusal(400, code, "it cannot be\nfor\x1b[1m this reason")
    done = hyper("run", "--rm", "--cidfile", str(tmp_path / "id"), "nginx", "x")
    assert done.returncode == expected
    assert one_line(done.stderr) == "hyper: it cannot be for?[1m this reason\n"
    assert daemon.asked[-1][0] == f"DELETE /v1/containers/{ID}?force=true&volumes=true"
    assert not (tmp_path / "id").exists(), "no container, no file"


def ends_when_sent(daemon: Daemon) -> threading.Event:
    """A container that says `out` and ends with 4 once the event is set."""
    sent = threading.Event()

    def give(_body: Any) -> Iterator[bytes]:
        assert sent.wait(20)
        yield record(1, b"out\n") + exited(4)

    runnable(daemon, [], 4)
    daemon.answers[f"GET /v1/containers/{ID}/attach"] = give
    return sent


def test_a_start_attached_sends_stdin_where_there_is_one(hyper: Any, daemon: Daemon) -> None:
    sent = ends_when_sent(daemon)
    daemon.answers[f"POST /v1/containers/{ID}/input?end=false"] = None
    daemon.answers[f"POST /v1/containers/{ID}/input?end=true"] = lambda _body: sent.set()
    for stdin in (True, False):  # without, nothing is to be waited for: it was sent before
        spec = {"tty": False, "stdin": stdin}
        daemon.answers[f"GET /v1/containers/{ID}"] = {**CONTAINER, "state": "exited", "spec": spec}
        done = hyper("start", "-ai", ID, stdin="words")
        assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "")
    assert daemon.bodies(f"POST /v1/containers/{ID}/input?end=false") == [b"words"]


def test_a_start_attached_of_one_that_runs_stands_for_it(hyper: Any, daemon: Daemon) -> None:
    sent = ends_when_sent(daemon)
    daemon.answers[f"POST /v1/containers/{ID}/input?end=false"] = lambda _body: sent.set()
    daemon.answers["GET /v1/containers/web"] = {**CONTAINER, "spec": {"tty": False, "stdin": True}}
    for options in ("-ai", "-a"):  # without -i nothing is to be waited for: it was sent before
        done = hyper("start", options, "web", stdin="words")
        assert (done.returncode, done.stdout, done.stderr) == (4, "out\n", "")
    asked = [call for call, _ in daemon.asked]
    assert asked.count(f"POST /v1/containers/{ID}/input?end=false") == 1
    assert not [call for call in asked if call.endswith(("/start", "end=true"))], "others may go on with its stdin"


def test_interrupt_is_passed_on(daemon: Daemon, environment: dict[str, str]) -> None:
    killed = threading.Event()

    def kill(_body: Any) -> None:
        killed.set()

    def wait(_body: Any) -> dict[str, Any]:
        assert killed.wait(20)
        return {"exit_code": 130, "oom_killed": False, "error": None}

    runnable(daemon, [record(1, b"ready\n")], 0)
    daemon.answers |= {f"POST /v1/containers/{ID}/kill": kill, f"POST /v1/containers/{ID}/wait": wait}
    command = [sys.executable, "-m", "runtime.cli.program", "run", "nginx"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    process.stdout.close()
    assert daemon.bodies(f"POST /v1/containers/{ID}/kill") == [{"signal": "INT"}]


def test_interrupt_elsewhere_is_130(daemon: Daemon, environment: dict[str, str]) -> None:
    held, released = threading.Event(), threading.Event()

    def hold(_body: Any) -> dict[str, int]:
        held.set()
        released.wait(20)
        return {"exit_code": 0}

    daemon.answers["POST /v1/containers/web/wait"] = hold
    process = subprocess.Popen([sys.executable, "-m", "runtime.cli.program", "wait", "web"], env=environment)
    assert held.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    released.set()


def test_exec(hyper: Any, daemon: Daemon) -> None:
    received = threading.Event()

    def take(_body: Any) -> None:
        received.set()

    def give(_body: Any) -> Iterator[bytes]:
        assert received.wait(20)
        yield record(1, b"out") + record(2, b"err") + exited(3)

    daemon.answers |= {
        "POST /v1/containers/web/exec": {"session": "s.1"},
        "POST /v1/sessions/s.1/input?end=false": None,
        "POST /v1/sessions/s.1/input?end=true": take,
        "GET /v1/sessions/s.1/output": give,
    }
    done = hyper(
        "exec",
        "-i",
        "-e",
        "A=1",
        "-e",
        "NONE_OF_OURS",
        "-w",
        "/",
        "-u",
        "0",
        "web",
        "sh",
        "-c",
        "exit 3",
        stdin="some input",
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "out", "err")
    (spec,) = daemon.bodies("POST /v1/containers/web/exec")
    assert spec["args"] == ["sh", "-c", "exit 3"]
    assert (spec["cwd"], spec["user"], spec["stdin"], spec["tty"]) == ("/", "0", True, False)
    assert spec["env"] == ["A=1", "NONE_OF_OURS"], "a name alone takes away"
    assert daemon.bodies("POST /v1/sessions/s.1/input?end=false") == [b"some input"]
    daemon.answers["GET /v1/sessions/s.1/output"] = [record(1, b"cut")]
    assert "was lost before it ended" in hyper("exec", "web", "sh").stderr
    daemon.answers["POST /v1/containers/web/exec"] = Refusal(400, "command_not_found", "nope: not found")
    assert hyper("exec", "web", "nope").returncode == 127


def test_logs(hyper: Any, daemon: Daemon) -> None:
    pieces = [record(1, b"a\nb"), record(2, b"e\n"), record(1, b"c\n\nd\n"), exited(0)]
    daemon.answers["GET /v1/containers/web/logs?follow=false&tail=2"] = pieces
    assert hyper("logs", "--tail", "2", "web").stdout == "a\nbc\n\nd\n"
    daemon.answers["GET /v1/containers/web/logs?follow=false"] = pieces
    assert hyper("logs", "-n", "-1", "web").stdout == hyper("logs", "--tail=all", "web").stdout == "a\nbc\n\nd\n"
    daemon.answers["GET /v1/containers/web/logs?follow=true"] = pieces
    stamp = "2023-11-14T22:13:20.123456789Z "
    done = hyper("logs", "-ft", "web")
    assert done.stdout == f"{stamp}a\n{stamp}bc\n{stamp}\n{stamp}d\n"
    assert done.stderr == f"{stamp}e\n"


def test_lifecycle(hyper: Any, daemon: Daemon) -> None:
    for action in ("start", "stop", "restart", "redeploy"):
        daemon.answers[f"POST /v1/containers/a/{action}"] = CONTAINER
    daemon.answers["POST /v1/containers/a/kill"] = None
    daemon.answers["DELETE /v1/containers/a?force=false&volumes=false"] = None
    daemon.answers["POST /v1/containers/a/wait"] = {"exit_code": 9, "oom_killed": False, "error": None}
    for args in (
        ["start"],
        ["stop", "-t", "3", "-s", "sigquit"],
        ["restart", "-s", "9"],
        ["redeploy", "--reason", "drill"],
        ["kill"],
        ["rm"],
    ):
        done = hyper(*args, "a", "b")
        assert (done.returncode, done.stdout) == (125, "a\n")
        assert "no such thing" in one_line(done.stderr)
    assert hyper("wait", "a").stdout == "9\n"
    daemon.answers["POST /v1/containers/new/wait"] = {"exit_code": None, "oom_killed": False, "error": None}
    assert hyper("wait", "new").stdout == "0\n", "it never ran"
    for option in ("--time=-1", "-t-1"):
        assert hyper("stop", option, "a").stdout == "a\n"
    assert hyper("restart", "-t", "-1", "a").stdout == "a\n"
    assert daemon.bodies("POST /v1/containers/a/stop")[1:] == [{"timeout_s": 86400.0}] * 2
    assert daemon.bodies("POST /v1/containers/a/restart")[1:] == [{"timeout_s": 86400.0}]
    assert daemon.bodies("POST /v1/containers/a/stop")[:1] == [{"timeout_s": 3.0, "signal": "QUIT"}]
    assert daemon.bodies("POST /v1/containers/a/restart")[:1] == [{"signal": "9"}]
    daemon.answers["DELETE /v1/containers/a?force=true&volumes=false"] = None
    done = hyper("rm", "-f", "b", "a")
    assert (done.returncode, done.stdout) == (0, "a\n"), "with -f one that is not there is no failure"
    assert "no such thing" in one_line(done.stderr)
    assert daemon.bodies("POST /v1/containers/a/kill") == [{"signal": "KILL"}]
    (redeploy,) = daemon.bodies("POST /v1/containers/a/redeploy")
    assert redeploy["reason"] == "drill"
    assert redeploy["actor"].startswith("user:")


def test_inspect_info_version(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers/web"] = CONTAINER
    daemon.answers["GET /v1/images/nginx"] = IMAGE
    done = hyper("inspect", "web", "nginx", "nothing")
    assert json.loads(done.stdout) == [CONTAINER, IMAGE]
    assert done.returncode == 125
    assert "no container, no image and no volume nothing" in one_line(done.stderr)
    daemon.answers["GET /v1/volumes/data"] = {"name": "data", "file": "/x", "labels": {}, "created_at": 0.0}
    assert hyper("inspect", "-f", "{{.Name}} {{.Driver}} {{.CreatedAt}}", "data").stdout == (
        "data local 1970-01-01T00:00:00.000000000Z\n"
    )
    assert hyper("image", "inspect", "-f", "{{.Id}}", "nginx").stdout == f"{DIGEST}\n"
    assert hyper("container", "inspect", "nginx").returncode == 125
    daemon.answers["GET /v1/info"] = {"accel": {"mode": "tcg", "why": None}, "templates": [], "kvm_works": False}
    assert hyper("info").stdout == "accel:\n  mode: tcg\n  why: -\ntemplates: -\nkvm works: no\n"
    daemon.answers["GET /v1/info"] = {"containers": 3, "running": 1, "version": "0.1.0"}
    form = "{{.ContainersRunning}}/{{.Containers}} {{.ServerVersion}}"
    assert hyper("system", "info", "-f", form).stdout == hyper("info", "-f", form).stdout == "1/3 0.1.0\n"


def test_versions_with_a_daemon(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/version"] = {"version": "0.0.9", "kernel": "6.1"}
    assert hyper("version").stdout == f"client: {VERSION}\nversion: 0.0.9\nkernel: 6.1\n"
    assert json.loads(hyper("version", "--format", "json").stdout) == {
        "client": VERSION, "version": "0.0.9", "kernel": "6.1",
    }  # fmt: skip
    assert hyper("version", "-f", "{{.Client.Version}} {{.Server.Version}}").stdout == f"{VERSION} 0.0.9\n"


def test_versions_without_a_daemon(hyper: Any, tmp_path: Path) -> None:
    for option in ("--version", "-v"):
        done = hyper(option)
        assert (done.stdout, done.stderr, done.returncode) == (f"hyper {VERSION}\n", "", 0)
    for form, said in (("table", f"client: {VERSION}"), ("json", None), ("{{.Client.Version}}", VERSION)):
        done = hyper("version", "--format", form)
        assert done.returncode == 125
        assert f"hyperd is not running (nothing answers on {tmp_path}/hyperd.sock)" in one_line(done.stderr)
        if said is None:
            assert json.loads(done.stdout) == {"client": VERSION}
        else:
            assert done.stdout == f"{said}\n"


def test_logout_where_nobody_is_logged_in(hyper: Any, tmp_path: Path) -> None:
    done = hyper("logout", "127.0.0.1:5000", "--authfile", str(tmp_path / "auth.json"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Not logged in to 127.0.0.1:5000\n", "")
    (tmp_path / "auth.json").write_text('{"auths": {"127.0.0.1:5000": {"auth": "eDp5"}}}')
    (tmp_path / "auth.json").chmod(0o600)
    args = ("logout", "127.0.0.1:5000", "--authfile", str(tmp_path / "auth.json"))
    (tmp_path / "link.json").symlink_to("auth.json")
    done = hyper(*args[:-1], str(tmp_path / "link.json"))
    assert done.stdout == "Removed the credentials for 127.0.0.1:5000\n"
    assert (tmp_path / "link.json").is_symlink()
    assert hyper(*args).stdout == "Not logged in to 127.0.0.1:5000\n"


@pytest.mark.parametrize(("args", "prompt"), [([], b"Username: "), (["-u", "me"], b"Password: ")])
def test_a_login_that_nobody_answers_is_a_line(
    daemon: Daemon, environment: dict[str, str], args: list[str], prompt: bytes
) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "runtime.cli.program", "login", *args, "127.0.0.1:5000"],
        # A session of its own has no other terminal that could be asked.
        stdin=its, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(len(prompt)) == prompt
        os.write(ours, b"\x04")  # Ctrl-D
        said, _ = process.communicate(timeout=30)
    os.close(ours)
    os.close(its)
    assert process.returncode == 125
    assert said == b"\nhyper: login needs a name and a password, and the terminal gave none\n"
    assert not daemon.asked


def test_what_an_output_cannot_encode_is_a_question_mark(hyper: Any) -> None:
    done = hyper("--help", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: hyper [-H unix:///path] COMMAND [OPTIONS] ?\n")
    done = hyper("run", "--no-healthcheck", "--health-cmd", "true", "x", PYTHONIOENCODING="ascii")
    assert "--no-healthcheck and --health-? exclude each other" in one_line(done.stderr)


def test_stats(hyper: Any) -> None:
    one = {
        "id": ID, "name": "web", "state": "running", "cpu_ratio": 0.1234, "memory_bytes": 50 << 20,
        "memory_limit_bytes": 200 << 20,
        "network_rx_bytes": 1500, "network_tx_bytes": 0, "block_read_bytes": None, "block_write_bytes": 2e6, "pids": 3,
        "overhead_bytes": 31 << 20, "sample_age_s": 1.0,
    }  # fmt: skip
    daemon = Daemon({"GET /stats": {"containers": [one, {**one, "name": "old", "state": "exited"}]}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound(daemon))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        rows = [
            re.split(r" {3,}", line)
            for line in hyper("stats", "--no-stream", HYPER_EXPORTER_URL=url).stdout.splitlines()
        ]
        assert rows[0][-1] == "OVERHEAD"
        assert rows[1:] == [
            [ID[:12], "web", "12.34%", "50MiB / 200MiB", "25.00%", "1.5kB / 0B", "-- / 2MB", "3", "31MiB"]
        ]
        found = json.loads(hyper("stats", "--no-stream", "-a", "--format", "json", HYPER_EXPORTER_URL=url).stdout)
        assert [entry["name"] for entry in found["containers"]] == ["web", "old"]
        form = "table {{.Name}}\t{{.MemUsage}}\t{{.PIDs}}"
        more = [{**one, "name": f"n{pids}", "pids": pids, "cpu_ratio": None} for pids in (5, 9, 1)]
        daemon.answers["GET /stats"] = {"containers": [*more, one]}
        for column, names in (("name", "n5 n9 n1 web"), ("pids", "n9 n5 web n1"), ("cpu", "web n5 n9 n1")):
            told = hyper("stats", "--no-stream", "--sort", column, "--format", "{{.Name}}", HYPER_EXPORTER_URL=url)
            assert told.stdout.split() == names.split()
        assert hyper("stats", "--sort", "age", HYPER_EXPORTER_URL=url).returncode == 125
        daemon.answers["GET /stats"] = {"containers": [one]}
        lines = hyper("stats", "--no-stream", "--format", form, HYPER_EXPORTER_URL=url).stdout.splitlines()
        assert [re.split(r" {3,}", line) for line in lines] == [
            ["NAME", "MEM USAGE / LIMIT", "PIDS"], ["web", "50MiB / 200MiB", "3"],
        ]  # fmt: skip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    done = hyper("stats", "--no-stream", HYPER_EXPORTER_URL=url)
    assert done.returncode == 125
    assert "hyper-exporter cannot be reached" in one_line(done.stderr)
    for wrong in ("http://127.0.0.1:97200", "http://a b:80", "http://[::1", "https://host", "host:80"):
        done = hyper("stats", "--no-stream", HYPER_EXPORTER_URL=wrong)
        assert done.returncode == 125
        assert one_line(done.stderr) == f"hyper: exporter_url {wrong!r} is not http://host:port\n"


def test_a_reader_that_has_seen_enough(daemon: Daemon, environment: dict[str, str]) -> None:
    daemon.answers["GET /v1/containers/web/logs?follow=false"] = [record(1, b"line\n" * 13000)] * 40
    command = f"{sys.executable} -m runtime.cli.program logs web | head -1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, env=environment, check=True
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--help >/dev/full", "the output cannot be written: No space left on device"),
        ("logs web >/dev/full", "the output cannot be written: No space left on device"),
        ("--version >&-", "stdout is closed"),
        ("run -d nginx >&-", "stdout is closed"),
        ("ps <&- >&-", "stdout is closed"),
    ],
)
def test_output_that_cannot_be_written(daemon: Daemon, environment: dict[str, str], line: str, message: str) -> None:
    runnable(daemon, [], 0)
    daemon.answers["GET /v1/containers/web/logs?follow=false"] = [record(1, b"line\n" * 13000)] * 4
    command = ["sh", "-c", f"{sys.executable} -m runtime.cli.program {line}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert message in one_line(done.stderr)
    assert not daemon.bodies("POST /v1/containers"), "nothing is made of which nobody could be told"


@pytest.mark.parametrize(
    ("redirection", "message"),
    [("<&-", ""), ("<&- 2>&-", ""), ("0>/dev/null", "hyper: stdin cannot be read: Bad file descriptor\n")],
)
def test_a_stdin_that_cannot_be_read_has_ended(
    daemon: Daemon, environment: dict[str, str], redirection: str, message: str
) -> None:
    ended = threading.Event()

    def give(_body: Any) -> Iterator[bytes]:
        assert ended.wait(20)
        yield record(1, b"out") + exited(3)

    daemon.answers |= {
        "POST /v1/containers/web/exec": {"session": "one"},
        "POST /v1/sessions/one/input?end=true": lambda _body: ended.set(),
        "GET /v1/sessions/one/output": give,
    }
    command = ["sh", "-c", f"{sys.executable} -m runtime.cli.program exec -i web cat {redirection}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out", message)


def test_dockers_longer_spellings(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers?all=true"] = [CONTAINER]
    daemon.answers["GET /v1/images"] = [IMAGE]
    for spelling in ("ls", "list", "ps"):
        assert hyper("container", spelling, "-aq").stdout == hyper("ps", "-aq").stdout == f"{ID[:12]}\n"
    assert hyper("image", "ls").stdout == hyper("images", "-a").stdout
    assert hyper("image", "rm", "-f", "nosuch").stderr == hyper("rmi", "-f", "nosuch").stderr
    assert "usage: hyper image ls" in hyper("image", "ls", "--help").stdout
    assert "usage: hyper container COMMAND" in hyper("help", "container").stdout
    assert "usage: hyper container run" in hyper("help", "container", "run").stdout
    assert hyper("container").returncode == 125


def test_prune_says_what_is_to_go(hyper: Any, daemon: Daemon) -> None:
    images = {"untagged": ["x:1"], "deleted": [DIGEST]}
    daemon.answers["POST /v1/system/prune"] = {
        "containers": [ID], "volumes": [], "images": images, "freed_bytes": 2048, "failed": [],
    }  # fmt: skip
    shown = hyper("system", "prune", "-f").stdout
    assert shown == (
        f"Deleted Containers:\n{ID}\n\nDeleted Images:\nuntagged: x:1\ndeleted: {DIGEST}\n\n"
        "Total reclaimed space: 2KiB\n"
    )
    assert hyper("system", "prune", "-af", "--volumes").returncode == 0
    assert hyper("container", "prune", "-f").returncode == 0
    assert hyper("system", "prune", stdin="y\n").stdout == shown
    for answer in ("", "n\n"):
        done = hyper("system", "prune", stdin=answer)
        assert done.returncode == 125
        assert "--force" in one_line(done.stderr)
    assert daemon.bodies("POST /v1/system/prune") == [
        {"images": "dangling", "volumes": False}, {"images": "all", "volumes": True}, {"images": "none"},
        {"images": "dangling", "volumes": False},
    ]  # fmt: skip


def test_a_prune_that_leaves_something_says_so_and_fails(hyper: Any, daemon: Daemon) -> None:
    nothing = {"freed_bytes": 0, "failed": ["web: no space left for the database", "db: same"]}
    images: dict[str, list[str]] = {"untagged": [], "deleted": []}
    daemon.answers["POST /v1/system/prune"] = {"containers": [], "volumes": [], "images": images, **nothing}
    daemon.answers["POST /v1/images/prune"] = {**images, **nothing}
    daemon.answers["POST /v1/volumes/prune"] = {"removed": [], **nothing}
    for kind in ("container", "system", "image", "volume"):
        done = hyper(kind, "prune", "-f")
        assert done.returncode == 125, kind
        assert done.stderr.splitlines() == ["hyper: web: no space left for the database", "hyper: db: same"]
        assert "Total reclaimed space: 0B" in done.stdout


def test_volumes_by_filter_and_template(hyper: Any, daemon: Daemon) -> None:
    one = {
        "name": "data", "anonymous": False, "labels": {"kind": "test"}, "size_bytes": 1 << 30, "used_bytes": 1 << 20,
        "containers": [{"id": ID, "name": "web", "live": True}], "created_at": 1.0, "file": "/x",
    }  # fmt: skip
    daemon.answers["GET /v1/volumes"] = [one, {**one, "name": "free", "labels": {}, "containers": []}]
    for text, names in (
        ("dangling=true", ["free"]), ("dangling=false", ["data"]), ("name=at", ["data"]), ("label=kind", ["data"]),
        ("label=kind=other", []), ("driver=local", ["data", "free"]), ("name=dat name=fre", ["data", "free"]),
        ("name=dat name=fre dangling=1", ["free"]), ("label=kind label=kind=test", ["data"]),
        ("label=kind label=none", []), ("dangling=true dangling=0", ["data", "free"]),
    ):  # fmt: skip
        filters = [word for one in text.split() for word in ("-f", one)]
        assert hyper("volume", "ls", "-q", *filters).stdout.split() == names, text
    assert (
        hyper("volume", "list", "--format", '{{.Name}} {{.Label "kind"}} {{.Links}}').stdout == "data test 1\nfree  0\n"
    )
    anonymous = "c4" * 32
    daemon.answers["GET /v1/volumes"] = [{**one, "name": anonymous, "anonymous": True}]
    assert hyper("volume", "ls").stdout.splitlines()[1].split()[0] == anonymous, "no command takes a part of it"
    assert "--filter 'colour=red': write KEY=VALUE" in one_line(hyper("volume", "ls", "-f", "colour=red").stderr)


def test_completion_is_a_script(hyper: Any) -> None:
    for shell in ("bash", "zsh"):
        script = hyper("completion", shell).stdout
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "--publish-all" in script


@pytest.mark.parametrize(
    ("words", "modules", "more"),
    [
        ("ps", {"containers"}, set()),
        ("run --rm nginx", {"run", "mounts", "attach", "streams", "terminal"}, {"contextlib", "signal"}),
        ("exec web true", {"streams", "terminal"}, {"contextlib", "signal"}),
        ("logs web", {"streams", "terminal", "moments"}, {"contextlib", "signal"}),
    ],
)
def test_a_start_loads_next_to_nothing(
    daemon: Daemon, environment: dict[str, str], words: str, modules: set[str], more: set[str]
) -> None:
    daemon.answers.update(
        {
            "GET /v1/containers?all=false": [CONTAINER],
            "POST /v1/containers": {"id": ID, "name": "web", "warnings": []},
            f"POST /v1/containers/{ID}/start": {},
            f"GET /v1/containers/{ID}/attach?offset=0": [record(1, b"out\n"), exited(0)],
            f"DELETE /v1/containers/{ID}?force=true&volumes=true": None,
            "POST /v1/containers/web/exec": {"session": "one"},
            "GET /v1/sessions/one/output": [record(1, b"out\n"), exited(0)],
            "GET /v1/containers/web/logs?follow=false": [record(1, b"out\n")],
        }
    )
    program = """
import sys
from runtime.cli import main
code = main.main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
    command = [sys.executable, "-S", "-c", program, *words.split()]  # as the launcher starts it
    env = {**environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    ours = {name.removeprefix("runtime.cli.") for name in loaded if name.startswith("runtime.cli.")}
    assert ours == {"main", "arguments", "output"} | modules
    slow = {
        "asyncio", "base64", "contextlib", "dataclasses", "datetime", "http", "importlib.metadata", "locale", "pathlib",
        "pydantic", "signal", "site", "socket", "sqlite3", "subprocess", "threading", "tomllib", "typing", "urllib",
    }  # fmt: skip
    assert not loaded & (slow - more)


def test_no_command_needs_more_than_the_standard_library() -> None:
    program = """
import sys
from runtime.cli import main
for name in [*main.COMMANDS, *(f"{group} {action}" for group in main.GROUPS for action in main.GROUPS[group])]:
    if name not in main.GROUPS:
        main.command(name)
print(*sys.modules)
"""
    command = [sys.executable, "-S", "-P", "-c", program]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"runtime", "__main__"}
