"""The exporter's last samples, read by whoever decides or keeps evidence: lines of its answer, and no more of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httpx

from alerts.errors import NoSamples

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 5.0
MAX_SCRAPE_BYTES: Final = 64 << 20
MAX_SAMPLES_BYTES: Final = 4 << 20


class Exporter:
    """Asks the exporter of this host."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/metrics"

    async def lines(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The lines of its answer that are wanted, `MAX_SAMPLES_BYTES` of them at most.

        Raises:
            NoSamples: it does not answer, or not in time.
        """
        found = bytearray()
        rest, seen = b"", 0
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
                client.stream("GET", self._url) as answer,
            ):
                answer.raise_for_status()
                async for piece in answer.aiter_bytes():
                    seen += len(piece)
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if wanted(line) and len(found) + len(line) < MAX_SAMPLES_BYTES:
                            found += line + b"\n"
                    if seen > MAX_SCRAPE_BYTES:
                        break
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as err:
            raise NoSamples(str(err) or type(err).__name__) from err
        return bytes(found)
