"""Sessions in a running container: streams with credits, terminals, users, closing and connecting again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
from typing import TYPE_CHECKING

import pytest

from runtime.vm.streams import Exit, Output, Streams
from tests.contract import agent_vm
from tests.contract.agent_vm import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def vm() -> Iterator[agent_vm.GuestVm]:
    with agent_vm.GuestVm() as guest:
        limits = {"memory_max": 20 << 20, "memory_swap_max": 0, "pids_max": 80, "cpu_quota_us": 90000}
        guest.start("sh", "-c", "while :; do sleep 1000; done", env=["MAIN=1", "A=main"], cgroup=limits)
        yield guest


def test_a_mebibyte_through_cat_comes_back_byte_for_byte(vm: agent_vm.GuestVm) -> None:
    data = os.urandom(1 << 20)
    session = vm.exec("cat", stdin=True)
    vm.streams.write(session, data)
    vm.streams.send(session, agent_vm.EOF)
    done = vm.streams.finish(session)
    assert done.out == {1: data, 2: b""}
    assert done.ended == {1, 2}
    assert done.exit == {"exit_code": 0, "signal": None}


def test_streams_are_apart_and_the_exit_comes_last(vm: agent_vm.GuestVm) -> None:
    assert vm.run("sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_a_signal_is_told(vm: agent_vm.GuestVm) -> None:
    done = vm.streams.finish(vm.exec("sh", "-c", "kill -9 $$"))
    assert done.exit == {"exit_code": 137, "signal": 9}


def test_environment_and_directory(vm: agent_vm.GuestVm) -> None:
    code, out, _ = vm.run("sh", "-c", "pwd; env", env=["A=session", "B=2"], cwd="/tmp")
    lines = out.decode().splitlines()
    assert code == 0
    assert lines[0] == "/tmp"
    assert {"MAIN=1", "A=session", "B=2", "HOME=/root"} <= set(lines)
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in lines)
    assert not any(line.startswith("TERM=") for line in lines)
    _, out, _ = vm.run("sh", "-c", "env", env=["MAIN", "NONE", "B=2", "B", "C=3"])
    left = {line.partition("=")[0] for line in out.decode().splitlines()}
    assert {"MAIN", "NONE", "B"} & left == set(), "a name alone takes away"
    assert {"A", "C", "PATH", "HOME"} <= left
    code, out, _ = vm.run("sh", "-c", "echo $MAIN")
    assert (code, out) == (0, b"1\n"), "for that session"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, {0})),
        ("alice", (1000, 1001, {29, 1001})),
        ("1000", (1000, 1001, {29, 1001})),
        ("alice:audio", (1000, 29, {29})),
        ("1000:44", (1000, 44, {44})),
        ("4711", (4711, 0, {0})),
        ("4711:4712", (4711, 4712, {4712})),
    ],
)
def test_users_are_those_of_the_image(vm: agent_vm.GuestVm, user: str, expected: tuple[int, int, set[int]]) -> None:
    script = "id -u; id -g; id -G; grep ^Groups: /proc/self/status; echo to-stdout > /dev/stdout"
    code, out, err = vm.run("sh", "-c", script, user=user)
    uid, gid, groups, supplementary, written = out.decode().splitlines()
    assert (code, err) == (0, b"")
    assert (int(uid), int(gid), set(map(int, groups.split()))) == expected
    assert sorted(map(int, supplementary.split()[1:])) == sorted(expected[2]), "the primary group too, and each once"
    assert written == "to-stdout"  # the pipe belongs to the user


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"args": ["nope"]}, "NotFound"),
        ({"args": ["not-executable"]}, "NotExecutable"),
        ({"args": ["true"], "user": "nobody"}, "NotFound"),
        ({"args": ["true"], "cwd": "/nowhere"}, "NotFound"),
        ({"args": ["true"], "session": 0}, "InvalidArgument"),
        ({"args": ["true"], "env": ["=1"]}, "InvalidArgument"),
        ({"args": ["true"], "env": [""]}, "InvalidArgument"),
    ],
)
def test_a_session_that_cannot_start_says_why(vm: agent_vm.GuestVm, arguments: dict[str, object], kind: str) -> None:
    assert vm.control.refusal("hyper-exec", **{"session": 9000, "env": [], **arguments})[0] == kind


def test_a_terminal_has_a_size_that_changes(vm: agent_vm.GuestVm) -> None:
    script = "tty; stty size; echo $TERM; read line; stty size; echo got $line"
    session = vm.exec("sh", "-c", script, tty=True, stdin=True, rows=33, cols=101)
    state = vm.streams.sessions.setdefault(session, agent_vm.Session())
    while state.out[1].count(b"\n") < 3:
        vm.streams.step()
    vm.control.call("hyper-resize", session=session, rows=10, cols=20)
    vm.streams.write(session, b"hello\n")
    done = vm.streams.finish(session)
    assert done.out[1].replace(b"\r", b"") == b"/dev/pts/0\n33 101\nxterm\nhello\n10 20\ngot hello\n"
    assert done.exit == {"exit_code": 0, "signal": None}


def test_the_end_of_input_reaches_a_terminal(vm: agent_vm.GuestVm) -> None:
    session = vm.exec("cat", tty=True, stdin=True)
    vm.streams.write(session, b"line\n")
    vm.streams.send(session, agent_vm.EOF)
    assert vm.streams.finish(session).exit == {"exit_code": 0, "signal": None}


def test_a_slow_reader_holds_up_its_own_session_alone(vm: agent_vm.GuestVm) -> None:
    vm.streams.stingy = True
    try:
        slow = vm.exec("sh", "-c", "head -c 400000 /dev/zero; echo end >&2")
        while len(vm.streams.sessions.setdefault(slow, agent_vm.Session()).out[1]) < agent_vm.CREDIT_BYTES:
            vm.streams.step()
        assert vm.run("echo", "still here") == (0, b"still here\n", b"")
        state = vm.streams.sessions[slow]
        assert (len(state.out[1]), state.out[2], state.exit) == (agent_vm.CREDIT_BYTES, b"", None)
    finally:
        vm.streams.stingy = False
    vm.streams.send(slow, agent_vm.CREDIT, 1, (1 << 20).to_bytes(4, "little"))
    done = vm.streams.finish(slow)
    assert (len(done.out[1]), done.out[2]) == (400000, b"end\n")


def test_data_beyond_the_credit_closes_the_session(vm: agent_vm.GuestVm) -> None:
    session = vm.exec("sleep", "1000", stdin=True)
    for _ in range(30):
        vm.streams.send(session, agent_vm.DATA, 0, b"x" * agent_vm.FRAME_BYTES)
    assert vm.run("echo", "alive") == (0, b"alive\n", b"")
    assert vm.run("killall", "sleep")[0] == 0  # the container's own is started again by its loop
    assert vm.run("true")[0] == 0
    assert vm.streams.sessions.get(session, agent_vm.Session()).exit is None


def test_close_throws_output_away_and_ends_input(vm: agent_vm.GuestVm) -> None:
    session = vm.exec("sh", "-c", "head -c 1000000 /dev/zero; cat; echo done > /tmp/closed", stdin=True)
    vm.streams.send(session, agent_vm.CLOSE)
    wait_for(lambda: vm.run("cat", "/tmp/closed")[1] == b"done\n", "the process to go on to its end")
    assert vm.streams.sessions.get(session, agent_vm.Session()).exit is None


def test_a_session_that_was_given_up_before_it_was_there_starts_detached(vm: agent_vm.GuestVm) -> None:
    vm.streams.send(9500, agent_vm.CLOSE)
    assert vm.run("true")[0] == 0  # the frame was taken before
    vm.streams.stingy = True
    try:
        script = "head -c 1000000 /dev/zero; cat; echo done > /tmp/given-up"
        vm.control.call("hyper-exec", session=9500, args=["sh", "-c", script], env=[], stdin=True)
        wait_for(lambda: vm.run("cat", "/tmp/given-up")[1] == b"done\n", "the process to go on to its end")
    finally:
        vm.streams.stingy = False
    assert 9500 not in vm.streams.sessions


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_session_that_is_given_up_while_it_begins_starts_detached(how: str) -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("hunt", "19", "18", stdin=True)
        wait_for(lambda: vm.output() == b"ready\n", "the hunter")
        arguments = {"session": 7, "args": ["yes"], "env": ["PATH=" + "/x:" * 4_000 + "/bin"]}
        vm.control.send(json.dumps({"execute": "hyper-exec", "arguments": arguments}).encode() + b"\n")
        wait_for(lambda: b"caught" in vm.output(), "it is stopped on its way")
        if how == "close":
            vm.streams.send(7, agent_vm.CLOSE)
        else:
            vm.streams.reset()
        vm.streams.write(0, b"x")  # it goes on
        assert "return" in vm.control.answer()
        vm.streams.write(0, b"x")
        assert vm.run("true")[0] == 0
        assert 7 not in vm.streams.sessions


def test_each_session_has_an_end_whenever_it_is_killed() -> None:
    with agent_vm.GuestVm(extra=["-smp", "2"]) as vm:
        vm.start("hunt", "9")
        wait_for(lambda: vm.output() == b"ready\n", "the hunter")
        ends = []
        for session in range(1, 41):
            answer = vm.control.ask("hyper-exec", session=session, args=["sleep", "1000"], env=[])
            if "return" in answer:
                ends.append(vm.streams.finish(session).exit)
            else:
                assert "ended before" in answer["error"]["desc"], answer
        assert all(end == {"exit_code": 137, "signal": 9} for end in ends), ends


def test_a_session_that_does_not_begin_costs_the_control_port_no_more_than_its_time() -> None:
    with agent_vm.GuestVm() as vm:
        vm.start("hunt", "19")
        wait_for(lambda: vm.output() == b"ready\n", "the hunter")
        path = "PATH=" + "/x:" * 30_000 + "/bin"
        refused = vm.control.refusal("hyper-exec", session=1, args=["true"], env=[path])
        assert refused == ("GenericError", "the process could not be begun within 10 s")
        assert vm.control.call("hyper-signal", signal=9) == {}
        assert vm.wait() == 0


def test_a_new_connection_starts_clean(vm: agent_vm.GuestVm) -> None:
    old = vm.exec("sh", "-c", "yes | head -c 5000000; echo done > /tmp/reset")
    vm.streams.close()
    vm.streams = agent_vm.Streams(vm.place / "streams.sock")
    assert vm.run("echo", "hello") == (0, b"hello\n", b"")
    wait_for(lambda: vm.run("cat", "/tmp/reset")[1] == b"done\n", "the old process to go on to its end")
    assert old not in vm.streams.sessions


def test_a_nonsense_frame_is_healed_by_connecting_again(vm: agent_vm.GuestVm) -> None:
    vm.streams.send(0xFFFFFFFF, 0xFF, 0xFF, b"\xff" * 100)
    vm.streams._socket.sendall(b"\xff" * 5000)
    vm.streams.close()
    for _ in range(3):
        vm.streams = agent_vm.Streams(vm.place / "streams.sock")
        vm.streams.close()
    vm.streams = agent_vm.Streams(vm.place / "streams.sock")
    assert vm.run("echo", "hello") == (0, b"hello\n", b"")


@pytest.mark.parametrize("received", [0, 5, 11, 12, 100, 32768 + 11])
def test_half_a_frame_that_a_dead_daemon_left_costs_no_connection(vm: agent_vm.GuestVm, received: int) -> None:
    frame = struct.pack("<IBBHI", 4711, agent_vm.DATA, 0, 0, agent_vm.FRAME_BYTES) + b"\0" * agent_vm.FRAME_BYTES
    vm.streams._socket.sendall(frame[:received])
    vm.streams.close()

    async def come_back() -> None:
        ours = Streams(vm.place / "streams.sock")
        for session in (50_000 + received, 100_000 + received):
            await ours.open(session)
            vm.control.call("hyper-exec", session=session, args=["echo", "hello"], env=[])
            found = [event async for event in ours.output(session)]
            assert b"".join(one.data for one in found[:-1] if isinstance(one, Output)) == b"hello\n"
            assert found[-1] == Exit(0, None)
        ours.close()

    # At once: most often the guest has not seen that anybody went.
    try:
        asyncio.run(come_back())
    finally:
        vm.streams = agent_vm.Streams(vm.place / "streams.sock")


def test_a_reset_is_found_after_half_a_frame_on_the_same_connection(vm: agent_vm.GuestVm) -> None:
    for missing in (1, 100, 32768):
        vm.streams.send(0, agent_vm.RESET, 0, b"\0" * 8)
        vm.streams._socket.sendall(struct.pack("<IBBHI", 4711, agent_vm.DATA, 0, 0, 32768) + b"\0" * (32768 - missing))
        vm.streams._socket.sendall(b"\xff" * 32780)
        vm.streams.reset()
        assert vm.run("echo", "hello") == (0, b"hello\n", b"")


def test_sessions_have_a_limit(vm: agent_vm.GuestVm) -> None:
    opened = []
    try:
        opened.extend(vm.exec("sleep", "500") for _ in range(64))
        kind, text = vm.control.refusal("hyper-exec", session=8000, args=["true"], env=[])
        assert (kind, "limit" in text) == ("BadState", True)
        assert vm.control.refusal("hyper-exec", session=opened[0], args=["true"], env=[])[0] == "BadState"
    finally:
        for session in opened:
            vm.streams.send(session, agent_vm.CLOSE)
    # CLOSE and the next request travel on different ports.

    def started() -> bool:
        return "return" in vm.control.ask("hyper-exec", session=8001, args=["true"], env=[])

    wait_for(started, "a free session")
    vm.streams.finish(8001)
    assert vm.run("killall", "sleep")[0] == 0


def test_the_container_is_boxed_in(vm: agent_vm.GuestVm) -> None:
    for command in (
        "mknod /tmp/vport c 245 1",
        "mount -t tmpfs none /mnt",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "mkdir /sys/fs/cgroup/mine",
        "mount -o remount,rw /sys",
        "hostname other",
        "ls /dev/vda /dev/vport0p1 /run/hyper /modules",
    ):
        code, _, err = vm.run("sh", "-c", command)
        assert code != 0, (command, err)
    assert vm.run("cat", "/proc/self/cgroup")[1] == b"0::/\n"
    assert vm.run("cat", "/sys/fs/cgroup/memory.max")[1] == b"%d\n" % (20 << 20)
    assert vm.run("cat", "/sys/fs/cgroup/pids.max")[1] == b"80\n"
    assert vm.run("cat", "/sys/fs/cgroup/cpu.max")[1] == b"90000 100000\n"
    nested = dict(line.split(": ") for line in vm.run("nest")[1].decode().splitlines())
    if nested != {"namespaces": "Invalid argument"}:  # a kernel may have no user namespaces
        refused = dict.fromkeys(("proc", "sysfs", "memory.max"), "Operation not permitted")
        assert nested == {**refused, "tmpfs": "works", "cgroup2": "works"}
    bounding = re.search(rb"CapBnd:\s+(\w+)", vm.run("cat", "/proc/self/status")[1])
    assert bounding
    assert int(bounding[1], 16) & (1 << 27 | 1 << 21 | 1 << 16 | 1 << 12) == 0  # MKNOD SYS_ADMIN SYS_MODULE NET_ADMIN


def test_devices_work(vm: agent_vm.GuestVm) -> None:
    script = (
        "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c && ls /dev/pts /dev/shm"
    )
    assert vm.run("sh", "-c", script) == (0, b"4\n4\n/dev/pts:\nptmx\n\n/dev/shm:\n", b"")
    assert vm.run("sh", "-c", "echo x > /dev/full")[0] != 0


def test_an_oom_kill_is_counted_and_written_down(vm: agent_vm.GuestVm) -> None:
    before = vm.stats.call("hyper-status")["oom_kills"]
    done = vm.streams.finish(vm.exec("sh", "-c", "tail /dev/zero"))
    assert done.exit is not None
    assert done.exit["exit_code"] == 137
    status = vm.stats.call("hyper-status")
    assert status["oom_kills"] == before + 1
    assert (status["state"], status["oom_killed"]) == ("running", False)
    told = ("oom", before + 1)
    wait_for(lambda: told in [(one["event"], one.get("kills")) for one in vm.events()], "the event in the log")


def test_disk_use_is_seen_from_outside(vm: agent_vm.GuestVm) -> None:
    def free() -> int:
        answer = vm.stats.call("hyper-read", statvfs=["/", "/dev/shm", "/nowhere", "/../../run"])["statvfs"]
        assert answer[2] == {"path": "/nowhere", "error": "ENOENT"}
        assert answer[3]["error"] == "ENOENT"  # the container's root is the end of the way up
        assert answer[1]["blocks"] * answer[1]["frsize"] == 64 << 20
        return int(answer[0]["bfree"]) * int(answer[0]["frsize"])

    before = free()
    assert vm.run("dd", "if=/dev/zero", "of=/opt/file", "bs=1M", "count=8")[0] == 0
    assert vm.run("sync")[0] == 0
    assert 8 << 20 <= before - free() < 9 << 20


def test_the_stats_port_answers_while_a_session_floods(vm: agent_vm.GuestVm) -> None:
    vm.streams.stingy = True
    session = vm.exec("yes")
    for _ in range(50):
        assert vm.stats.call("guest-ping") == {}
        assert vm.control.call("guest-ping") == {}
    vm.streams.stingy = False
    vm.streams.send(session, agent_vm.CLOSE)
    assert vm.run("killall", "yes")[0] == 0
