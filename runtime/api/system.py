"""The daemon and its host: ping, version, info, audit, events."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from runtime.api.answer import Route
from runtime.api.streaming import Streaming
from runtime.events import Wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from runtime.engine import Engine

Values = Annotated[Sequence[str], Query(max_length=64)]


class SystemApi:
    """`about` is what `info` and `version` say of the host and the programs."""

    def __init__(self, engine: Engine, about: Mapping[str, Any]) -> None:
        self._engine = engine
        self._about = about

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", route_class=Route)
        router.get("/ping")(self.ping)
        router.get("/version")(self.version)
        router.get("/info")(self.info)
        router.get("/audit")(self.audit)
        router.get("/events")(self.events)
        return router

    async def ping(self) -> dict[str, Any]:
        """Whether the daemon lives."""
        return {"pid": os.getpid(), "version": self._about["version"]}

    async def version(self) -> dict[str, Any]:
        """Versions of all that makes a container run."""
        return {name: self._about[name] for name in ("version", "qemu_version", "kernel", "accel", "api")}

    async def info(self) -> dict[str, Any]:
        """The host: how it runs VMs, and what is on it."""
        import psutil  # here: nobody asks while the daemon comes back

        containers = self._engine.lives.all()
        states = [one.state for one in containers]
        return {
            **self._about,
            "cpus": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "containers": len(containers),
            "running": states.count("running"),
            "paused": states.count("paused"),
            "stopped": sum(state in {"exited", "dead"} for state in states),
            "images": len(await self._engine.images.list()),
            **self._engine.counts.gauges(),
        }

    async def audit(self, limit: Annotated[int, Query(ge=1, le=10000)] = 100) -> list[dict[str, Any]]:
        """Who did what, the newest first."""
        return self._engine.store.audit_log(limit)

    async def events(
        self,
        *,
        since: Annotated[float | None, Query(ge=0)] = None,
        until: Annotated[float | None, Query(ge=0)] = None,
        container: Values = (),
        event: Values = (),
        image: Values = (),
        label: Values = (),
        type: Values = (),  # noqa: A002 -- Docker's name
    ) -> Streaming:
        """What happens: from `since` (seconds since 1970; else from now) to `until` (else without an end)."""
        wanted = Wanted(tuple(container), tuple(event), tuple(image), tuple(label), tuple(type))
        found = self._engine.events.read(wanted, _ns(since), _ns(until))

        async def lines() -> AsyncIterator[bytes]:
            async for one in found:
                yield json.dumps(one.to_dict()).encode() + b"\n"

        return Streaming(lines(), media_type="application/x-ndjson")


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(min(seconds, 9e9) * 1e9)
