"""Answers that are sent piece by piece, to a client that may go away at any time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi.responses import StreamingResponse

from runtime.errors import RuntimeFault

log = logging.getLogger(__name__)


class Streaming(StreamingResponse):
    """Closes what it streams at once when the client goes away, not when the collector of garbage comes.

    It is cancelled once. Starlette would cancel it again at each `await` with which it cleans up, so that a lock was
    given back, or the answer over, before what it stood for had ended.

    What breaks off is not ended: the server closes the connection, and the client knows.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        streaming = asyncio.create_task(self.stream_response(send))
        leaving = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            streaming.cancel()
            leaving.cancel()
            await asyncio.wait({streaming, leaving})
            if hasattr(self.body_iterator, "aclose"):
                await self.body_iterator.aclose()
        if not streaming.cancelled():
            try:
                streaming.result()
            except RuntimeFault as err:
                log.warning("%s broke off: %s", scope["path"], err.message)
