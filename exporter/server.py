"""The HTTP side: `/metrics`, `/stats`, `/healthz`, as a bare ASGI application.

Three paths need no framework, and without one a scrape is some joins and writes.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from exporter import own, stats
from exporter.exposition import CONTENT_TYPES, Exposition
from exporter.negotiation import accepts_gzip, choose_format

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from collector.snapshot import Point, Snapshot

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Headers = list[tuple[bytes, bytes]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

_TEXT: Final = "text/plain; charset=utf-8"
_GZIP_LEVEL: Final = 1
"""Labels repeat so much that a higher level gains little and costs several times as much."""


class Application:
    """Serves the last snapshot. `publish` takes a new one; until the first, `/healthz` says 503."""

    def __init__(
        self,
        version: str,
        extra_points: Callable[[], Iterable[Point]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._version = version
        self._extra_points = extra_points
        self._clock = clock
        self._exposition = Exposition()
        self._snapshot: Snapshot | None = None
        self._last_scrape_s: float | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Serve this snapshot from now on."""
        self._exposition.update(snapshot)
        self._snapshot = snapshot

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        status, headers, body = await self._answer(scope)
        if isinstance(body, bytes):
            headers.append((b"content-length", str(len(body)).encode()))
            body = iter((body,))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["method"] != "HEAD":
            for piece in body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def _answer(self, scope: dict[str, Any]) -> tuple[int, Headers, bytes | Iterator[bytes]]:
        path = scope["path"]
        if path not in {"/metrics", "/stats", "/healthz"}:
            return _plain(404, "no such path; there are /metrics, /stats and /healthz")
        if scope["method"] not in {"GET", "HEAD"}:
            status, headers, body = _plain(405, "only GET and HEAD")
            return status, [*headers, (b"allow", b"GET, HEAD")], body
        if self._snapshot is None:
            return _plain(503, "the first sample is still being taken")
        if path == "/healthz":
            return _plain(200, "ok")
        if path == "/stats":
            return 200, [_content_type("application/json")], stats.render(self._snapshot, self._clock())
        return await self._metrics(scope)

    async def _metrics(self, scope: dict[str, Any]) -> tuple[int, Headers, bytes | Iterator[bytes]]:
        started = time.perf_counter()
        form = choose_format(_header(scope, b"accept"))
        pieces = self._timed(self._exposition.pieces(form, self.own_points(), self._clock()), started)
        headers = [_content_type(CONTENT_TYPES[form]), (b"vary", b"accept, accept-encoding")]
        if accepts_gzip(_header(scope, b"accept-encoding")):
            headers.append((b"content-encoding", b"gzip"))
            return 200, headers, await asyncio.to_thread(_gzip, pieces)  # zlib lets the loop go on meanwhile
        return 200, headers, pieces

    def _timed(self, pieces: Iterator[bytes], started: float) -> Iterator[bytes]:
        yield from pieces
        self._last_scrape_s = time.perf_counter() - started

    def text(self) -> str:
        """The exposition in Prometheus text, as `--once` prints it."""
        return self._exposition.render("text", self.own_points(), self._clock()).decode()

    def own_points(self) -> tuple[Point, ...]:
        """What the exporter tells of itself, as of now."""
        points = own.points(self._version, self._exposition.series, self._last_scrape_s)
        return (*points, *self._extra_points())


def _gzip(pieces: Iterable[bytes]) -> bytes:
    compressor = zlib.compressobj(_GZIP_LEVEL, wbits=31)
    return b"".join([*map(compressor.compress, pieces), compressor.flush()])


def _plain(status: int, line: str) -> tuple[int, Headers, bytes]:
    return status, [_content_type(_TEXT)], f"{line}\n".encode()


def _content_type(value: str) -> tuple[bytes, bytes]:
    return b"content-type", value.encode()


def _header(scope: dict[str, Any], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
