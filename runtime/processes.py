"""The processes of a container, as its guest's kernel tells of them; nothing of the image is needed.

Source: proc(5), `stat`, `status`, `cmdline` of the guest, and `cgroup.procs` of the container's group, all read through
the agent. It is the guest's word: of whatever shape, it becomes a bounded table of text.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from runtime.errors import Conflict, GuestFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.life import Container

TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
MAX_PROCESSES = 1024
_FILES_AT_ONCE = 120  # of the 128 that one call may ask for; three for each process
_TICKS_A_SECOND = 100  # USER_HZ, which is the same on every machine of this architecture
_MAX_COMMAND = 4096
_FIELDS = 20  # of `stat` from field 3 on, up to starttime
_DAY_S = 86400


async def top(container: Container) -> dict[str, Any]:
    """The processes as `{"titles", "processes"}`, with the columns of `ps -ef`; ids are those of the guest.

    Raises:
        Conflict: it does not run, or is paused.
        GuestFailed: the agent did not answer.
    """
    if container.state != "running" or container.agent is None:
        raise Conflict(f"the container {container.record.name} is {container.state}, not running", field="container")
    listing = f"{container.record.guest.cgroup}/cgroup.procs"
    answer = await _read(container, [listing])
    pids = sorted({int(word) for word in answer[0].get(listing, "").split() if word.isdigit() and len(word) < 8})
    paths = [f"/proc/{pid}/{name}" for pid in pids[:MAX_PROCESSES] for name in ("stat", "status", "cmdline")]
    found: dict[str, str] = {}
    boot = time.time()
    for start in range(0, len(paths), _FILES_AT_ONCE):
        texts, boot = await _read(container, paths[start : start + _FILES_AT_ONCE])
        found |= texts
    rows = [_row(pid, found, boot) for pid in pids[:MAX_PROCESSES]]
    return {"titles": list(TITLES), "processes": [row for row in rows if row is not None]}


async def _read(container: Container, paths: Iterable[str]) -> tuple[dict[str, str], float]:
    """Contents by path, and the time at which the guest booted, by our clock."""
    if container.agent is None:
        raise Conflict(f"the container {container.record.name} is not running", field="container")
    answer = await container.agent.call("hyper-read", files=list(paths))
    try:
        texts = {
            str(one["path"]): str(one["data"]).encode("latin-1", "replace").decode(errors="replace")
            for one in answer["files"]
            if "data" in one
        }
        return texts, time.time() - int(answer["uptime_ns"]) / 1e9
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise GuestFailed("the guest agent answered hyper-read with something else than files") from err


def _row(pid: int, texts: dict[str, str], boot: float) -> list[str] | None:
    """One process; None if it has ended meanwhile."""
    stat = texts.get(f"/proc/{pid}/stat", "")
    # The name in parentheses may contain anything; field 3 follows it.
    name, fields = stat[stat.find("(") + 1 : stat.rfind(")")], stat[stat.rfind(")") + 2 :].split()
    if len(fields) < _FIELDS:
        return None
    try:
        numbers = [int(field) for field in fields[1:_FIELDS]]
    except ValueError:
        return None
    parent, terminal, ticks = numbers[0], numbers[3], numbers[10] + numbers[11]
    started = boot + numbers[18] / _TICKS_A_SECOND
    age_s, used_s = max(time.time() - started, 0.01), ticks / _TICKS_A_SECOND
    status = dict(line.split(":\t", 1) for line in texts.get(f"/proc/{pid}/status", "").splitlines() if ":\t" in line)
    words = texts.get(f"/proc/{pid}/cmdline", "").rstrip("\0").replace("\0", " ")
    return [
        (status.get("Uid", "?").split() or ["?"])[0],
        str(pid),
        str(parent),
        str(min(99, int(100 * used_s / age_s))),
        time.strftime("%H:%M" if age_s < _DAY_S else "%b%d", time.localtime(min(max(started, 0.0), 4e9))),
        _terminal(terminal),
        time.strftime("%H:%M:%S", time.gmtime(min(max(used_s, 0.0), _DAY_S - 1))),
        (words or f"[{name}]")[:_MAX_COMMAND],
    ]


def _terminal(number: int) -> str:
    """`tty_nr`: the device number of the controlling terminal; 136 is the major of pts (devices.txt)."""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return f"pts/{minor}" if 136 <= major <= 143 else "?"
