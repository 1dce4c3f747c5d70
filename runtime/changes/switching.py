"""The moment of a rollout at which a name and its published ports go from one container to the other.

Whoever calls holds the locks of both. Name, ports, specification and the rollout's own step are one transaction of the
store; the kernel gets the new table of ports in one transaction as well, after it. A daemon that comes back writes that
table from the records anyway.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from runtime.errors import HostUnable
from runtime.life import Change
from runtime.network import flows
from runtime.record import Port
from runtime.spec import NAME_LENGTH, RestartSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.changes.rollout import Side
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.record import Network
    from runtime.spec import Spec

log = logging.getLogger(__name__)


def other_name(name: str, kind: str, container_id: str) -> str:
    """What a container is called while another one has its name: `web.new-3f2a91c0`."""
    ending = f".{kind}-{container_id[:8]}"
    return name[: NAME_LENGTH - len(ending)] + ending


def candidate_spec(old: Spec, name: str, side: Side) -> Spec:
    """The specification of the new container while it proves itself: no ports, and nothing happens by itself."""
    changes: dict[str, Any] = {"name": name, "image": side.image, "ports": ()}
    return old.model_copy(update={**changes, **_QUIET})


def final_spec(old: Spec, name: str, side: Side) -> Spec:
    """What the new container has once it has the name: all of the old one's but the image."""
    return old.model_copy(update={"name": name, "image": side.image})


async def hand_over(
    engine: Engine,
    old: Container,
    new: Container,
    name: str,
    spec: Spec,
    and_also: Callable[[], None],
    **members: object,
) -> None:
    """Give the new container the name and what is published; one that does not run gets the name alone.

    The kernel is told first: from then on new connections reach the new VM, and those that are open go on to the old
    one, whose translation the connection tracker keeps. The old one keeps running with a name of its own, and nothing
    restarts or removes it by itself.

    Raises:
        PortInUse: the old one did not run, and somebody has a port meanwhile.
        HostUnable, DiskFull: nft refused, or it cannot be written. In every case nothing has changed.
    """
    network, address = old.record.network, new.record.network.address if new.record.network else ""
    ports: tuple[Port, ...] = ()
    if network is not None:
        ports = network.ports
        engine.ports.transfer(old.id, new.id)
    elif address:
        ports = engine.ports.reserve(new.id, (Port(**port.model_dump()) for port in spec.ports))
    aside = other_name(name, "old", old.id)
    try:
        if ports and address:
            await engine.supervisor.publish(*((address, port) for port in ports), without=old.id)
        engine.lives.change_together(
            Change(
                old,
                {"name": aside, "network": _with(old.record.network, ()), "retry_at": None},
                old.spec.model_copy(update={"name": aside, **_QUIET}),
            ),
            Change(new, {"name": name, "network": _with(new.record.network, ports), **members}, spec),
            and_also=and_also,
        )
    except BaseException:
        if old.record.network is not None:
            engine.ports.transfer(new.id, old.id)
        else:
            engine.ports.release(new.id)
        await _publish(engine, name)
        raise
    await _publish(engine, name)  # whatever has ended meanwhile
    if address:
        await flows.forget_udp_elsewhere(address, ports)
    elif network is not None:
        await flows.forget_udp(network.address, ports)


async def _publish(engine: Engine, name: str) -> None:
    try:
        await engine.supervisor.publish()
    except HostUnable as err:
        log.warning("the published ports could not be written again after the change of %s: %s", name, err)


def swap_names(engine: Engine, old: Container, new: Container, name: str) -> None:
    """Of two that cannot run at once: give the new one, which does not run yet, the name and the ports to start with.

    Raises:
        DiskFull: it cannot be written; nothing has changed.
    """
    aside = other_name(name, "old", old.id)
    ports = old.record.network.ports if old.record.network else ()
    numbers = tuple(
        one.model_copy(update={"host_port": port.host_port}) for one, port in zip(old.spec.ports, ports, strict=False)
    )
    engine.lives.change_together(
        Change(old, {"name": aside, "retry_at": None}, old.spec.model_copy(update={"name": aside})),
        Change(new, {"name": name}, new.spec.model_copy(update={"name": name, "ports": numbers or old.spec.ports})),
    )


def swap_back(engine: Engine, old: Container, new: Container, name: str) -> None:
    """Undo `swap_names`.

    Raises:
        DiskFull: it cannot be written; nothing has changed.
    """
    aside = other_name(name, "new", new.id)
    engine.lives.change_together(
        Change(new, {"name": aside}, new.spec.model_copy(update={"name": aside, "ports": ()})),
        Change(old, {"name": name}, old.spec.model_copy(update={"name": name})),
    )


_QUIET: dict[str, Any] = {"restart": RestartSpec(), "auto_remove": False}


def _with(network: Network | None, ports: tuple[Port, ...]) -> Network | None:
    return None if network is None else dataclasses.replace(network, ports=ports)
