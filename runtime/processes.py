"""The processes of a container, as its guest's kernel tells of them; nothing of the image is needed.

Source: proc(5), `stat`, `status`, `cmdline` of the guest, and `cgroup.procs` of the container's group, all read through
the agent. It is the guest's word: of whatever shape, it becomes a bounded table of text.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from runtime import psoptions
from runtime.errors import Conflict, GuestFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.life import Container

MAX_PROCESSES = 1024
_FILES_AT_ONCE = 60  # three for each process; an answer has at most six bytes for one of a file, 2 MiB in all
_MAX_FILE_BYTES = 4096
_MAX_LISTING_BYTES = 65536
_TICKS_A_SECOND = 100  # USER_HZ, which is the same on every machine of this architecture
_MAX_NUMBER = 2**63
_MAX_NAME = 64
_FIELDS = 22  # of `stat` from field 3 on, up to rss
_PAGE_KIB = 4
_MEMORY = "/proc/meminfo"
_DAY_S = 86400


async def top(container: Container, options: Sequence[str] = ()) -> dict[str, Any]:
    """The processes as `{"titles", "processes"}`, with the columns that ps has by these options; ids are the guest's.

    Raises:
        Conflict: it does not run, or is paused.
        GuestFailed: the agent did not answer.
        InvalidInput: an option that cannot be had.
    """
    wanted = psoptions.columns(options)
    if container.state != "running" or container.agent is None:
        raise Conflict(f"the container {container.record.name} is {container.state}, not running", field="container")
    listing = f"{container.record.guest.cgroup}/cgroup.procs"
    answer = await read(container, [listing, _MEMORY], _MAX_LISTING_BYTES)
    words = answer[0].get(listing, "").split()
    pids = sorted({int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 8})
    paths = [f"/proc/{pid}/{name}" for pid in pids[:MAX_PROCESSES] for name in ("stat", "status", "cmdline")]
    found: dict[str, str] = {}
    boot = time.time()
    for start in range(0, len(paths), _FILES_AT_ONCE):
        texts, boot = await read(container, paths[start : start + _FILES_AT_ONCE], _MAX_FILE_BYTES)
        found |= texts
    memory_kib = _memory_kib(answer[0].get(_MEMORY, ""))
    told = [_values(pid, found, boot, memory_kib) for pid in pids[:MAX_PROCESSES]]
    rows = [[values[name] for _, name in wanted] for values in told if values is not None]
    return {"titles": [title for title, _ in wanted], "processes": rows}


async def read(container: Container, paths: Sequence[str], max_bytes: int) -> tuple[dict[str, str], float]:
    """The beginnings of files of the guest by path, and the time at which it booted, by our clock.

    Raises:
        Conflict: it does not run.
        DiskFull: QEMU has stopped it.
        GuestFailed: the agent did not answer, or not with files.
    """
    if container.agent is None:
        raise Conflict(f"the container {container.record.name} is not running", field="container")
    container.demand_going()
    asked = set(paths)
    answer = await container.agent.call("hyper-read", files=list(paths), max_bytes=max_bytes)
    try:
        texts = {
            path: str(one["data"])[:max_bytes].encode("latin-1", "replace").decode(errors="replace")
            for one in answer["files"]
            if "data" in one and (path := str(one["path"])) in asked
        }
        return texts, time.time() - int(answer["uptime_ns"]) / 1e9
    except (KeyError, TypeError, ValueError, OverflowError) as err:
        raise GuestFailed("the guest agent answered hyper-read with something else than files") from err


def _memory_kib(text: str) -> int:
    """`MemTotal` of /proc/meminfo; 0 where it is not told."""
    words = text.partition("MemTotal:")[2].split()
    return int(words[0]) if words and words[0].isdigit() and len(words[0]) < 16 else 0


def _values(pid: int, texts: dict[str, str], boot: float, memory_kib: int) -> dict[str, str] | None:
    """One process, by the names of `runtime.psoptions`; None if it has ended meanwhile."""
    stat = texts.get(f"/proc/{pid}/stat", "")
    # The name in parentheses may contain anything; field 3 follows it.
    name, fields = stat[stat.find("(") + 1 : stat.rfind(")")], stat[stat.rfind(")") + 2 :].split()
    if len(fields) < _FIELDS:
        return None
    try:
        # By their place in proc(5), of which `state` is the third.
        number = {place: int(field) for place, field in enumerate(fields[1:_FIELDS], 4)}
    except ValueError:
        return None
    if not all(-_MAX_NUMBER <= one < 2 * _MAX_NUMBER for one in number.values()):
        return None
    started = boot + number[22] / _TICKS_A_SECOND
    age_s, used_s = max(time.time() - started, 0.01), (number[14] + number[15]) / _TICKS_A_SECOND
    used_s = min(max(used_s, 0.0), _DAY_S - 1)
    status = dict(line.split(":\t", 1) for line in texts.get(f"/proc/{pid}/status", "").splitlines() if ":\t" in line)
    words = texts.get(f"/proc/{pid}/cmdline", "").rstrip("\0").replace("\0", " ")
    users, groups = status.get("Uid", "? ?").split(), status.get("Gid", "? ?").split()
    resident_kib = max(number[24], 0) * _PAGE_KIB
    state = _shown(fields[0][:1])
    return {
        "pid": str(pid),
        "ppid": str(number[4]),
        "pgid": str(number[5]),
        "sid": str(number[6]),
        "ruid": _shown((users or ["?"])[0][:_MAX_NAME]),
        "uid": _shown((users[1:2] or users[:1] or ["?"])[0][:_MAX_NAME]),
        "gid": _shown((groups[1:2] or groups[:1] or ["?"])[0][:_MAX_NAME]),
        "share": str(min(99, int(100 * used_s / age_s))),
        "pcpu": f"{min(999.0, 100 * used_s / age_s):.1f}",
        "pmem": f"{min(100.0, 100 * resident_kib / memory_kib):.1f}" if memory_kib else "?",
        "vsz": str(max(number[23], 0) // 1024),
        "rss": str(resident_kib),
        "tty": _terminal(number[7]),
        "s": state,
        "stat": state + _marks(pid, number),
        "start": time.strftime("%H:%M" if age_s < _DAY_S else "%b%d", time.localtime(min(max(started, 0.0), 4e9))),
        "etime": _elapsed(min(age_s, 1e9)),
        "etimes": str(int(min(age_s, 1e9))),
        "time": time.strftime("%H:%M:%S", time.gmtime(used_s)),
        "minutes": f"{int(used_s // 60)}:{int(used_s % 60):02d}",
        "ni": str(number[19]),
        "pri": str(39 - number[18]),
        "opri": str(60 + number[18]),
        "nlwp": str(number[20]),
        "comm": _shown(name[:_MAX_NAME]) + (" <defunct>" if state == "Z" else ""),
        "args": _shown(words or f"[{name[:_MAX_NAME]}]") + (" <defunct>" if state == "Z" else ""),
    }


def _marks(pid: int, number: Mapping[int, int]) -> str:
    """What `ps` writes after the state: niceness, the leader of a session, threads, the terminal's foreground."""
    return "".join((
        "<" * (number[19] < 0), "N" * (number[19] > 0), "s" * (number[6] == pid), "l" * (number[20] > 1),
        "+" * (number[8] == number[5] and number[7] != 0),
    ))  # fmt: skip


def _elapsed(seconds: float) -> str:
    """`[[DD-]HH:]MM:SS`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    head = f"{days}-{hour:02d}:" if days else f"{hour:02d}:" if hour else ""
    return f"{head}{minute:02d}:{second:02d}"


def _shown(text: str) -> str:
    """As `ps` shows it: what is no character to print is a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _terminal(number: int) -> str:
    """`tty_nr`: the device number of the controlling terminal; 136 is the major of pts (devices.txt)."""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return f"pts/{minor}" if 136 <= major <= 143 else "?"
