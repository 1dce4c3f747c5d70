"""Containers and their life: `/v1/containers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import Field

from runtime import startup, view
from runtime.api.body import Body
from runtime.spec import Spec

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.life import Container


class StopBody(Body):
    """How long to wait before the kill; null: as the container says."""

    timeout_s: float | None = Field(None, ge=0, le=86400)


class KillBody(Body):
    """Which signal."""

    signal: str = Field("KILL", min_length=1, max_length=16)


class RedeployBody(Body):
    """Who wants it, and why; for the audit log."""

    actor: str = Field("user", min_length=1, max_length=128)
    reason: str = Field("", max_length=2048)


class ContainersApi:
    """Over the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/containers")
        router.get("")(self.containers)
        router.post("", status_code=201)(self.create)
        router.get("/{ref}")(self.inspect)
        router.post("/{ref}/start")(self.start)
        router.post("/{ref}/stop")(self.stop)
        router.post("/{ref}/kill", status_code=204)(self.kill)
        router.post("/{ref}/restart")(self.restart)
        router.post("/{ref}/redeploy")(self.redeploy)
        router.delete("/{ref}", status_code=204)(self.remove)
        router.post("/{ref}/wait")(self.wait)
        return router

    async def containers(self, *, all: bool = False) -> list[dict[str, Any]]:  # noqa: A002 -- Docker's name
        """Containers, the newest first; only those with a VM unless `all`."""
        chosen = [one for one in self._engine.lives.all() if all or one.live]
        return [await self._view(one) for one in reversed(chosen)]

    async def create(self, spec: Spec) -> dict[str, Any]:
        """Create a container."""
        one = await self._engine.create(spec)
        return {"id": one.id, "name": one.record.name, "warnings": []}

    async def inspect(self, ref: str) -> dict[str, Any]:
        """One container."""
        return await self._view(self._engine.lives.find(ref))

    async def start(self, ref: str) -> dict[str, Any]:
        """Start it."""
        return await self._view(await self._engine.start(ref))

    async def stop(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop it."""
        return await self._view(await self._engine.stop(ref, body.timeout_s if body else None))

    async def kill(self, ref: str, body: KillBody | None = None) -> None:
        """Send it a signal."""
        await self._engine.kill(ref, (body or KillBody()).signal)

    async def restart(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop and start it."""
        return await self._view(await self._engine.restart(ref, body.timeout_s if body else None))

    async def redeploy(self, ref: str, body: RedeployBody | None = None) -> dict[str, Any]:
        """Replace its VM by a fresh one of the same image digest."""
        body = body or RedeployBody()
        return await self._view(await self._engine.redeploy(ref, body.actor, body.reason))

    async def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove it."""
        await self._engine.remove(ref, force=force)

    async def wait(self, ref: str) -> dict[str, Any]:
        """Wait until it does not run."""
        one = self._engine.lives.find(ref)
        while one.live:
            await one.changed.wait()
        lifecycle = one.record.lifecycle
        return {"exit_code": lifecycle.exit_code, "oom_killed": lifecycle.oom_killed, "error": lifecycle.error}

    async def _view(self, one: Container) -> dict[str, Any]:
        image = await self._engine.images.resolve(one.record.image_digest)
        return view.container(one, startup.arguments(one.spec, image))
