"""Quarantine: a container is kept from working, with everything that it is, until a person has looked at it.

Nothing reaches it any more (its ports are unpublished, though nobody else gets them), what runs is paused, and its
restart policy does not start it. `start` and `unpause` lift that. A VM whose QEMU does not answer cannot be paused; it
is cut off all the same.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import TYPE_CHECKING

from runtime.errors import Conflict, GuestFailed
from runtime.events import of_container
from runtime.network import flows
from runtime.record import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine import Engine
    from runtime.life import Container

log = logging.getLogger(__name__)


def demand_none(container: Container) -> None:
    """Refuse what would change one that is kept as it was.

    Raises:
        Conflict: it is in quarantine.
    """
    if container.record.quarantine is not None:
        name = container.record.name
        raise Conflict(
            f"{name} is in quarantine, and what it was is kept: lift that first (hyper start {name})", field="container"
        )


async def begin(
    engine: Engine, container: Container, reason: str, actor: str, done: Callable[[], None] = lambda: None
) -> None:
    """Put a container into quarantine; one that is in it already stays as it is.

    Args:
        engine: Whose container it is.
        container: In whatever state.
        reason: Why.
        actor: Who wants it.
        done: Called when it is done, before the journal forgets it.

    Raises:
        Conflict: its image is being changed.
        HostUnable: nft refused; it is in quarantine, and its ports may be open.
    """
    async with container.lock:
        engine.rollouts.demand_none(container)
        if container.record.quarantine is None:
            with engine.operation(container, "quarantine", "quarantine"):
                network = container.record.network
                ports = network.ports if network is not None else ()
                engine.lives.change(
                    container,
                    desired="stopped",
                    retry_at=None,
                    quarantine=Quarantine(time.time(), reason, actor, ports),
                    network=None if network is None else dataclasses.replace(network, ports=()),
                )
                await hold_still(engine, container)
                if ports and network is not None:
                    await engine.supervisor.publish()
                    await flows.forget_udp(network.address, ports)
                engine.store.audit(actor, "quarantine", container.record, reason, "done", {"state": container.state})
                done()
                return
        done()


async def hold_still(engine: Engine, container: Container) -> None:
    """Pause one in quarantine that runs, as far as its QEMU obeys; the journal knows of it."""
    if container.state != "running":
        return
    try:
        await engine.supervisor.pause(container)
    except GuestFailed as err:
        log.warning("container %s is in quarantine but could not be paused: %s", container.record.name, err)
    else:
        engine.lives.change(container, "paused")


async def lift(engine: Engine, container: Container) -> None:
    """Let a container whose VM is there go on, with its ports; the caller holds its lock.

    Raises:
        GuestFailed: QEMU does not answer; it stays in quarantine.
        HostUnable: nft refused; it goes on, and its ports are not published.
    """
    quarantine, network = container.record.quarantine, container.record.network
    if quarantine is None or network is None:
        raise Conflict(f"{container.record.name} is not in quarantine", field="container")
    with engine.operation(container, "unquarantine"):
        await engine.supervisor.resume(container)  # also one that runs: QEMU may have paused it without an answer
        engine.lives.change(
            container,
            "running",
            desired="running",
            quarantine=None,
            network=dataclasses.replace(network, ports=quarantine.ports),
        )
        if quarantine.ports:
            await engine.supervisor.publish()
            await flows.forget_udp_elsewhere(network.address, quarantine.ports)
    engine.events.tell(of_container(container.record, "quarantine: lifted"))
