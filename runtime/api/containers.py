"""Containers and their life: `/v1/containers`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from runtime import adjust, processes, view, workload
from runtime.api import effective, invalid
from runtime.api.answer import Route
from runtime.api.body import Body
from runtime.errors import PortInUse
from runtime.record import Port
from runtime.spec import MAX_CPUS, MAX_MEMORY_BYTES, MIN_MEMORY_BYTES, PortSpec, RestartSpec, Spec

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.network.ports import PortReservations

MAX_PULL_S = 7 * 86400.0
Options = Annotated[Sequence[str], Query(max_length=64)]
Pulled = Annotated[float | None, Query(ge=0, le=MAX_PULL_S)]


class StopBody(Body):
    """Which signal, and how long to wait before the kill; null: as the container says."""

    timeout_s: float | None = Field(None, ge=0, le=86400)
    signal: str | None = Field(None, min_length=1, max_length=16)


class KillBody(Body):
    """Which signal."""

    signal: str = Field("KILL", min_length=1, max_length=16)


class RenameBody(Body):
    """The new name."""

    name: str = Field(min_length=1, max_length=128)


class UpdateBody(Body):
    """What is to change; null: stays."""

    memory_bytes: int | None = Field(None, ge=MIN_MEMORY_BYTES, le=MAX_MEMORY_BYTES)
    cpus: float | None = Field(None, gt=0, le=MAX_CPUS)
    restart: RestartSpec | None = None


class ContainersApi:
    """Over the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/containers", route_class=Route)
        router.get("")(self.containers)
        router.post("", status_code=201)(self.create)
        router.get("/{ref}")(self.inspect)
        router.post("/{ref}/start")(self.start)
        router.post("/{ref}/stop")(self.stop)
        router.post("/{ref}/kill", status_code=204)(self.kill)
        router.post("/{ref}/restart")(self.restart)
        router.post("/{ref}/pause", status_code=204)(self.pause)
        router.post("/{ref}/unpause", status_code=204)(self.unpause)
        router.post("/{ref}/rename", status_code=204)(self.rename)
        router.post("/{ref}/update")(self.update)
        router.get("/{ref}/top")(self.top)
        router.delete("/{ref}", status_code=204)(self.remove)
        router.post("/{ref}/wait")(self.wait)
        return router

    async def containers(self, *, all: bool = False, size: bool = False) -> list[dict[str, Any]]:  # noqa: A002 -- Docker's name
        """Containers, the newest first; only those that run, or are about to be started again, unless `all`."""
        chosen = [one for one in self._engine.lives.all() if all or not one.over]
        return [await self._view(one, size=size) for one in reversed(chosen)]

    async def create(self, spec: Spec, pulled_s: Pulled = None) -> dict[str, Any]:
        """Create a container; `pulled_s` is how long the client has pulled its image for it."""
        invalid.check_directory(spec.cwd)
        one = await self._engine.create(settled(spec, self._engine.ports), pulled_s)
        return {"id": one.id, "name": one.record.name, "warnings": []}

    async def inspect(self, ref: str, *, size: bool = False) -> dict[str, Any]:
        """One container, and what it is together with its image."""
        one = self._engine.lives.find(ref)
        shown = await self._view(one, size=size)
        image = await self._engine.images.resolve(one.record.image_digest)
        if shown["network"] is not None:
            shown["network"] |= effective.network(self._engine.config.subnet)
        config = effective.config(one.spec, image.config, one.record.labels)
        return {**shown, "config": config, "log_file": str(one.log_path)}

    async def start(self, ref: str) -> dict[str, Any]:
        """Start it."""
        return await self._view(await self._engine.start(ref))

    async def stop(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop it."""
        body = body or StopBody()
        return await self._view(await self._engine.stop(ref, body.timeout_s, body.signal))

    async def kill(self, ref: str, body: KillBody | None = None) -> None:
        """Send it a signal."""
        await self._engine.kill(ref, (body or KillBody()).signal)

    async def restart(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop and start it."""
        body = body or StopBody()
        return await self._view(await self._engine.restart(ref, body.timeout_s, body.signal))

    async def pause(self, ref: str) -> None:
        """Stop all that runs in it."""
        await adjust.pause(self._engine, ref)

    async def unpause(self, ref: str) -> None:
        """Let it go on."""
        await adjust.unpause(self._engine, ref)

    async def rename(self, ref: str, body: RenameBody) -> None:
        """Give it another name."""
        await adjust.rename(self._engine, ref, body.name)

    async def update(self, ref: str, body: UpdateBody) -> dict[str, Any]:
        """Change its limits and restart policy."""
        changed = await adjust.update(
            self._engine, ref, memory_bytes=body.memory_bytes, cpus=body.cpus, restart=body.restart
        )
        return await self._view(changed)

    async def top(self, ref: str, option: Options = ()) -> dict[str, Any]:
        """The processes that run in it, by options of ps."""
        return await processes.top(self._engine.lives.find(ref), option)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it."""
        await self._engine.remove(ref, force=force, volumes=volumes)

    async def wait(self, ref: str) -> dict[str, Any]:
        """Wait until it does not run, and will not by its restart policy."""
        one = self._engine.lives.find(ref)
        while not one.over:
            await one.changed.wait()
        lifecycle = one.record.lifecycle
        return {"exit_code": lifecycle.exit_code, "oom_killed": lifecycle.oom_killed, "error": lifecycle.error}

    async def _view(self, one: Container, *, size: bool = False) -> dict[str, Any]:
        image = await self._engine.images.resolve(one.record.image_digest)
        shown = view.container(one, workload.arguments(one.spec, image))
        return {**shown, **view.sizes(one, image)} if size else shown


def settled(spec: Spec, ports: PortReservations) -> Spec:
    """A specification whose ranges of host ports have become the first ports of them that are free now.

    Raises:
        PortInUse: all of a range are taken.
    """
    if all(port.host_port_last is None for port in spec.ports):
        return spec
    holder = f"ranges {secrets.token_hex(8)}"
    chosen: list[PortSpec] = []
    try:
        for port in spec.ports:
            last = port.host_port_last or port.host_port
            for number in range(port.host_port, last + 1):
                one = port.model_copy(update={"host_port": number, "host_port_last": None})
                try:
                    ports.reserve(holder, tuple(Port(**each.model_dump()) for each in (*chosen, one)))
                except PortInUse:
                    if number == last:
                        raise
                else:
                    chosen.append(one)
                    break
    finally:
        ports.release(holder)
    return spec.model_copy(update={"ports": tuple(chosen)})
