"""`top` of a guest that tells the truth, and of one that does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import processes, psoptions
from runtime.errors import Conflict, GuestFailed
from runtime.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping

CGROUP = "/sys/fs/cgroup/container/cgroup.procs"
UPTIME_S = 1000
# pid (comm) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime … starttime
STAT = "12 (a (b) c) S 1 12 12 {tty} -1 4194304 0 0 0 0 {utime} 50 0 0 20 0 1 0 {start} 8192000 500\n"


class Agent:
    """Answers hyper-read from a table, or with whatever else it is told."""

    def __init__(self, files: Mapping[str, str], answer: Any = None) -> None:
        self.files = files
        self.answer = answer
        self.most = 0

    async def call(self, command: str, *, files: list[str], max_bytes: int) -> Any:
        assert command == "hyper-read"
        assert 6 * len(files) * max_bytes < 2 << 20
        self.most = max(self.most, len(files))
        if self.answer is not None:
            return self.answer
        found = [{"path": path, "data": self.files[path]} for path in files if path in self.files]
        return {"uptime_ns": UPTIME_S * 10**9, "files": found}


def stat(tty: int = 34816, utime: int = 350, start: int = 90_000) -> str:
    return STAT.format(tty=tty, utime=utime, start=start)


async def test_the_columns_are_those_of_ps(running: Any) -> None:
    container, _ = running
    container.agent = Agent({
        CGROUP: "12\n13\n",
        "/proc/12/stat": stat(),
        "/proc/12/status": "Name:\ta\nUid:\t33\t33\t33\t33\n",
        "/proc/12/cmdline": "nginx\0-g\0daemon off;\0",
    })  # fmt: skip
    answer = await processes.top(container)
    assert answer["titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    (row,) = answer["processes"]  # 13 has ended meanwhile
    uid, pid, parent, share, started, terminal, used, command = row
    assert (uid, pid, parent, terminal, used) == ("33", "12", "1", "pts/0", "00:00:04")
    assert share == "3", "4 of the 100 seconds and more that it has lived, rounded down"
    assert started in {time.strftime("%H:%M", time.localtime(time.time() - 100 + off)) for off in (-2, 0, 2)}
    assert command == "nginx -g daemon off;"


async def test_the_columns_of_aux(running: Any) -> None:
    container, _ = running
    container.agent = Agent({
        CGROUP: "12\n",
        "/proc/meminfo": "MemTotal:        100000 kB\n",
        "/proc/12/stat": stat(),
        "/proc/12/status": "Uid:\t33\t33\t33\t33\n",
        "/proc/12/cmdline": "nginx\0",
    })  # fmt: skip
    answer = await processes.top(container, ["aux"])
    assert answer["titles"][2:6] == ["%CPU", "%MEM", "VSZ", "RSS"]
    assert answer["processes"][0][2:8] == ["4.0", "2.0", "8000", "2000", "pts/0", "Ss"]
    answer = await processes.top(container, ["-o", "pid,etime", "-o", "time,gid,nlwp"])
    assert answer["titles"] == ["PID", "ELAPSED", "TIME", "GID", "NLWP"]
    assert answer["processes"][0] == ["12", "01:40", "00:00:04", "?", "1"]


async def test_a_zombie_is_called_so(running: Any) -> None:
    container, _ = running
    container.agent = Agent({CGROUP: "12", "/proc/12/stat": stat().replace(") S", ") Z")})
    (row,) = (await processes.top(container, ["-o", "stat,comm"]))["processes"]
    assert row == ["Zs", "a (b) c <defunct>"]


async def test_a_process_without_a_command_line_has_its_name(running: Any) -> None:
    container, _ = running
    container.agent = Agent({CGROUP: "12", "/proc/12/stat": stat(tty=0)})
    (row,) = (await processes.top(container))["processes"]
    assert (row[0], row[5], row[7]) == ("?", "?", "[a (b) c]")


@pytest.mark.parametrize(
    "text",
    ["", "12", "12 (x", ") (", "12 (x) S", "12 (x) S " + "x " * 30, "12 (x) S " + "9" * 4000 + " " + "1 " * 30,
     "12 (x) S " + "99999999999999999999 " * 30, "12 (x) S " + "-5 " * 30, "12 (x) S " + ("9" * 400 + " ") * 30],
)  # fmt: skip
async def test_a_guest_that_lies_gets_a_table_all_the_same(running: Any, text: str) -> None:
    container, _ = running
    container.agent = Agent({CGROUP: "12", "/proc/12/stat": text, "/proc/12/cmdline": "\0" * 9})
    for row in (await processes.top(container))["processes"]:
        assert len(row) == len(psoptions.FULL)
        assert all(isinstance(cell, str) for cell in row)


async def test_what_is_no_character_to_print_is_not_passed_on(running: Any) -> None:
    container, _ = running
    container.agent = Agent({
        CGROUP: "12\n\u00b2\n\u00b3\n",
        "/proc/12/stat": stat(),
        "/proc/12/status": "Uid:\t\x1b[2J\n",
        "/proc/12/cmdline": "a\x1b]0;title\x07\nb" + "c" * 9000,
    })  # fmt: skip
    (row,) = (await processes.top(container))["processes"]
    assert row[0] == "?[2J"
    assert row[7].startswith("a?]0;title??bccc")
    assert len(row[7]) <= 4096


@pytest.mark.parametrize("answer", [[], "x", {}, {"files": 1}, {"files": [1], "uptime_ns": 1}, {"files": []}])
async def test_an_answer_of_another_shape_is_the_guests_failure(running: Any, answer: Any) -> None:
    container, _ = running
    container.agent = Agent({}, answer)
    with pytest.raises(GuestFailed):
        await processes.top(container)


async def test_the_table_and_the_calls_are_bounded(running: Any) -> None:
    container, _ = running
    pids = range(2, 3000)
    container.agent = Agent({CGROUP: "\n".join(map(str, pids)), **{f"/proc/{pid}/stat": stat() for pid in pids}})
    assert len((await processes.top(container))["processes"]) == processes.MAX_PROCESSES
    assert container.agent.most <= 128


async def test_only_what_runs_has_processes(running: Any) -> None:
    container, lives = running
    lives.change(container, "paused")
    with pytest.raises(Conflict, match="paused"):
        await processes.top(container)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tmpfs": [{"path": "run"}]}, "not an absolute path"),
        ({"tmpfs": [{"path": "/"}]}, "not an absolute path"),
        ({"tmpfs": [{"path": "/a/../b"}]}, "not an absolute path"),
        ({"tmpfs": [{"path": "/a", "options": "size=64m,evil=1"}]}, "no tmpfs option 'evil=1'"),
        ({"tmpfs": [{"path": "/a", "options": "nodev,dev"}]}, "no tmpfs option 'dev'"),
        ({"auto_remove": True, "restart": {"policy": "always"}}, "exclude each other"),
        ({"size": "S5"}, "size"),
    ],
)
def test_specs_that_are_refused(members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.model_validate({"image": "nginx", **members})
