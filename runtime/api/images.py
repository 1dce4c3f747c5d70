"""Images: `/v1/images`."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from runtime.api.body import Body
from runtime.errors import RuntimeFault
from runtime.images.access import Access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.engine import Engine
    from runtime.images.image import Progress

log = logging.getLogger(__name__)


class PullBody(Body):
    """What to pull; `tls_verify` null: verify, except for registries known to have no TLS."""

    reference: str = Field(min_length=1, max_length=512)
    tls_verify: bool | None = None


class ImagesApi:
    """Over the engine's image store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/images")
        router.get("")(self.images)
        router.post("/pull")(self.pull)
        router.delete("/{reference:path}", status_code=204)(self.untag)
        router.get("/{reference:path}")(self.image)
        return router

    async def images(self) -> list[dict[str, Any]]:
        """All images."""
        return [image.to_dict() for image in await self._engine.images.list()]

    async def image(self, reference: str) -> dict[str, Any]:
        """One image."""
        return (await self._engine.images.resolve(reference)).to_dict()

    async def pull(self, body: PullBody) -> StreamingResponse:
        """Pull an image, telling of the progress."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def tell(progress: Progress) -> None:
            events.put_nowait(progress.to_dict())

        async def pull() -> None:
            try:
                access = Access(body.tls_verify)
                image = await self._engine.images.pull(body.reference, access=access, progress=tell)
                events.put_nowait({"image": image.to_dict()})
            except RuntimeFault as err:
                events.put_nowait(err.to_dict())
            except Exception:
                log.exception("pull of %s", body.reference)
                events.put_nowait(RuntimeFault("the pull failed: see the daemon's log").to_dict())
            finally:
                events.put_nowait(None)

        async def lines() -> AsyncIterator[bytes]:
            # A client that goes away ends the pull, and with it all that it had half-made.
            task = asyncio.create_task(pull())
            try:
                while (event := await events.get()) is not None:
                    yield json.dumps(event).encode() + b"\n"
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def untag(self, reference: str) -> None:
        """Take a name from an image."""
        await self._engine.images.untag(reference, self._engine.images_in_use)
