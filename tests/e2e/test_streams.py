"""Terminals, attachment, logs and their rotation, back-pressure: byte for byte, through daemons that die."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.client import Client
from tests.host import Host, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

MIB = 1 << 20
GROWTH_BYTES = 24 * MIB  # of hyperd's memory, however much goes through it


class Terminal:
    """A `hyper` in a real pseudo-terminal."""

    def __init__(self, host: Host, *arguments: str, rows: int = 31, cols: int = 97, term: str = "vt220") -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            env = {**os.environ, **host.env, "TERM": term}
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            os.execve(host.hyper_program, [host.hyper_program, *arguments], env)  # noqa: S606 -- the test's own program
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def expect(self, pattern: str, timeout_s: float = 40.0) -> re.Match[str]:
        """The first match; all up to its end is forgotten."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.seen)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.seen!r}"
            self._read(left)
        self.seen = self.seen[found.end() :]
        return found

    def end(self) -> int:
        """Read on until it ends; its exit code."""
        while self._read(40.0):
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], timeout_s)
        try:
            data = os.read(self.descriptor, 65536) if ready else b""
        except OSError:  # EIO: the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def running(host: Host, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A `hyper` in the background; it is ended with the block."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **more}
    with subprocess.Popen([host.hyper_program, *arguments], env={**os.environ, **host.env}, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def streams(host: Host) -> dict[str, int]:
    """What hyperd has open."""
    found: dict[str, int] = Client(str(host.state_dir / "hyperd.sock")).call("GET", "/v1/streams")
    return {**found, "descriptors": psutil.Process(host.hyperd.pid).num_fds()}


def no_more(now: dict[str, int], before: dict[str, int]) -> bool:
    """Whether no more is open; two descriptors are within the daemon's own coming and going."""
    slack = {"descriptors": 2, "tasks": 1}
    return all(now[name] <= before[name] + slack.get(name, 0) for name in before)


def memory(host: Host) -> int:
    rss: int = psutil.Process(host.hyperd.pid).memory_info().rss
    return rss


@pytest.fixture(scope="module")
def small(images: Images) -> Iterator[Host]:
    """A host that keeps only a little of each log."""
    with running_host(images.busybox, log_max_bytes=MIB) as one:
        yield one


def test_a_terminal_from_start_to_exit_code(host: Host, images: Images) -> None:
    terminal = Terminal(host, "run", "-it", "--rm", images.busybox, "sh", "-c", "stty size; echo $TERM; exec sh")
    terminal.expect("31 97\r\nvt220\r\n")
    terminal.expect(r"/ # ")
    terminal.resize(12, 34)
    terminal.type("until stty size | grep '12 34'; do usleep 10000; done; echo u''p; cat\r")
    terminal.expect("\n12 34\r\nup\r\n")
    terminal.type("read\r")
    terminal.expect("read\r\nread\r\n")  # by the terminal and by cat, which therefore is in the foreground
    terminal.type("\x03")
    terminal.expect(r"\^C")
    terminal.expect("/ # ")
    terminal.type("exit 7\r")
    assert terminal.end() == 7
    assert host.hyper("ps", "-a", "-q").stdout == ""


def test_detach_and_attach(host: Host, images: Images) -> None:
    terminal = Terminal(host, "run", "-it", "--name", "kept", images.busybox, "sh")
    terminal.expect("/ # ")
    terminal.type("\x10x\x10\x11")  # Ctrl-P alone is passed on
    assert terminal.end() == 0
    assert host.inspect("kept")["state"] == "running"
    terminal = Terminal(host, "attach", "--detach-keys", "ctrl-a,d", "kept", rows=20, cols=50)
    terminal.expect("/ # x")  # drawn again, as its size has changed
    terminal.type("\r")
    terminal.expect("not found")
    second = Terminal(host, "attach", "kept", rows=20, cols=50)
    second.expect("/ # ")
    second.type("stty size; echo to-bo''th\r")
    for one in (terminal, second):
        one.expect("20 50\r\nto-both\r\n")
    terminal.type("\x01d")
    assert terminal.end() == 0
    second.type("exit 3\r")
    assert second.end() == 3
    refused = host.hyper("attach", "kept", check=False)
    assert (refused.returncode, "hyper start -ai kept" in refused.stderr) == (125, True)


def test_one_that_its_client_has_left_is_removed_all_the_same(host: Host, images: Images) -> None:
    script = "echo here; while [ ! -e /end ]; do sleep 0.1; done"
    detached = Terminal(host, "run", "-it", "--rm", "--name", "detached", images.busybox, "sh", "-c", script)
    detached.expect("here")
    detached.type("\x10\x11")
    assert detached.end() == 0
    command = [host.hyper_program, "run", "--rm", "--name", "orphan", images.busybox, "sh", "-c", script]
    with subprocess.Popen(command, env={**os.environ, **host.env}, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "here\n"
        client.kill()
    assert host.hyper("ps", "-a", "--format", "{{.Names}} {{.State}}").stdout == "orphan running\ndetached running\n"
    for name in ("detached", "orphan"):
        host.hyper("exec", name, "sh", "-c", "> /end")
    wait_for(lambda: host.hyper("ps", "-a", "-q").stdout == "", "both are removed", 30)


def test_a_terminal_of_exec(host: Host, images: Images) -> None:
    host.run("--name", "box", images.busybox, "sleep", "600")
    terminal = Terminal(host, "exec", "-it", "box", "sh", "-c", "stty size; echo $TERM; read line; stty size; exit 5")
    terminal.expect("31 97\r\nvt220\r\n")
    terminal.resize(10, 20)
    wait_for(lambda: "10 20" in host.hyper("exec", "box", "sh", "-c", "stty size < /dev/pts/0").stdout, "the size")
    terminal.type("x\r")
    terminal.expect("10 20\r\n")
    assert terminal.end() == 5
    terminal = Terminal(host, "exec", "-it", "box", "sh", "-c", "echo ready; sleep 300")
    terminal.expect("ready")
    terminal.type("\x10\x11")
    assert terminal.end() == 0
    assert "sleep 300" in host.hyper("exec", "box", "ps").stdout
    host.hyper("exec", "-d", "box", "sh", "-c", "head -c 1000000 /dev/zero; touch /tmp/done")
    wait_for(lambda: host.hyper("exec", "box", "ls", "/tmp/done", check=False).returncode == 0, "it goes on")
    assert "terminal" in host.hyper("exec", "-it", "box", "sh", check=False).stderr


def test_chosen_streams_and_signals(host: Host, images: Images) -> None:
    both = ("sh", "-c", "echo out; echo err >&2")
    done = host.hyper("run", "--rm", "-a", "stderr", images.busybox, *both)
    assert (done.stdout, done.stderr) == ("", "err\n")
    done = host.hyper("run", "-i", "-a", "stdin", "--name", "taker", images.busybox, "cat", stdin=b"sent\n")
    assert done.stdout.strip() == host.inspect("taker")["id"]
    assert host.hyper("logs", "taker").stdout == "sent\n"
    script = "trap 'echo got; exit 4' USR1; echo ready; while :; do usleep 10000; done"
    with running(host, "run", images.busybox, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert (process.stdout.read(), process.wait()) == (b"got\n", 4)
    with running(host, "run", "--sig-proxy=false", "--name", "left", images.busybox, "sh", "-c", script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert host.inspect("left")["state"] == "running"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--detach-keys", "ctrl-pp", "x"], "--detach-keys 'ctrl-pp': 'ctrl-pp' is no key"),
        (["run", "-d", "-a", "stdout", "x"], "-d and -a exclude each other"),
        (["run", "-a", "stdnone", "x"], "--attach 'stdnone': write stdin, stdout or stderr"),
        (["run", "--sig-proxy=perhaps", "x"], "--sig-proxy 'perhaps': write true or false"),
        (["run", "-it", "x"], "-t with -i needs a terminal"),
        (["logs", "--since", "soon", "x"], "--since 'soon': write seconds since 1970"),
        (["attach", "nobody"], "there is no container 'nobody'"),
    ],
)
def test_wrong_values_are_named(host: Host, arguments: list[str], expected: str) -> None:
    done = host.hyper(*arguments, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert expected in done.stderr


def test_logs_by_time_and_lines(host: Host, images: Images) -> None:
    host.run("--name", "talks", images.busybox, "sh", "-c", "for i in 1 2 3 4; do echo $i; usleep 300000; done")
    assert host.hyper("logs", "-f", "talks").stdout == "1\n2\n3\n4\n"
    stamped = [line.split(" ") for line in host.hyper("logs", "-t", "talks").stdout.splitlines()]
    moments = {number: moment for moment, number in stamped}
    assert host.hyper("logs", "--since", moments["2"], "--until", moments["3"], "talks").stdout == "2\n3\n"
    assert host.hyper("logs", "--since", "10m", "--tail", "2", "talks").stdout == "3\n4\n"
    assert host.hyper("logs", "--since", moments["4"], "-n", "9", "talks").stdout == "4\n"
    assert host.hyper("logs", "--tail", "0", "talks").stdout == ""
    assert host.hyper("logs", "--until", "10m", "talks").stdout == ""


def test_nothing_is_lost_or_doubled_while_hyperd_dies_and_logs_are_cut(small: Host, images: Images) -> None:
    count = 60_000  # lines, 5 MB, in a log of 1 MiB
    script = f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line-$i{'-' * 70}; done; exit 9"
    with running(small, "run", "--name", "counts", images.busybox, "sh", "-c", script) as process:
        assert process.stdout is not None
        read = b""
        for kills in range(1, 4):
            while read.count(b"\n") < kills * count // 5:
                read += os.read(process.stdout.fileno(), 65536)
            small.hyperd.kill()
            small.start()
        read += process.stdout.read()
        code = process.wait(60)
    assert read == b"".join(b"line-%d%s\n" % (number, b"-" * 70) for number in range(1, count + 1))
    assert code == 9
    log = small.data_dir / "containers" / small.inspect("counts")["id"] / "container.log"
    assert log.stat().st_size > 3 * MIB
    wait_for(lambda: log.stat().st_blocks * 512 < 2 * MIB, "it is cut")
    kept = small.hyper("logs", "counts").stdout
    assert len(kept) > MIB // 4
    assert read.decode().endswith(kept)
    assert small.hyper("logs", "-n", "3", "counts").stdout.split() == [f"line-{count - n}{'-' * 70}" for n in (2, 1, 0)]


def test_a_flood_waits_while_hyperd_is_away(small: Host, images: Images) -> None:
    identity = small.run("--name", "floods", images.busybox, "cat", "/dev/zero")
    log = small.data_dir / "containers" / identity / "container.log"
    wait_for(lambda: log.stat().st_size > 8 * MIB, "it floods", 60)
    assert small.hyper("logs", "floods").stdout.count("\0") > MIB // 2
    wait_for(lambda: log.stat().st_blocks * 512 < 4 * MIB, "its front is cut")  # that runs beside the flood
    small.hyperd.kill()

    def still() -> bool:
        before = log.stat().st_size
        time.sleep(0.5)  # how long it has to stand still
        return log.stat().st_size == before

    wait_for(still, "it waits")
    assert log.stat().st_blocks * 512 < 4 * MIB
    waits_at = log.stat().st_size
    small.start()
    wait_for(lambda: log.stat().st_size > waits_at + 4 * MIB, "it goes on", 60)
    small.hyper("rm", "-f", "floods")


def test_a_slow_reader_holds_up_its_container_and_fills_no_memory(small: Host, images: Images) -> None:
    size = 10 * MIB
    script = f"head -c {size} /dev/urandom | tee /tmp/sum | cat; sha256sum /tmp/sum >&2"
    with running(small, "run", "--rm", "--name", "slow", images.busybox, "sh", "-c", script, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        digest = hashlib.sha256(process.stdout.read(1))
        before, waits = memory(small), None
        log = small.data_dir / "containers" / small.inspect("slow")["id"] / "container.log"
        while waits is None or waits != log.stat().st_size:
            waits = log.stat().st_size
            time.sleep(0.7)  # how long it has to stand still
        assert waits < 4 * MIB
        while piece := process.stdout.read(MIB):
            digest.update(piece)
        assert process.stderr.read().split()[0] == digest.hexdigest().encode()
        assert memory(small) - before < GROWTH_BYTES


def test_exec_and_logs_are_exact_and_fill_no_memory(host: Host, images: Images) -> None:
    size = 20 * MIB
    script = f"head -c {size} /dev/urandom > /tmp/f; cat /tmp/f; sha256sum /tmp/f >&2; sleep 600"
    host.run("--name", "big", images.busybox, "sh", "-c", script)
    expected = wait_for(lambda: host.hyper("logs", "-n", "1", "big").stderr, "all is written", 60).split()[0]
    before = memory(host)
    for arguments in (("exec", "big", "cat", "/tmp/f"), ("logs", "big")):
        with running(host, *arguments, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            digest = hashlib.sha256()
            while piece := process.stdout.read(MIB):
                digest.update(piece)
        assert digest.hexdigest() == expected, arguments
    data = os.urandom(4 * MIB)
    done = host.hyper("exec", "-i", "big", "sha256sum", stdin=data)
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert memory(host) - before < GROWTH_BYTES


def test_clients_that_die_leave_nothing(host: Host, images: Images) -> None:
    host.run("--name", "here", images.busybox, "yes")
    host.run("-i", "--name", "deaf", images.busybox, "sleep", "600")
    # What is opened once and kept: the connection to each guest, the watch for files.
    host.hyper("exec", "here", "true")
    host.hyper("exec", "deaf", "true")
    with running(host, "logs", "-f", "here") as process:
        assert process.stdout is not None
        process.stdout.read(1)
    before = wait_for(lambda: (found := streams(host))["sessions"] == found["log_readers"] == 0 and found, "quiet")
    with open("/dev/zero", "rb") as zero:  # noqa: PTH123 -- a device
        clients = [
            running(host, "logs", "-f", "here"),
            running(host, "attach", "--no-stdin", "here"),
            running(host, "exec", "here", "cat", "/dev/zero"),
            running(host, "exec", "-i", "here", "sh", "-c", "echo; sleep 500", stdin=zero),
            running(host, "attach", "deaf", stdin=zero),
        ]
        for client in clients:
            with client as process:
                if "deaf" in process.args:  # type: ignore[operator]  # a list
                    wait_for(lambda: streams(host)["tasks"] > before["tasks"] + 3, "it reads and writes")
                else:
                    assert process.stdout is not None
                    assert process.stdout.read(1)
            wait_for(lambda: no_more(streams(host), before), f"no more is open than before ({before})")
