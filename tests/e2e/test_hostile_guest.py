"""A guest whose agent has been replaced: whatever it says on its ports, the daemon, its neighbours and the host go on.

Each test has the same frame (`among_others`): the daemon is the same process afterwards and has not grown, a neighbour
was answered all the while, and the hostile container could be looked at and removed. `Host.close` asserts that nothing
is left. What such a guest may do to the collector is in tests/contract/test_exporter_faults.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import struct
import subprocess
import tarfile
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests import fakeguest
from tests.fakeguest import hostile
from tests.host import Host, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.e2e.conftest import Images

DATA, EOF, CREDIT, EXIT = 1, 2, 3, 4
GROWTH_BYTES = 48 << 20
# How much slower a neighbour's exec may be. The guest that floods takes one of the machine's two processors.
FACTOR, SLACK_S = 3.0, 0.5
LONGEST_S = 5.0
LOOKS = 5
LOG_MAX_BYTES = 4 << 20
LOG_FLOOD_BYTES = 256 << 20  # what a flood writes in a second or two: bounded, if not by what is kept


@pytest.fixture(scope="module")
def turned(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose guests turn against it when they are told to; `neighbour` runs on it."""
    init = fakeguest.build(tmp_path_factory.mktemp("fakeguest"))
    with running_host(images.busybox, guest_init=init, log_max_bytes=LOG_MAX_BYTES) as one:
        one.run("--name", "neighbour", images.busybox, "sleep", "100000")
        yield one


@pytest.fixture(autouse=True)
def _only_the_neighbour_stays(turned: Host) -> Iterator[None]:
    yield
    names = turned.hyper("ps", "-a", "--format", "{{.Names}}").stdout.split()
    turned.hyper("rm", "-f", "-v", "nosuch", *[name for name in names if name != "neighbour"], check=False)


def neighbour_s(host: Host, looks: int = LOOKS) -> list[float]:
    """How long a neighbour's exec took, several times."""
    took = []
    for _ in range(looks):
        began = time.monotonic()
        assert host.hyper("exec", "neighbour", "echo", "here", timeout_s=60).stdout == "here\n"
        took.append(time.monotonic() - began)
    return took


def resident(host: Host) -> int:
    return int(psutil.Process(host.hyperd.pid).memory_info().rss)


@contextlib.contextmanager
def among_others(host: Host, *names: str) -> Iterator[None]:
    """What is done inside must not be felt outside: see the module's text."""
    assert host.hyperd.process is not None
    before, memory = statistics.median(neighbour_s(host)), resident(host)
    told = host.hyperd.log.stat().st_size
    peak = memory
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, resident(host))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
        during = neighbour_s(host)
        for name in names:
            assert host.inspect(name)["name"] == name
        began = time.monotonic()
        host.hyper("rm", "-f", *names)
        assert time.monotonic() - began < 10 * len(names)
    finally:
        over.set()
        watching.join()
    assert host.hyperd.process.poll() is None
    assert "Traceback" not in host.hyperd.log.read_text()[told:]
    print(f"neighbour: {before:.3f} s before, {statistics.median(during):.3f} s during, {max(during):.3f} s at most;")
    print(f"hyperd grew by {(peak - memory) >> 10} KiB")
    assert statistics.median(during) < FACTOR * before + SLACK_S
    assert max(during) < LONGEST_S
    assert peak - memory < GROWTH_BYTES


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What was printed of a failure, or nothing: one line, and nothing in it that a terminal would obey."""
    assert "Traceback" not in done.stderr
    lines = done.stderr.split("\n")
    assert lines.pop() == ""
    assert len(lines) <= 1, done.stderr
    assert all(line.isprintable() for line in lines)
    return "".join(lines)


def started(host: Host, images: Images, name: str, *options: str) -> str:
    host.run("--name", name, *options, images.busybox, "sleep", "100000")
    return name


def all_started(host: Host, images: Images, options: Mapping[str, Sequence[str]]) -> list[str]:
    """Containers by name and options, started side by side."""
    all_at_once(*[lambda name=name: started(host, images, name, *options[name]) for name in options])
    return list(options)


def all_at_once(*calls: Callable[[], object]) -> None:
    """Each in a thread of its own; a failure of one is the test's."""
    failures: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as err:  # noqa: BLE001 -- raised below, in the test's own thread
            failures.append(err)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- the control port

ANSWERS = {
    "nothing": b"\n",
    "text": b"hello\n",
    "deep": b"[" * 3000 + b"\n",
    "utf8": b'{"return": "\xc3\x28"}\n',
    "nan": b'{"return": NaN, "id": 18446744073709551616}\n',
    "types": b'{"error": {"class": ["NotFound"], "desc": {"a": 1e999}}}\n',
    "escapes": json.dumps({"error": {"class": "NotFound", "desc": "\x1b[2J\n\n\x07" + "x" * 3000}}).encode() + b"\n",
    "objects": b'{"return": [' + b"[]," * 3000 + b"0]}\n",
    "unasked": b'{"return": {"pid": 1}}\n' * 400,
}
BELIEVED = {"nan", "objects", "unasked"}


def test_answers_of_the_wrong_shape(turned: Host, images: Images) -> None:
    """Lies about everything, all at once; what is asked for comes to nothing, in one line."""
    names = all_started(turned, images, {name: hostile("control", "once", data) for name, data in ANSWERS.items()})

    def ask(name: str) -> None:
        one_line(turned.hyper("top", name, check=False))
        done = turned.hyper("exec", "-d", name, "true", check=False)
        assert len(one_line(done)) < 700
        # What it says of a start that was asked for is its own word; an answer that is none is refused.
        assert done.returncode in ({0} if name in BELIEVED else {125, 127}), name

    with among_others(turned, *names):
        all_at_once(*[lambda name=name: ask(name) for name in names])


@pytest.mark.parametrize(
    ("port", "how", "data"),
    [
        ("control", "forever", b"x" * 30000),
        ("control", "forever", b"\xff\n" * 15000),
        ("control", "forever", b'{"return": 1}\n' * 2000),
        ("sync", "forever", b"\xff\n" * 15000),
        ("sync", "forever", b'\xff{"return": [' + b"[]," * 9000 + b"\n"),
        ("streams", "forever", struct.pack("<IBBHI", 99, DATA, 1, 0, 0) * 2500),
        ("streams", "forever", struct.pack("<IBBHI", 99, DATA, 1, 0, 16) * 1000 + bytes(16)),
        ("streams", "forever", b"".join(b"SESS" + struct.pack("<BBHI", DATA, 1, 0, 1) + b"x" for _ in range(2000))),
        ("streams", "forever", b"\xff" * 30000),
    ],
    ids=["line", "resync", "answers", "sync", "sync-json", "unknown", "unknown-data", "bytes", "ff"],
)
def test_floods(turned: Host, images: Images, port: str, how: str, data: bytes) -> None:
    started(turned, images, "flood", *hostile(port, how, data))
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            one_line(turned.hyper("exec", "flood", "true", check=False, timeout_s=60))

    using = threading.Thread(target=use)
    with among_others(turned, "flood"):
        using.start()
        try:
            neighbour_s(turned, 3)
        finally:
            over.set()
    using.join()


def test_silence(turned: Host, images: Images) -> None:
    """An agent that does not answer delays whoever asks it, for as long as is said, and nobody else."""
    names = all_started(turned, images, {how: hostile("control", how, b"x") for how in ("never", "slow", "reopen")})

    def ask(name: str) -> None:
        began = time.monotonic()
        done = turned.hyper("exec", name, "true", check=False)
        assert done.returncode == 125
        line = one_line(done)
        assert "within 10 s" in line or "broke off" in line
        assert time.monotonic() - began < 15

    with among_others(turned, *names):
        asking = [lambda name=name: ask(name) for name in names for _ in range(2)]
        all_at_once(*asking, lambda: neighbour_s(turned))


# --- the streams port


def frame(kind: int, payload: bytes = b"", stream: int = 0, claimed: int | None = None) -> bytes:
    return b"SESS" + struct.pack("<BBHI", kind, stream, 0, len(payload) if claimed is None else claimed) + payload


FRAMES = {
    "enormous": frame(DATA, b"x" * 100, 1, claimed=0xFFFFFFFF),
    "end-twice": frame(EOF, stream=1) * 2,
    "credit": frame(CREDIT, b"\xff\xff\xff\xff"),
    "exit-deep": frame(EXIT, b"[" * 20000),
    "exit-text": frame(EXIT, b'{"exit_code": "0", "signal": null}'),
    "exit-huge": frame(EXIT, b'{"exit_code": 18446744073709551616, "signal": null}'),
    "exit-minus": frame(EXIT, b'{"exit_code": -1, "signal": null}'),
    "exit-nan": frame(EXIT, b'{"exit_code": NaN, "signal": 1e999}'),
    "kind": frame(200, b"x"),
}


def test_frames_that_break_the_protocol(turned: Host, images: Images) -> None:
    """Each ends the session that it was said in, at once and with an error."""
    names = all_started(turned, images, {name: hostile("streams", "once", data) for name, data in FRAMES.items()})

    def use(name: str) -> None:
        done = turned.hyper("exec", name, "true", check=False, timeout_s=20)
        one_line(done)
        assert done.returncode in {125, 255}, name

    with among_others(turned, *names):
        all_at_once(*[lambda name=name: use(name) for name in names])


def test_an_exit_that_is_told_twice_counts_once(turned: Host, images: Images) -> None:
    said = frame(DATA, b"lies\n", 1) + frame(EXIT, b'{"exit_code": 3, "signal": null}')
    started(turned, images, "twice", *hostile("streams", "once", said + frame(EXIT, b'{"exit_code": 0}') * 3))
    with among_others(turned, "twice"):
        done = turned.hyper("exec", "twice", "true", check=False)
        assert done.returncode in {3, 125}, "the first, or none: the connection may be lost before anybody has asked"


def test_a_session_of_which_nothing_comes_can_be_left(turned: Host, images: Images) -> None:
    all_started(turned, images, {"silent": hostile("streams", "once"), "mute": hostile("streams", "mute")})

    def leave() -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            turned.hyper("exec", "silent", "true", timeout_s=2)

    def wait() -> None:
        done = turned.hyper("exec", "mute", "true", check=False)
        assert done.returncode == 125
        assert "streams port" in one_line(done)

    with among_others(turned, "silent", "mute"):
        all_at_once(leave, wait)
    streams = wait_for(lambda: json.loads(api(turned, "/v1/streams"))["sessions"] == 0, "no session is left")
    assert streams


def api(host: Host, path: str) -> str:
    done = subprocess.run(
        ["curl", "-s", "--unix-socket", str(host.state_dir / "hyperd.sock"), f"http://localhost{path}"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return done.stdout


# --- the log


def record(kind: int, payload: bytes, length: int | None = None) -> bytes:
    return b"HP" + struct.pack("<BBIQ", kind, 0, len(payload) if length is None else length, 1) + payload


def test_a_log_that_lies_about_the_end(turned: Host, images: Images) -> None:
    """An end is one when the VM has ended, and not when a log says so; its exit code is one, whatever it is made of."""
    lies = record(3, b'{"event": "exited", "exit_code": 0, "oom_killed": "yes"}') + record(1, b"after\n")
    lies += record(3, b'{"event": "exited", "exit_code": 18446744073709551619}') + record(3, b"[" * 20000)
    lies += record(9, b"no such stream") + record(1, b"x", length=70000) + record(2, b"err\n") + b"HP\x01"
    started(turned, images, "liar", *hostile("log", "once", lies))
    with among_others(turned, "liar"):
        logs = wait_for(lambda: (found := turned.hyper("logs", "liar")).stderr and found, "what it wrote")
        assert (logs.stdout, logs.stderr) == ("after\n", "err\n")
        assert turned.inspect("liar")["state"] == "running"
        with pytest.raises(subprocess.TimeoutExpired):
            turned.hyper("wait", "liar", timeout_s=1)
        os.kill(turned.inspect("liar")["vm"]["pid"], 9)
        code = int(turned.hyper("wait", "liar").stdout)
        assert 0 <= code <= 255


@pytest.mark.parametrize(
    "data",
    [record(1, b"") * 1800, b"HP" * 15000, record(3, b"{}") * 1600, record(1, b"x", length=65536) * 1700],
    ids=["small", "magic", "events", "torn"],
)
def test_a_log_without_end(turned: Host, images: Images, data: bytes) -> None:
    """It is cut although the guest goes beyond its credit; reading it holds up nobody."""
    started(turned, images, "flood", *hostile("log", "forever", data))
    log = turned.data_dir / "containers" / turned.inspect("flood")["id"] / "container.log"
    with among_others(turned, "flood"):
        wait_for(lambda: log.stat().st_size > 8 * LOG_MAX_BYTES, "the log is flooded")
        follower = subprocess.Popen(
            [turned.hyper_program, "logs", "-f", "flood"],
            env={**os.environ, **turned.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        neighbour_s(turned, 3)
        told = turned.hyper("logs", "-n", "3", "flood", timeout_s=60).stderr.splitlines()
        assert all(line.startswith("hyper: ") and "cut away" in line for line in told), told
        held = [log.stat().st_blocks * 512 for _ in range(20) if not time.sleep(0.05)]  # over a second of the flood
        assert max(held) < LOG_FLOOD_BYTES
        follower.terminate()
        follower.wait()


# --- files, as a hostile guest has them


def archive(*entries: tarfile.TarInfo, data: bytes = b"planted", pax: dict[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
        for entry in entries:
            entry.size = len(data) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **members: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o6777
    for member, value in members.items():
        setattr(made, member, value)
    return made


def archives(outside: Path) -> dict[str, bytes]:
    link, hard, device = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
    return {
        "another-name": archive(entry(".bashrc")),
        "up": archive(entry("../planted"), entry("asked/../../planted")),
        "absolute": archive(entry(str(outside / "planted"))),
        "through-a-link": archive(entry("asked", link, str(outside)), entry("asked/planted")),
        "link-then-directory": archive(entry("asked", link, str(outside)), entry("asked", tarfile.DIRTYPE)),
        "hard-link": archive(entry("asked/x", hard, str(outside / "secret")), entry("asked/x")),
        "hard-link-up": archive(entry("asked", hard, "../outside/secret")),
        "device": archive(entry("asked", device, devmajor=1, devminor=3)),
        "nul": archive(entry("asked", pax_headers={"path": "asked\0planted"})),
        "time": archive(entry("asked", pax_headers={"mtime": "1e400"})),
        "owner": archive(entry("asked", uid=2**40)),
        "garbage": os.urandom(5000),
        "nothing": b"",
    }


def test_what_is_copied_out_stays_where_it_was_to_go(turned: Host, images: Images, tmp_path: Path) -> None:
    def reply(data: bytes) -> bytes:
        pieces = [frame(DATA, data[at : at + 30000], 1) for at in range(0, len(data), 30000)]
        return b"".join(pieces) + frame(EOF, stream=1) + frame(EXIT, b'{"exit_code": 0, "signal": null}')

    def own(name: str) -> Path:
        return tmp_path / name / "outside"

    cases = {name: archives(own(name))[name] for name in archives(tmp_path)}
    options = {name: hostile("archive", "once", reply(data)) for name, data in cases.items()}
    names = all_started(turned, images, options)

    def copy(name: str) -> None:
        outside, target = own(name), tmp_path / name / "target"
        outside.mkdir(parents=True)
        (outside / "secret").write_text("secret")
        for into in (True, False):
            target.mkdir()
            place = target if into else target / "named"
            one_line(turned.hyper("cp", f"{name}:/asked", str(place), check=False))
            found = {str(path.relative_to(target)).split("/")[0] for path in target.rglob("*")}
            assert found <= {"asked" if into else "named"}, name
            for path in target.rglob("*"):
                assert path.is_symlink() or path.is_dir() or path.is_file()
                assert not path.lstat().st_mode & 0o6000
            subprocess.run(["rm", "-rf", "--", str(target)], check=True)
        assert {path.name for path in outside.iterdir()} == {"secret"}, name
        assert (outside / "secret").read_text() == "secret", name
        assert (outside / "secret").stat().st_nlink == 1, name
        assert {path.name for path in outside.parent.iterdir()} == {"outside"}, name
        one_line(turned.hyper("diff", name, check=False))
        one_line(turned.hyper("commit", name, check=False))

    with among_others(turned, *names):
        all_at_once(*[lambda name=name: copy(name) for name in names])
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_more_changes_than_anybody_reads(turned: Host, images: Images) -> None:
    """Two bytes for a change, without end: a list of them would take a hundred times as much."""
    changes = frame(DATA, b"A\0" * 13000, 1)
    started(turned, images, "changed", *hostile("archive", "forever", changes))
    with among_others(turned, "changed"):
        done = turned.hyper("diff", "changed", check=False, timeout_s=60)
        assert done.returncode == 125
        one_line(done)


def test_a_process_list_moves_no_cursor(turned: Host, images: Images) -> None:
    stat = "1 (\x1b[2J) S 0 1 1 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 5 0 0"
    files = {
        "/sys/fs/cgroup/container/cgroup.procs": "1\n\u00b2\n",
        "/proc/1/stat": stat,
        "/proc/1/status": "Uid:\t\x1b]0;x\x07\n",
        "/proc/1/cmdline": "evil\x1b[31m\nroot 1 0 0 fake",
    }
    answer = {"return": {"uptime_ns": 1, "files": [{"path": path, "data": data} for path, data in files.items()]}}
    started(turned, images, "shown", *hostile("control", "once", json.dumps(answer).encode() + b"\n"))
    with among_others(turned, "shown"):
        done = turned.hyper("top", "shown")
        heading, row = done.stdout.splitlines()
        assert heading.startswith("UID")
        assert row.isprintable()
        assert "evil?[31m?root" in row
