"""Restart policies: whether a container that has ended is started again, and when.

The rules are Docker's (docs.docker.com, "Start containers automatically"): the first retry comes after 100 ms, each
further one after twice the time of the one before, up to a minute; a container that ran for 10 seconds begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from runtime.record import Desired, Lifecycle
    from runtime.spec import RestartSpec

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 60.0
LONG_RUN_S = 10.0


class Ending(NamedTuple):
    """What follows the end of a container's process, as members of `record.Lifecycle`; `retry_at` None: nothing."""

    desired: Desired
    retry_at: float | None
    retry_delay_s: float


def ending(
    restart: RestartSpec,
    lifecycle: Lifecycle,
    exit_code: int,
    now: float,
    *,
    with_host: bool = False,
    ran: bool = True,
) -> Ending:
    """What follows when a container that nobody asked to stop has ended; `with_host`: because the host went down.

    Not `ran`: it could not be started, and what it ran for before does not count.

    A process that ends with 0 has done what it was for, unless its policy says that it is to run whatever it says.
    One that fails is missed (its desired state stays `running`), also when it is not tried again.
    """
    if restart.policy in {"always", "unless-stopped"}:
        again = True
    elif restart.policy == "on-failure":
        left = not restart.max_retries or lifecycle.retries < restart.max_retries
        again = exit_code != 0 and left and not with_host
    else:
        again = False
    if not again:
        return Ending("stopped" if exit_code == 0 else "running", None, 0.0)
    ran_s = now - lifecycle.started_at if ran and lifecycle.started_at else 0.0
    if with_host or ran_s >= LONG_RUN_S or not lifecycle.retry_delay_s:
        delay_s = FIRST_DELAY_S
    else:
        delay_s = min(2 * lifecycle.retry_delay_s, MAX_DELAY_S)
    return Ending("running", now + delay_s, delay_s)


def left_s(lifecycle: Lifecycle, now: float) -> float:
    """How long to wait for the planned retry; a clock that was set back makes no one wait longer than the delay."""
    return min(max(0.0, (lifecycle.retry_at or now) - now), lifecycle.retry_delay_s)


def at_boot(restart: RestartSpec, lifecycle: Lifecycle) -> bool:
    """Whether a container that does not run is to be started because its host has booted.

    `always` means also what a user has stopped; who does not want that says `unless-stopped`.
    """
    return restart.policy == "always" and lifecycle.epoch > 0
