"""What changes a container that goes on being itself: pause, unpause, rename, update."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from runtime import quarantine
from runtime.errors import Conflict, InvalidInput
from runtime.events import of_container
from runtime.spec import NAME_PATTERN, Spec

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.spec import RestartSpec


async def pause(engine: Engine, reference: str) -> None:
    """Stop all that runs in it, until `unpause`.

    Raises:
        Conflict: it does not run, or is paused already.
        GuestFailed: QEMU does not answer; it goes on, at the latest when QEMU answers again.
    """
    container = engine.lives.find(reference)
    async with container.lock:
        _demand(container, "running", "not running")
        with engine.operation(container, "pause"):
            await engine.supervisor.pause(container)
            engine.lives.change(container, "paused")


async def unpause(engine: Engine, reference: str) -> None:
    """Let it go on.

    Raises:
        Conflict: it is not paused.
        GuestFailed: QEMU does not answer; it stays paused.
    """
    container = engine.lives.find(reference)
    async with container.lock:
        if container.record.quarantine is not None and container.live:
            await quarantine.lift(engine, container)
            return
        _demand(container, "paused", "not paused")
        with engine.operation(container, "unpause"):
            await engine.supervisor.resume(container)
            engine.lives.change(container, "running")


async def rename(engine: Engine, reference: str, name: str) -> None:
    """Give it another name.

    Raises:
        InvalidInput, NameInUse: it keeps its name.
        Conflict: its image is being changed.
    """
    container = engine.lives.find(reference)
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidInput(
            f"{name!r} is no name: write letters, digits, '_', '.' and '-', the first a letter or digit", field="name"
        )
    async with container.lock:
        engine.rollouts.demand_none(container)
        with engine.operation(container, "rename"):
            spec, record = container.spec.model_copy(update={"name": name}), container.record
            engine.lives.change(
                container,
                spec=spec,
                name=name,
                and_also=lambda: engine.book.rename(record.tenant, record.name, name),
            )


async def update(
    engine: Engine, reference: str, *, memory_bytes: int | None, cpus: float | None, restart: RestartSpec | None
) -> Container:
    """Change limits and restart policy; None leaves one as it is.

    Of a container that runs, the CPUs change at once within what its guest was given at its start; its memory cannot.

    Raises:
        Conflict: a limit cannot change while it runs; nothing has changed.
    """
    container = engine.lives.find(reference)
    async with container.lock:
        engine.rollouts.demand_none(container)
        given = {"memory_bytes": memory_bytes, "cpus": cpus, "restart": restart}
        members = {name: value for name, value in given.items() if value is not None}
        # The same checks as at its creation: a policy beside auto_remove, above all.
        try:
            spec = Spec.model_validate({**container.spec.model_dump(), **members})
        except ValidationError as err:
            first = err.errors()[0]
            raise InvalidInput(
                str(first["msg"]).removeprefix("Value error, "), field=".".join(map(str, first["loc"]))
            ) from err
        limits = container.record.limits
        if memory_bytes is not None:
            limits = dataclasses.replace(limits, memory_bytes=memory_bytes)
        if cpus is not None:
            vcpus = limits.vcpus if container.live else math.ceil(cpus)
            limits = dataclasses.replace(limits, cpu_quota=cpus, vcpus=vcpus)
        if container.live:
            _demand_possible(container, memory_bytes, cpus)
        with engine.operation(container, "update"):
            # A policy that was taken away makes no more starts.
            forgets = container.waits_to_retry and spec.restart.policy == "no"
            retry_at = None if forgets else container.record.lifecycle.retry_at
            engine.lives.change(container, spec=spec, limits=limits, retry_at=retry_at)
            engine.limit(container)
        engine.events.tell(of_container(container.record, "update"))
    return container


def _demand(container: Container, state: str, complaint: str) -> None:
    if container.state != state:
        name = container.record.name
        what = "already paused" if container.state == "paused" else complaint
        raise Conflict(f"the container {name} is {what} (it is {container.state})", field="container")


def _demand_possible(container: Container, memory_bytes: int | None, cpus: float | None) -> None:
    name, vm, limits = container.record.name, container.record.vm, container.record.limits
    remedy = f"stop it, update it and start it again (hyper stop {name})"
    if memory_bytes is not None and memory_bytes != limits.memory_bytes:
        raise Conflict(f"the memory of {name} cannot change while its micro-VM runs: {remedy}", field="memory_bytes")
    most = None if vm is None else min(vm.vcpus, vm.cpu_quota or vm.vcpus)
    if cpus is not None and most is not None and cpus > most:
        raise Conflict(
            f"the micro-VM of {name} was started with {most:g} CPUs and cannot get {cpus:g}: {remedy}", field="cpus"
        )
