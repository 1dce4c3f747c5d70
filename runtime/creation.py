"""Making a container: its record, its name, its slot, its directories; undone as a whole if a step fails."""

from __future__ import annotations

import math
import secrets
import time
from typing import TYPE_CHECKING

from runtime import labels, names, workload
from runtime.errors import HostUnable, InvalidInput
from runtime.events import of_container
from runtime.record import PULL, Lifecycle, Limits, Port, Record
from runtime.signals import signal_number
from runtime.spec import SIZE_DISK_BYTES, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.config import Config
    from runtime.engine import Engine
    from runtime.images.image import Image
    from runtime.life import Container
    from runtime.spec import Spec


async def create(engine: Engine, spec: Spec, pulled_s: float | None = None) -> Container:
    """Make a container that can be started: the first revision of its name, or the next.

    Args:
        engine: What makes it.
        spec: What it is to be.
        pulled_s: How long its image was pulled for it, if it was: a phase of its first start.

    Raises:
        ImageUnknown, NameInUse, PortInUse, InvalidInput, HostUnable, DiskFull: nothing is left of it then.
    """
    with engine.counts.operation("create"):
        image = await engine.images.resolve(spec.image)
        check_command(spec, image)
        spec, anonymous = engine.volumes.resolve(spec)
        record = _record(engine, spec, image, {} if pulled_s is None else {PULL: pulled_s})
        _check_ports(engine, spec)
        return await add(engine, spec, record, lambda: engine.book.created(record, "user"), anonymous)


async def add(
    engine: Engine, spec: Spec, record: Record, note: Callable[[], None], anonymous: frozenset[str] = frozenset()
) -> Container:
    """Make the container of a record; what `note` writes to the store is there if, and only if, the container is.

    Raises:
        NameInUse, HostUnable, DiskFull: nothing is left of it then.
    """
    engine.store.reserve.demand_room()
    with engine.store.transaction():
        slot, operation = engine.store.insert(spec, record, of_container(record, "create"))
        note()
    engine.events.wake()
    container = engine.container(slot, spec, record)
    try:
        _check_slot(slot, engine.config)
        container.data_directory.mkdir(mode=0o700, parents=True)
        await engine.volumes.ensure(spec, anonymous)
        engine.lives.add(container)
    except BaseException:
        await engine.erase(container)
        raise
    engine.store.end(operation)
    return container


def check_command(spec: Spec, image: Image) -> None:
    """See that there is something to run, and a signal to stop it by.

    Raises:
        InvalidInput: there is not.
    """
    if not workload.arguments(spec, image):
        raise InvalidInput(
            f"no command: the image {spec.image} has neither Entrypoint nor Cmd, so name one", field="args"
        )
    signal_number(spec.stop_signal or image.config.stop_signal or "TERM", "stop_signal")


def limits(spec: Spec, config: Config) -> Limits:
    """What the container may use: its own figures, then those of its size, then the configured ones."""
    cpus, memory_bytes, disk_bytes = spec.cpus, spec.memory_bytes, config.default_disk_bytes
    if spec.size is not None:
        cores, megabytes = SIZES[spec.size]
        cpus = cpus or float(cores)
        memory_bytes = memory_bytes or megabytes * 1024**2
        disk_bytes = SIZE_DISK_BYTES
    return Limits(memory_bytes or config.default_memory_bytes, math.ceil(cpus or 1), cpus, disk_bytes)


def _record(engine: Engine, spec: Spec, image: Image, phases: Mapping[str, float]) -> Record:
    name = spec.name or names.choose({one.record.name for one in engine.lives.all()})
    return Record(
        id=secrets.token_hex(32),
        name=name,
        image=spec.image,
        image_digest=image.digest,
        limits=limits(spec, engine.config),
        lifecycle=Lifecycle("created", "stopped", time.time()),
        tenant=spec.tenant,
        project=spec.project,
        labels=labels.of_container(image.config.labels, spec.labels),
        start_phases=phases,
        revision=engine.book.last_revision(spec.tenant, name) + 1,
    )


def _check_ports(engine: Engine, spec: Spec) -> None:
    """Find out early that a port is taken: a start would fail, and leave a container behind."""
    engine.ports.reserve("check", tuple(Port(**port.model_dump()) for port in spec.ports))
    engine.ports.release("check")


def _check_slot(slot: int, config: Config) -> None:
    """A slot is an address: the subnet has one for each but itself, the bridge and the broadcast address."""
    prefix = int(config.subnet.partition("/")[2])
    if slot >= (1 << (32 - prefix)) - 3:
        raise HostUnable(f"the subnet {config.subnet} has no address left: remove containers")
