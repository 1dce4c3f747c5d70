"""The HTTP side: `/metrics`, `/stats`, `/healthz`, as a bare ASGI application.

Three paths need no framework, and without one a scrape is a join and a write.
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
    from collections.abc import Awaitable, Callable, Iterable

    from collector.snapshot import Point, Snapshot

    Receive = Callable[[], Awaitable[dict[str, Any]]]
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
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
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

    async def _metrics(self, scope: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        started = time.perf_counter()
        form = choose_format(_header(scope, b"accept"))
        points = [*own.points(self._version, self._exposition.series, self._last_scrape_s), *self._extra_points()]
        body = self._exposition.render(form, points, self._clock())
        headers = [_content_type(CONTENT_TYPES[form]), (b"vary", b"accept, accept-encoding")]
        if accepts_gzip(_header(scope, b"accept-encoding")):
            body = await asyncio.to_thread(_gzip, body)  # zlib lets the loop go on meanwhile
            headers.append((b"content-encoding", b"gzip"))
        self._last_scrape_s = time.perf_counter() - started
        return 200, headers, body

    def text(self) -> str:
        """The exposition in Prometheus text, as `--once` prints it."""
        points = [*own.points(self._version, self._exposition.series, self._last_scrape_s), *self._extra_points()]
        return self._exposition.render("text", points, self._clock()).decode()


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _GZIP_LEVEL, wbits=31)


def _plain(status: int, line: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return status, [_content_type(_TEXT)], f"{line}\n".encode()


def _content_type(value: str) -> tuple[bytes, bytes]:
    return b"content-type", value.encode()


def _header(scope: dict[str, Any], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
