"""States as words and colours: PromQL gives a number for each, as a panel can only map numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.catalogue import CONTAINER_STATES, HEALTH_VALUES, container, microvm
from dashboards.panels import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, Code

if TYPE_CHECKING:
    from collector.catalogue import Metric
    from dashboards.promql import Chosen

_STATE_COLORS: Final = {
    "created": GRAY, "starting": BLUE, "running": GREEN, "paused": PURPLE, "stopping": ORANGE, "exited": RED,
    "dead": RED, "removing": GRAY,
}  # fmt: skip

STATES: Final = tuple(Code(number, name, _STATE_COLORS[name]) for number, name in enumerate(CONTAINER_STATES))
"""States of a container, by the numbers that `number_of` gives them."""

HEALTH: Final = (
    Code(HEALTH_VALUES["healthy"], "healthy", GREEN),
    Code(HEALTH_VALUES["unhealthy"], "unhealthy or starting", RED),
    Code(HEALTH_VALUES["none"], "no health check", GRAY),
)

WANTED: Final = (
    Code(1, "yes", GREEN),
    Code(0, "no, stopped on purpose", GRAY),
    Code(2, "in quarantine, until a person lifts it", RED),
)

SEEN: Final = (Code(1, "runs here", BLUE),)

STARVED: Final = (
    Code(0, "nobody", GREEN, member="none"),
    Code(1, "itself", BLUE, member="self"),
    Code(2, "its limit", ORANGE, member="limit"),
    Code(3, "the host", RED, member="host"),
)
"""Who keeps a container from the CPU, by the numbers that `number_of` gives them."""

VMM: Final = (
    Code(0, "runs", GREEN, member="running"),
    Code(1, "stands still", PURPLE, member="paused"),
    Code(2, "halted, disk full", RED, member="io-error"),
    Code(3, "guest panicked", RED, member="guest-panicked"),
    Code(4, "cannot go on", RED, member="internal-error"),
    Code(5, "guest is down", RED, member="shutdown"),
)
"""What QEMU does with its guest, by the numbers that `number_of` gives its run states."""

UP: Final = (Code(1, "answers", GREEN), Code(0, "silent", RED))


def number_of(chosen: Chosen, metric: Metric, label: str, codes: tuple[Code, ...]) -> str:
    """The number of the member of a state set that holds now; the label with its name is left in.

    A set has no series, or one of 0, for what does not hold: both come to the same here.
    """
    members = [
        f"({chosen.select(metric, **{label: code.member or code.text})} == 1) * {code.value:g}" for code in codes
    ]
    return " or ".join(members)


def starved(chosen: Chosen) -> str:
    """The number of who keeps each chosen container from the CPU."""
    return f"max without (by) ({number_of(chosen, microvm.STARVED_BY, 'by', STARVED)})"


def vmm(chosen: Chosen) -> str:
    """The number of each chosen container's QEMU's run state."""
    return f"max without (status) ({number_of(chosen, microvm.VMM_STATUS, 'status', VMM)})"


def state(chosen: Chosen) -> str:
    """The number of each chosen container's state, without the label that names it."""
    return f"max without (state) ({number_of(chosen, container.STATE, 'state', STATES)})"
