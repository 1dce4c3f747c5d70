"""Whether a new container does as well as the old one: a pure function of what was seen of both, and its thresholds.

The new one has no traffic yet while it is observed. So what it may take is bounded by what the old one takes under
traffic, and anything that it does worse than that it does worse by itself.

Latency and pressure also grow where the host keeps a VM waiting, by no more than it waited. So a new one is worse only
if it is without that, and an old one excuses only what it is without that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from runtime.changes.rollout import Compared

Verdict = Literal["well", "worse", "inconclusive"]
Resource = Literal["cpu", "memory", "io"]
Kind = Literal["some", "full"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RESOURCES: tuple[Resource, ...] = get_args(Resource)
Stalls = Mapping[tuple[Resource, Kind], float]

MIN_SEEN_SHARE = 0.5
"""Of the looks at a container at least so many must have been answered."""

MEMORY_NEAR_LIMIT = 0.9
"""Share of its limit from which a container is short of memory."""

MEMORY_RATIO = 1.5
MEMORY_SLACK_BYTES = 32 * 1024**2
"""The new one may take this times the memory of the old one, and this much more."""

CPU_RATIO = 1.5
CPU_SLACK_CORES = 0.25
"""The new one may take this times the CPUs of the old one, and this much more."""

LATENCY_RATIO = 2.0
LATENCY_SLACK_S = 0.1
"""The median of the new one's checks may take this times as long as the old one's, and this much longer."""

MIN_CHECKS = 5
"""So many checks that succeeded must be seen of each, or their times say nothing."""

PRESSURE_RATIO = 2.0
PRESSURE_SLACK: Mapping[Resource, float] = {"cpu": 0.2, "memory": 0.1, "io": 0.2}
"""The new one's tasks may wait for this times the share of the time of the old one's, and for this share more."""

MIN_PRESSURE_S = 5.0
MIN_PRESSURE_LOOKS = 5
"""Over less, or with fewer answers of a guest, the time that its tasks waited is chance."""

HOST_WAIT_COST = 2.0
"""What a VM waited for the host's CPUs may have cost this times as much: others wait for who has a lock."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one container over the observation.

    `looks` and `answers` count how often its guest was asked, and answered. `memory_bytes` is the most that was seen,
    `cpu_cores` the mean; None: not known. A container that did not run has `running` False: only limits judge then.

    Attributes:
        check: what its health check runs; empty: it has none.
        check_times_s: how long each check took that succeeded.
        stalled: by resource, the share of the time in which some of its tasks waited for it, and in which all did.
        pressure_s: the time over which that was counted.
        host_wait_s: how long its VM waited for the host's CPUs in that time, all threads together; None: not told.
    """

    running: bool = True
    looks: int = 0
    answers: int = 0
    exits: int = 0
    failed_checks: int = 0
    unhealthy: bool = False
    checked: bool = False
    oom_kills: int | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int = 0
    cpu_cores: float | None = None
    check: tuple[str, ...] = ()
    check_times_s: tuple[float, ...] = ()
    stalled: Stalls = field(default_factory=dict)
    pressure_s: float = 0.0
    host_wait_s: float | None = None

    @property
    def enough(self) -> bool:
        """Whether enough of it was seen to compare by."""
        return self.answers > 0 and self.answers >= MIN_SEEN_SHARE * self.looks


def compare(old: Seen, new: Seen) -> tuple[tuple[Compared, ...], Verdict]:
    """Each signal of both, and the verdict on the new one.

    One signal that is worse is worse, whatever is not known; otherwise one that is not known makes it inconclusive. One
    that is silent decides nothing. A guest that does not answer is not silent: what it would tell is not known.
    """
    rows = (
        _exits(old, new),
        _health(old, new),
        _oom_kills(old, new),
        _latency(old, new),
        *(_pressure(old, new, resource) for resource in RESOURCES),
        _memory(old, new),
        _cpu(old, new),
    )
    verdicts = {row.verdict for row in rows}
    if "worse" in verdicts:
        return rows, "worse"
    return rows, "inconclusive" if "unknown" in verdicts else "well"


def doubt(rows: tuple[Compared, ...], name: str) -> str:
    """Why a comparison came to nothing, and what to see to before the next."""
    unknown = [row for row in rows if row.verdict == "unknown"]
    by_host = ", ".join(f"{row.signal} ({row.old} → {row.new}: {row.why})" for row in unknown if row.why)
    unseen = ", ".join(row.signal for row in unknown if not row.why)
    said = [f"what the new container does worse may be the host's doing: {by_host}"] if by_host else []
    if unseen or not by_host:
        what = unseen or "the two"
        said.append(f"not enough could be seen to compare {what}: see that the guests answer (hyper top {name})")
    room = "when the host has room, " if by_host else ""
    return f"{'; '.join(said)}; try again {room}with a longer --canary or without"


def silence(rows: tuple[Compared, ...]) -> str:
    """What could not be compared although the verdict does not wait for it; empty: nothing."""
    silent = [f"{row.signal} ({row.why})" for row in rows if row.verdict == "silent"]
    return f"; nothing is said by {', '.join(silent)}" if silent else ""


def _exits(old: Seen, new: Seen) -> Compared:
    verdict: Literal["worse", "better", "same"] = "worse" if new.exits else "better" if old.exits else "same"
    return Compared("exits", str(old.exits) if old.running or old.exits else "not running", str(new.exits), verdict)


def _health(old: Seen, new: Seen) -> Compared:
    if not new.checked:
        return Compared("failed health checks", _failed(old), "no check", "same")
    worse = new.unhealthy or (new.failed_checks > old.failed_checks and not old.unhealthy)
    better = not worse and (old.unhealthy or old.failed_checks > new.failed_checks)
    return Compared(
        "failed health checks", _failed(old), _failed(new), "worse" if worse else "better" if better else "same"
    )


def _failed(seen: Seen) -> str:
    if not seen.checked:
        return "no check"
    return f"{seen.failed_checks}, unhealthy" if seen.unhealthy else str(seen.failed_checks)


def _oom_kills(old: Seen, new: Seen) -> Compared:
    shown = (_number(old, old.oom_kills), _number(new, new.oom_kills))
    if new.oom_kills:
        return Compared("killed for memory", *shown, "worse")
    if not _known(old, new) or new.oom_kills is None or (old.running and old.oom_kills is None):
        return Compared("killed for memory", *shown, "unknown")
    return Compared("killed for memory", *shown, "better" if old.oom_kills else "same")


def _latency(old: Seen, new: Seen) -> Compared:
    shown = (_latency_text(old), _latency_text(new))
    few = [seen for seen in (old, new) if len(seen.check_times_s) < MIN_CHECKS]
    if why := _incomparable(old, new):
        return Compared("latency", *shown, "silent", why)
    if few:
        return Compared("latency", *shown, "silent", f"fewer than {MIN_CHECKS} checks")
    # Of so many checks half must each have taken longer for their median to have grown by as much.
    values = [
        Value(statistics.median(seen.check_times_s), _by_host(seen) / ((len(seen.check_times_s) + 1) // 2))
        for seen in (old, new)
    ]
    return _judged("latency", shown, old, new, [(values[0], values[1])], LATENCY_RATIO, LATENCY_SLACK_S)


def _incomparable(old: Seen, new: Seen) -> str:
    """Why the times of their checks are not to be compared; empty: they are."""
    if not old.running:
        return "the old one does not run"
    if not old.check or not new.check:
        return "no health check"
    return "" if old.check == new.check else "another health check"


def _pressure(old: Seen, new: Seen, resource: Resource) -> Compared:
    signal = f"{resource} pressure"
    shown = (_pressure_text(old, resource), _pressure_text(new, resource))
    if not old.running:
        return Compared(signal, *shown, "silent", "the old one does not run")
    if not _known(old, new):
        return Compared(signal, *shown, "unknown")
    if any(seen.pressure_s < MIN_PRESSURE_S or seen.answers < MIN_PRESSURE_LOOKS for seen in (old, new)):
        return Compared(signal, *shown, "silent", f"less than {MIN_PRESSURE_S:g} s")
    keys = [(resource, kind) for kind in KINDS if (resource, kind) in old.stalled and (resource, kind) in new.stalled]
    if not keys:
        return Compared(signal, *shown, "silent", "the guest does not tell")
    pairs = [
        (
            Value(old.stalled[key], _by_host(old) / old.pressure_s),
            Value(new.stalled[key], _by_host(new) / new.pressure_s),
        )
        for key in keys
    ]
    return _judged(signal, shown, old, new, pairs, PRESSURE_RATIO, PRESSURE_SLACK[resource])


class Value(NamedTuple):
    """Something measured, and how much of it may be the host's doing."""

    measured: float
    by_host: float

    @property
    def least(self) -> float:
        """What of it is the container's own in any case."""
        return max(self.measured - self.by_host, 0.0)


def _by_host(seen: Seen) -> float:
    """Seconds for which the host may have held a container up over the observation."""
    return math.inf if seen.host_wait_s is None else seen.host_wait_s * HOST_WAIT_COST


def _judged(
    signal: str,
    shown: tuple[str, str],
    old: Seen,
    new: Seen,
    pairs: list[tuple[Value, Value]],
    ratio: float,
    slack: float,
) -> Compared:
    """What follows of values of the old and the new one, of which the host may have made a part."""
    if any(after.least > before.measured * ratio + slack for before, after in pairs):
        return Compared(signal, *shown, "worse")
    if any(after.measured > before.measured * ratio + slack for before, after in pairs):
        return Compared(signal, *shown, "unknown", _host_text(new))
    if any(after.measured > before.least * ratio + slack for before, after in pairs):
        return Compared(signal, *shown, "silent", f"the old one: {_host_text(old)}")
    better = any(before.least > after.measured * ratio + slack for before, after in pairs)
    return Compared(signal, *shown, "better" if better else "same")


def _memory(old: Seen, new: Seen) -> Compared:
    shown = (_memory_text(old), _memory_text(new))
    if not _known(old, new) or new.memory_bytes is None or (old.running and old.memory_bytes is None):
        return Compared("memory", *shown, "unknown")
    near = _near_limit(new) and not (old.running and _near_limit(old))
    if old.running and old.memory_bytes is not None:
        more = new.memory_bytes > old.memory_bytes * MEMORY_RATIO + MEMORY_SLACK_BYTES
        better = old.memory_bytes > new.memory_bytes * MEMORY_RATIO + MEMORY_SLACK_BYTES
    else:
        more = better = False
    return Compared("memory", *shown, "worse" if near or more else "better" if better else "same")


def _cpu(old: Seen, new: Seen) -> Compared:
    shown = (_cpu_text(old), _cpu_text(new))
    if not old.running and new.cpu_cores is not None:
        return Compared("cpu", *shown, "same")
    if not _known(old, new) or new.cpu_cores is None or old.cpu_cores is None:
        return Compared("cpu", *shown, "unknown")
    if new.cpu_cores > old.cpu_cores * CPU_RATIO + CPU_SLACK_CORES:
        return Compared("cpu", *shown, "worse")
    better = old.cpu_cores > new.cpu_cores * CPU_RATIO + CPU_SLACK_CORES
    return Compared("cpu", *shown, "better" if better else "same")


def _known(old: Seen, new: Seen) -> bool:
    return new.enough and (old.enough or not old.running)


def _near_limit(seen: Seen) -> bool:
    return bool(seen.memory_limit_bytes) and (seen.memory_bytes or 0) >= MEMORY_NEAR_LIMIT * seen.memory_limit_bytes


def _number(seen: Seen, value: int | None) -> str:
    return str(value) if value is not None else "unknown" if seen.running else "not running"


def _memory_text(seen: Seen) -> str:
    if seen.memory_bytes is None:
        return "unknown" if seen.running else "not running"
    text = f"{seen.memory_bytes / 1024**2:.1f} MiB"
    share = seen.memory_bytes / seen.memory_limit_bytes if seen.memory_limit_bytes else None
    return text if share is None else f"{text} ({share:.0%})"


def _cpu_text(seen: Seen) -> str:
    if seen.cpu_cores is None:
        return "unknown" if seen.running else "not running"
    return f"{seen.cpu_cores:.2f} cores"


def _latency_text(seen: Seen) -> str:
    if not seen.running:
        return "not running"
    if not seen.check_times_s:
        return "no check succeeded" if seen.check else "no check"
    count = len(seen.check_times_s)
    return f"{statistics.median(seen.check_times_s) * 1000:.0f} ms ({count} check{'s' * (count != 1)})"


def _pressure_text(seen: Seen, resource: Resource) -> str:
    some, full = seen.stalled.get((resource, "some")), seen.stalled.get((resource, "full"))
    if some is None:
        return "unknown" if seen.running else "not running"
    return f"{some:.1%}" if full is None else f"{some:.1%} (all {full:.1%})"


def _host_text(seen: Seen) -> str:
    if seen.host_wait_s is None:
        return "how long its VM waited for the host is not told"
    return f"its VM waited {seen.host_wait_s:.1f} s for the host's CPUs"
