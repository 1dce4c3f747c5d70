"""Whether a new container does as well as the old one: a pure function of what was seen of both, and its thresholds.

The new one has no traffic yet while it is observed. So what it may take is bounded by what the old one takes under
traffic, and anything that it does worse than that it does worse by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.changes.rollout import Compared

Verdict = Literal["well", "worse", "inconclusive"]

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


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one container over the observation.

    `looks` and `answers` count how often its guest was asked, and answered. `memory_bytes` is the most that was seen,
    `cpu_cores` the mean; None: not known. A container that did not run has `running` False: only limits judge then.
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

    @property
    def enough(self) -> bool:
        """Whether enough of it was seen to compare by."""
        return self.answers > 0 and self.answers >= MIN_SEEN_SHARE * self.looks


def compare(old: Seen, new: Seen) -> tuple[tuple[Compared, ...], Verdict]:
    """Each signal of both, and the verdict on the new one.

    One signal that is worse is worse, whatever is not known; otherwise one that is not known makes it inconclusive.
    """
    rows = (_exits(old, new), _health(old, new), _oom_kills(old, new), _memory(old, new), _cpu(old, new))
    verdicts = {row.verdict for row in rows}
    if "worse" in verdicts:
        return rows, "worse"
    return rows, "inconclusive" if "unknown" in verdicts else "well"


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
