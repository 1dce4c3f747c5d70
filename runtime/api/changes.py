"""Changes of what a name stands for, and what is done with a container that failed: below `/v1/containers/{ref}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import Field

from runtime import evidence, quarantine, view, workload
from runtime.api.answer import Route
from runtime.api.body import Body
from runtime.changes.rollout import TRIGGERS, Trigger
from runtime.changes.rollouts import Asked, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine import Engine
    from runtime.life import Container

_DAY_S = 86400
_DIGEST = r"^sha256:[0-9a-f]{64}$"


class AskedBody(Body):
    """Who wants it, and why; a call with the `request_id` of one that was carried out does nothing again."""

    actor: str = Field("user", min_length=1, max_length=128)
    reason: str = Field("", max_length=2048)
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,64}$")

    def asked(self) -> Asked:
        """The same, for the engine."""
        return Asked(self.actor, self.reason, self.request_id)


class ChangeBody(AskedBody):
    """The new image, which digest it must have here (null: any), and how careful to be; times are seconds."""

    image: str = Field(min_length=1, max_length=512)
    expected_digest: str | None = Field(None, pattern=_DIGEST)
    canary_s: float = Field(0.0, ge=0, le=_DAY_S)
    timeout_s: float = Field(120.0, gt=0, le=_DAY_S)
    watch_s: float = Field(0.0, ge=0, le=7 * _DAY_S)
    drain_s: float = Field(10.0, ge=0, le=_DAY_S)
    rollback_on: tuple[Trigger, ...] = TRIGGERS


class RollbackBody(AskedBody):
    """To which image; null: to the one that proved good last."""

    to_digest: str | None = Field(None, pattern=_DIGEST)


class EvidenceBody(AskedBody):
    """What the caller has of its own to be kept beside it: samples in any text form."""

    samples: str | None = Field(None, max_length=evidence.MAX_SAMPLES_CHARS)


class ChangesApi:
    """Over the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/containers/{ref}", route_class=Route)
        router.post("/change")(self.change)
        router.post("/rollback")(self.rollback)
        router.get("/rollouts")(self.rollouts)
        router.get("/history")(self.history)
        router.post("/redeploy")(self.redeploy)
        router.post("/quarantine")(self.quarantine)
        router.post("/evidence")(self.evidence)
        return router

    async def change(self, ref: str, body: ChangeBody) -> dict[str, Any]:
        """Change its image."""
        terms = Terms(body.canary_s, body.timeout_s, body.watch_s, body.drain_s, body.rollback_on)
        changed = self._engine.rollouts.change(ref, body.image, terms, body.asked(), body.expected_digest)
        return (await changed).to_dict()

    async def rollback(self, ref: str, body: RollbackBody | None = None) -> dict[str, Any]:
        """Go back to an earlier image."""
        body = body or RollbackBody()
        return (await self._engine.rollouts.rollback(ref, body.to_digest, body.asked())).to_dict()

    async def rollouts(self, ref: str) -> list[dict[str, Any]]:
        """Its rollouts, the newest first."""
        return [one.to_dict() for one in self._engine.rollouts.rollouts(ref)]

    async def history(self, ref: str) -> list[dict[str, Any]]:
        """What its name has stood for, the newest first."""
        return [one.to_dict() for one in self._engine.rollouts.history(ref)]

    async def redeploy(self, ref: str, body: AskedBody | None = None) -> dict[str, Any]:
        """Replace its VM by a fresh one of the same image digest."""
        body = body or AskedBody()
        one = self._engine.lives.find(ref)

        async def work(tell: Callable[[dict[str, Any]], None]) -> None:
            await self._engine.redeploy(one.id, body.actor, body.reason, lambda: tell({"done": True}))

        await self._engine.requests.once(body.request_id, "redeploy", one.record.name, work)
        return await self._view(one)

    async def quarantine(self, ref: str, body: AskedBody | None = None) -> dict[str, Any]:
        """Keep it from working, as it is."""
        body = body or AskedBody()
        one = self._engine.lives.find(ref)

        async def work(tell: Callable[[dict[str, Any]], None]) -> None:
            await quarantine.begin(self._engine, one, body.reason, body.actor, lambda: tell({"done": True}))

        await self._engine.requests.once(body.request_id, "quarantine", one.record.name, work)
        return await self._view(one)

    async def evidence(self, ref: str, body: EvidenceBody | None = None) -> dict[str, Any]:
        """Save what it is like now."""
        body = body or EvidenceBody()
        one = self._engine.lives.find(ref)

        async def work(tell: Callable[[dict[str, Any]], None]) -> None:
            saved = await evidence.save(self._engine, one, body.reason, body.actor, body.samples)
            self._engine.store.audit(body.actor, "evidence", one.record, body.reason, "done", {"path": saved["path"]})
            tell(saved)

        return await self._engine.requests.once(body.request_id, "evidence", one.record.name, work)

    async def _view(self, one: Container) -> dict[str, Any]:
        image = await self._engine.images.resolve(one.record.image_digest)
        return view.container(one, workload.arguments(one.spec, image))
