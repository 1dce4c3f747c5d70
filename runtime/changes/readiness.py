"""When a new container is fit to take over: it runs, is healthy, and accepts where the old one does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from runtime.changes import signals
from runtime.errors import RuntimeFault
from runtime.evidence import last_lines

if TYPE_CHECKING:
    from collections.abc import Collection

    from runtime.life import Container

SETTLE_S = 1.0
"""Without a health check, a container that has run for so long is taken to have come up."""

_POLL_S = 0.05
_MAX_OUTPUT_CHARACTERS = 600


class NotReady(RuntimeFault):
    """The new container ended, or its health check failed for good; the text says which, and what it wrote last."""


async def accepted_ports(container: Container) -> frozenset[int]:
    """Published tcp ports of a container at which it accepts connections now."""
    network = container.record.network
    numbers = {port.container_port for port in network.ports if port.protocol == "tcp"} if network else set()
    answers = {number: await signals.accepts(container, number) for number in numbers}
    return frozenset(number for number, accepted in answers.items() if accepted)


async def ready(container: Container, ports: Collection[int]) -> None:
    """Wait until the container has come up; the caller bounds the time.

    Raises:
        NotReady: it never will.
    """
    epoch = container.record.lifecycle.epoch
    left = set(ports)
    while True:
        still_runs(container, epoch)
        lifecycle = container.record.lifecycle
        if lifecycle.health == "unhealthy":
            output = container.checks[-1].output if container.checks else ""
            raise NotReady(f"its health check fails: {_cut(output) or 'without a word'}")
        settled = lifecycle.health == "healthy"
        if lifecycle.health == "none":
            settled = time.time() - (lifecycle.started_at or 0.0) >= SETTLE_S
        if settled:
            left -= {port for port in left if await signals.accepts(container, port)}
            if not left:
                still_runs(container, epoch)
                return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await container.changed.wait()


def still_runs(container: Container, epoch: int) -> None:
    """Raise NotReady if the container has ended, or has been started again, since it had this epoch."""
    lifecycle = container.record.lifecycle
    if lifecycle.state not in {"starting", "running", "paused"} or lifecycle.epoch != epoch:
        why = "it was killed for its memory" if lifecycle.oom_killed else f"it ended with {lifecycle.exit_code}"
        written = _cut(last_lines(container.log_path))
        raise NotReady(why + (f"; it wrote last: {written}" if written else ""))


def waits_for(container: Container, ports: Collection[int]) -> str:
    """What a container that is not ready in time lacks."""
    health = container.record.lifecycle.health
    if health == "starting":
        return "its health check has not succeeded"
    return f"it does not accept connections at {', '.join(map(str, sorted(ports)))}" if ports else "it did not come up"


def _cut(text: str) -> str:
    return " ".join(text.split())[-_MAX_OUTPUT_CHARACTERS:]
