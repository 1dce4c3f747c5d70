"""The JSON ports of a guest in which no container runs: dialect, hostile lines, reading statistics."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.contract import agent_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

CONTROL_ONLY = {
    "guest-set-time",
    "guest-shutdown",
    "hyper-identity",
    "hyper-layer",
    "hyper-start",
    "hyper-signal",
    "hyper-exec",
    "hyper-resize",
    "hyper-log-credit",
    "hyper-archive",
    "hyper-freeze",
    "hyper-thaw",
}
BOTH = {
    "guest-sync",
    "guest-sync-delimited",
    "guest-ping",
    "guest-info",
    "guest-get-time",
    "hyper-status",
    "hyper-read",
    "hyper-fetch",
    "hyper-fetched",
}


@pytest.fixture(scope="module")
def vm() -> Iterator[agent_vm.GuestVm]:
    with agent_vm.GuestVm() as guest:
        print(f"cold boot to the first answer: {guest.boot_s:.2f} s")
        yield guest


@pytest.fixture(params=["control", "stats"])
def port(vm: agent_vm.GuestVm, request: pytest.FixtureRequest) -> agent_vm.JsonPort:
    found: agent_vm.JsonPort = getattr(vm, request.param)
    return found


def test_both_ports_answer_the_dialect_of_the_qemu_guest_agent(port: agent_vm.JsonPort) -> None:
    assert port.call("guest-ping") == {}
    assert port.call("guest-sync", id=-7) == -7
    port.send(b'\xff{"execute": "guest-sync-delimited", "arguments": {"id": 4711}}\n')
    assert port.line() == b'\xff{"return": 4711}'
    assert abs(port.call("guest-get-time") / 1e9 - time.time()) < 120


def test_the_first_request_of_a_connection_is_answered() -> None:
    """It may reach the guest before the word that there is a connection: the more so where much is going on."""
    with agent_vm.GuestVm() as busy:
        busy.start("sh", "-c", "while :; do :; done & while :; do :; done")
        path = busy.control.path
        for number in range(60):
            busy.control.close()
            for _ in range(number % 5):  # the guest has seen the end, or has not
                busy.stats.call("guest-ping")
            busy.control = agent_vm.JsonPort(path)
            busy.control.send(b'\xff{"execute": "guest-sync-delimited", "arguments": {"id": %d}}\n' % number)
            assert busy.control.line().rpartition(b"\xff")[2] == b'{"return": %d}' % number


def test_each_port_lists_what_it_takes(vm: agent_vm.GuestVm) -> None:
    for port, expected in ((vm.control, BOTH | CONTROL_ONLY), (vm.stats, BOTH)):
        info = port.call("guest-info")
        assert {command["name"] for command in info["supported_commands"]} == expected
        assert all(command["enabled"] for command in info["supported_commands"])
        assert info["version"]


@pytest.mark.parametrize("name", sorted(CONTROL_ONLY))
def test_the_stats_port_refuses_control(vm: agent_vm.GuestVm, name: str) -> None:
    assert vm.stats.refusal(name)[0] == "CommandNotFound"


@pytest.mark.parametrize("id_", [1, "x", None, {"a": [1.5, True]}, "é\n"])
def test_an_id_comes_back(port: agent_vm.JsonPort, id_: object) -> None:
    port.send(json.dumps({"execute": "guest-ping", "id": id_}).encode() + b"\n")
    answer = port.answer()
    assert answer["return"] == {}
    if id_ == "é\n":
        assert answer["id"].encode("latin-1") == "é\n".encode()
    else:
        assert answer["id"] == id_


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"{",
        b"[]",
        b'{"execute": 1}',
        b'{"execute": "guest-ping"} x',
        b'{"execute": "guest-ping", "arguments": []}',
        b'{"execute": "guest-p\\u0000ing"}',
        b'{"execute": "\\ud800"}',
        b'{"execute": "\xc3("}',
        b'{"execute": "guest-sync", "arguments": {"id": "1"}}',
        b'{"execute": "guest-sync", "arguments": {"id": 99999999999999999999}}',
        b'{"execute": "guest-ping", "id": ' + b"[" * 33 + b"]" * 33 + b"}",
        b'{"execute": "guest-ping", "id": "' + b"x" * 2000 + b'"}',
        b"[" + b"1," * 100_000 + b"1]",
        b"[" * 500_000,
        b"\x00\x01\x02",
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_a_bad_line_is_refused_and_the_next_one_answered(port: agent_vm.JsonPort, line: bytes) -> None:
    port.send(line + b"\n")
    assert "error" in port.answer()
    assert port.call("guest-ping") == {}


def test_an_unknown_command_is_named(port: agent_vm.JsonPort) -> None:
    kind, text = port.refusal("guest-nope")
    assert kind == "CommandNotFound"
    assert "guest-nope" in text


def test_nesting_up_to_the_limit_is_taken(port: agent_vm.JsonPort) -> None:
    deep = "[" * 31 + "]" * 31  # the request itself is the first level
    port.send(f'{{"execute": "guest-ping", "id": {deep}}}\n'.encode())
    assert port.answer() == {"return": {}, "id": json.loads(deep)}


def test_a_line_that_is_too_long_is_refused_once(port: agent_vm.JsonPort) -> None:
    port.send(b'{"execute": "guest-ping", "id": "' + b"x" * (3 << 20) + b'"}\n')
    answer = port.answer()
    assert "longer than" in answer["error"]["desc"]
    assert port.call("guest-sync", id=5) == 5


def test_ff_throws_away_what_stood_before_it(port: agent_vm.JsonPort) -> None:
    port.send(b'{"execute": "guest-\xff{"execute": "guest-sync", "arguments": {"id": 6}}\n')
    assert port.answer() == {"return": 6}


def test_half_a_line_dies_with_its_connection(vm: agent_vm.GuestVm) -> None:
    vm.control.send(b'{"execute": "guest-ping", "id": 1')
    vm.control.close()
    vm.control = agent_vm.JsonPort(vm.place / "agent.sock")

    def fresh() -> bool:
        # QEMU tells the guest of the closing and of the opening; a first line may still meet the old half.
        return "return" in vm.control.ask("guest-ping")

    agent_vm.wait_for(fresh, "a clean answer")


def test_many_requests_at_once_are_answered_in_order(port: agent_vm.JsonPort) -> None:
    port.send(b"".join(b'{"execute": "guest-sync", "arguments": {"id": %d}}\n' % i for i in range(500)))
    assert [port.answer()["return"] for _ in range(500)] == list(range(500))


def test_random_bytes_leave_the_agent_alive(port: agent_vm.JsonPort) -> None:
    for _ in range(20):
        port.send(os.urandom(8192).replace(b"\n", b""))
    port.send(b'\n\xff{"execute": "guest-sync-delimited", "arguments": {"id": 99}}\n')
    while port.line() != b'\xff{"return": 99}':
        pass


def test_status_of_an_idle_guest(port: agent_vm.JsonPort) -> None:
    status = port.call("hyper-status")
    assert status["state"] == "idle"
    assert status["exit_code"] is None
    assert status["oom_killed"] is False
    assert 10**8 < status["boot_ns"] < 60 * 10**9


def test_files_are_read_in_one_call(port: agent_vm.JsonPort) -> None:
    paths = ["/proc/stat", "/proc/meminfo", "/proc/pressure/cpu", "/sys/fs/cgroup/container/memory.current", "/proc/no"]
    answer = port.call("hyper-read", files=paths, statvfs=["/"])
    files = {item["path"]: item for item in answer["files"]}
    assert list(files) == paths
    assert files["/proc/stat"]["data"].startswith("cpu  ")
    total_kb = int(files["/proc/meminfo"]["data"].split()[1])
    assert 64 * 1024 < total_kb < 128 * 1024
    assert files["/proc/pressure/cpu"]["data"].startswith("some avg10=")
    assert int(files["/sys/fs/cgroup/container/memory.current"]["data"]) >= 0
    assert files["/proc/no"] == {"path": "/proc/no", "error": "ENOENT"}
    assert answer["statvfs"] == [{"path": "/", "error": "ESRCH"}]
    assert 0 < answer["uptime_ns"] < 3600 * 10**9
    assert abs(answer["time_ns"] / 1e9 - time.time()) < 120


def test_bytes_come_back_as_they_are(port: agent_vm.JsonPort) -> None:
    data = port.call("hyper-read", files=["/proc/self/cmdline", "/proc/self/environ"])["files"]
    assert data[0]["data"].encode("latin-1") == b"/init\0"
    assert "\0" in data[1]["data"]


def test_a_long_file_is_cut(port: agent_vm.JsonPort) -> None:
    whole, cut = (port.call("hyper-read", files=["/proc/kallsyms"], max_bytes=n)["files"][0] for n in (262144, 100))
    assert len(whole["data"]) == 262144
    assert whole["truncated"] is True
    assert cut["data"] == whole["data"][:100]


def test_one_answer_is_bounded(port: agent_vm.JsonPort) -> None:
    answer = port.call("hyper-read", files=["/proc/kallsyms"] * 20, max_bytes=262144)
    assert sum(len(item["data"]) for item in answer["files"]) == 1 << 20
    assert all(item["truncated"] for item in answer["files"])


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/init", "/proc/../init", "/dev/null", "proc/stat", "/procstat", "/proc/..", "/run/hyper"]
)
def test_the_stats_port_reads_only_kernel_files(vm: agent_vm.GuestVm, path: str) -> None:
    assert vm.stats.refusal("hyper-read", files=[path])[0] == "InvalidArgument"


@pytest.mark.parametrize(
    "path", ["/proc/self/root/init", "/proc/1/cwd/init", "/proc/1", "/proc/kmsg", "/proc/self/exe"]
)
def test_the_stats_port_follows_no_magic_link_and_waits_for_nothing(vm: agent_vm.GuestVm, path: str) -> None:
    item = vm.stats.call("hyper-read", files=[path])["files"][0]
    assert "error" in item or path == "/proc/kmsg"
    assert vm.stats.call("guest-ping") == {}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"files": "x"}, "files"),
        ({"files": [1]}, "files"),
        ({"files": ["/proc/stat"] * 129}, "files"),
        ({"statvfs": ["/"] * 33}, "statvfs"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 262145}, "max_bytes"),
    ],
)
def test_what_is_wrong_with_a_read_is_named(port: agent_vm.JsonPort, arguments: dict[str, object], field: str) -> None:
    kind, text = port.refusal("hyper-read", **arguments)
    assert kind == "InvalidArgument"
    assert text.startswith(field)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"args": []}, "args"),
        ({"args": [""]}, "args"),
        ({"env": ["=1"]}, "env"),
        ({"cwd": "relative"}, "cwd"),
        ({"tty": 1}, "tty"),
        ({"root": None}, "root"),
        ({"root": {"image": {"device": "../vda", "fstype": "erofs"}}}, "root.image"),
        ({"tmpfs": [{"path": "x"}]}, "tmpfs"),
        ({"cgroup": {"pids_max": 0}}, "pids_max"),
        ({"args": ["x"] * 4097}, "args"),
    ],
)
def test_what_is_wrong_with_a_start_is_named(vm: agent_vm.GuestVm, change: dict[str, object], field: str) -> None:
    kind, text = vm.control.refusal("hyper-start", **{**agent_vm.start_arguments("true"), **change})
    assert kind == "InvalidArgument"
    assert text.startswith(field)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"args": ["nope"]}, "NotFound", "not found in $PATH"),
        ({"args": ["/nope"]}, "NotFound", "no such file"),
        ({"args": ["not-executable"]}, "NotExecutable", "permission denied"),
        ({"args": ["/bin"]}, "NotExecutable", "permission denied"),
        ({"args": ["no-interpreter"]}, "NotFound", "interpreter"),
        ({"args": ["no-format"]}, "NotExecutable", "exec format error"),
        ({"user": "nobody"}, "NotFound", "unable to find user nobody"),
        ({"user": "alice:staff"}, "NotFound", "unable to find group staff"),
        ({"cwd": "/etc/passwd/x"}, "GenericError", "/etc/passwd"),
        ({"root": {"image": {"device": "vdz", "fstype": "erofs"}}}, "GenericError", "vdz"),
        ({"root": {"image": {"device": "vda", "fstype": "ext4"}}}, "GenericError", "cannot mount"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_the_guest_idle(
    vm: agent_vm.GuestVm, change: dict[str, object], kind: str, text: str
) -> None:
    refused, said = vm.control.refusal("hyper-start", **{**agent_vm.start_arguments("true"), **change})
    assert (refused, text in said) == (kind, True), said
    assert vm.control.call("hyper-status")["state"] == "idle"


def test_nothing_runs_so_nothing_can_be_signalled(vm: agent_vm.GuestVm) -> None:
    assert vm.control.refusal("hyper-signal", signal=15)[0] == "BadState"
    assert vm.control.refusal("hyper-exec", session=1, args=["true"])[0] == "BadState"
    assert vm.control.refusal("hyper-resize", session=0, rows=1, cols=1)[0] == "BadState"
    assert vm.control.refusal("hyper-signal", signal=65)[0] == "InvalidArgument"


@pytest.mark.parametrize("mode", ["powerdown", "reboot"])
def test_shutdown_ends_the_vm(mode: str) -> None:
    with agent_vm.GuestVm() as guest:
        guest.control.send(json.dumps({"execute": "guest-shutdown", "arguments": {"mode": mode}}).encode() + b"\n")
        assert guest.wait() == 0
