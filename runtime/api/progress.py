"""Answers that tell of progress: a JSON line for each step, at last the result or the error."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from runtime.api.streaming import Streaming
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AsyncExitStack

    from runtime.images.image import Progress

log = logging.getLogger(__name__)


def answer(
    what: str,
    work: Callable[[Callable[[Progress], None]], Awaitable[dict[str, Any]]],
    held: AsyncExitStack | None = None,
) -> Streaming:
    """Do some work while its progress is sent; a client that goes away ends it, with all that it had half-made.

    Args:
        what: Names the work in the log if it fails for a reason of our own.
        work: Is given what to tell its progress to; gives the last line.
        held: Closed when all is over.
    """
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def run() -> None:
        try:
            events.put_nowait(await work(lambda step: events.put_nowait(step.to_dict())))
        except RuntimeFault as err:
            events.put_nowait(err.to_dict())
        except Exception:
            log.exception("%s", what)
            events.put_nowait(RuntimeFault(f"{what} failed: see the daemon's log").to_dict())
        finally:
            events.put_nowait(None)

    async def lines() -> AsyncIterator[bytes]:
        task = asyncio.create_task(run())
        try:
            while (event := await events.get()) is not None:
                yield json.dumps(event).encode() + b"\n"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if held is not None:
                await held.aclose()

    return Streaming(lines(), media_type="application/x-ndjson")
