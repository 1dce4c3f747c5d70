"""Whether the guest's kernel knows how fast its timer counts.

A kernel that is not told measures it at boot, for 100 ms. On a busy host QEMU may not run while a moment of that
passes, and the figure is wrong: by a tenth, so that long sleeps are too long, or so much that the kernel uses no timer
and nothing in the guest ever waits to an end. A template would give that to all its clones.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runtime.errors import GuestFailed

if TYPE_CHECKING:
    from runtime.vm.agent import Agent

_TIMERS = "/proc/timer_list"
_LAPIC = "lapic"
_TOLD = "lapic-deadline"  # counts as the TSC does
_LAPIC_HZ = 1_000_000_000 / 16  # of QEMU and of KVM, as Linux has it divided
_FIRST_CPU = re.compile(
    r"Per CPU device: 0\nClock Event Device: (\S+)\n(?:.*\n){2} mult: +(\d{1,10})\n shift: +(\d\d?)\n"
)


class TimerWrong(GuestFailed):
    """The guest's kernel measured its timer wrongly, or has none."""

    def __init__(self, found: str) -> None:
        """`found` is for a log: the message is the same for all."""
        super().__init__(
            "the guest's kernel measured its timer wrongly, as it can on a busy host: try again, or let 'make kernel'"
            " build one that is told"
        )
        self.found = found


async def check(agent: Agent, tolerance: float) -> None:
    """See that the rate is right to within `tolerance`, a part of it; to be asked before the guest runs a container.

    Raises:
        TimerWrong: it is not.
        GuestFailed: as `Agent.call`.
    """
    answer = await agent.call("hyper-read", files=[_TIMERS])
    try:
        timers = str(answer["files"][0]["data"])
    except (KeyError, IndexError, TypeError) as err:
        raise TimerWrong(f"{_TIMERS} cannot be read") from err
    error = _error(timers)
    if not abs(error) <= tolerance:
        raise TimerWrong(f"off by {error:+.1%}" if error < 1e3 else "there is none")


def _error(timers: str) -> float:
    """How far the rate is off, as a part of it; infinite if the first CPU has no local APIC timer."""
    found = _FIRST_CPU.search(timers)
    if found is None or found[1] not in {_LAPIC, _TOLD}:
        return float("inf")
    if found[1] == _TOLD:
        return 0.0
    return int(found[2]) * 1e9 / 2.0 ** int(found[3]) / _LAPIC_HZ - 1
