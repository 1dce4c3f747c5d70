"""The daemon and its host: `/v1/ping`, `/v1/version`, `/v1/info`, `/v1/audit`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engine import Engine


class SystemApi:
    """`about` is what `info` and `version` say of the host and the programs."""

    def __init__(self, engine: Engine, about: Mapping[str, Any]) -> None:
        self._engine = engine
        self._about = about

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        router.get("/ping")(self.ping)
        router.get("/version")(self.version)
        router.get("/info")(self.info)
        router.get("/audit")(self.audit)
        return router

    async def ping(self) -> dict[str, Any]:
        """Whether the daemon lives."""
        return {"pid": os.getpid(), "version": self._about["version"]}

    async def version(self) -> dict[str, Any]:
        """Versions of all that makes a container run."""
        return {name: self._about[name] for name in ("version", "qemu_version", "kernel", "accel", "api")}

    async def info(self) -> dict[str, Any]:
        """The host: how it runs VMs, and what is on it."""
        containers = self._engine.lives.all()
        states = [one.state for one in containers]
        return {
            **self._about,
            "containers": len(containers),
            "running": states.count("running"),
            "stopped": sum(state in {"exited", "dead"} for state in states),
            "images": len(await self._engine.images.list()),
            **self._engine.counts.gauges(),
        }

    async def audit(self, limit: Annotated[int, Query(ge=1, le=10000)] = 100) -> list[dict[str, Any]]:
        """Who did what, the newest first."""
        return self._engine.store.audit_log(limit)
