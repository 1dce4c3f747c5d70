"""How long the threads of a VM wanted a CPU of the host and did not have one, its own quota apart.

Source: `/proc/<pid>/task/<tid>/schedstat` (Documentation/scheduler/sched-stats.rst: time on a CPU and time of waiting
for one, in nanoseconds), and how long the quota held its group back: `throttled_usec` of `cpu.stat` in cgroup v2,
`throttled_time` (ns) in v1, which the waiting includes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.record import Cgroups
    from runtime.vm.process import Process

_NS_PER_US = 1000
_NS_PER_S = 10**9


class HostTime(NamedTuple):
    """Of one VM at one moment, in nanoseconds since it began.

    `waited_ns` is by the ids of its threads, `throttled_ns` how long its quota has held it back.
    """

    pid: int
    waited_ns: Mapping[int, int]
    throttled_ns: int


def parse_schedstat(text: str) -> int | None:
    """Nanoseconds for which a thread waited; None if that is no schedstat, or one of a kernel that does not count."""
    words = text.split()
    if len(words) < 2 or not all(word.isascii() and word.isdigit() for word in words[:2]):
        return None
    ran_ns, waited_ns = int(words[0]), int(words[1])
    return waited_ns if ran_ns or waited_ns else None


def parse_throttled(v2: str, v1: str) -> int:
    """Nanoseconds for which a quota held a group back, by its `cpu.stat` of either kind; 0: none has one."""
    for text, name, unit in ((v2, "throttled_usec", _NS_PER_US), (v1, "throttled_time", 1)):
        for line in text.splitlines():
            word, _, number = line.partition(" ")
            if word == name and number.isascii() and number.isdigit() and int(number):
                return int(number) * unit
    return 0


def read(process: Process, groups: Cgroups, proc: Path = Path("/proc")) -> HostTime | None:
    """The times of a VM until now; None if it has ended or the kernel does not tell."""
    waited_ns = {}
    for task in _tasks(proc / str(process.pid) / "task"):
        found = parse_schedstat(_text(task / "schedstat"))
        if found is not None:
            waited_ns[int(task.name)] = found
    if not waited_ns:
        return None
    v2 = _text(Path(groups.v2) / "cpu.stat") if groups.v2 else ""
    v1 = _text(Path(groups.v1["cpu"]) / "cpu.stat") if "cpu" in groups.v1 else ""
    return HostTime(process.pid, waited_ns, parse_throttled(v2, v1))


def between(first: HostTime | None, last: HostTime | None) -> float | None:
    """Seconds for which the threads of a VM waited between two moments, all together; None: not known.

    A thread that has ended meanwhile is left out, one that is new counts from its beginning.
    """
    if first is None or last is None or first.pid != last.pid:
        return None
    grown_ns = sum(max(ns - first.waited_ns.get(tid, 0), 0) for tid, ns in last.waited_ns.items())
    return max(grown_ns - max(last.throttled_ns - first.throttled_ns, 0), 0) / _NS_PER_S


def _tasks(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
