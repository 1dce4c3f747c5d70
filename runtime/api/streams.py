"""What containers write and read: logs, attachment, stdin, terminals, exec sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from runtime.api import invalid
from runtime.api.answer import Route
from runtime.api.body import Body
from runtime.api.streaming import Streaming
from runtime.errors import Conflict, NotFound
from runtime.logs import EVENT, LogRecord
from runtime.output import Reader, Wanted
from runtime.spec import ExecSpec
from runtime.vm.streams import CONTAINER, Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.vm.streams import Streams

LOG_MEDIA_TYPE = "application/vnd.hyper.log"
OFFSET_HEADER = "X-Hyper-Log-Offset"
_SESSION_CLAIM_S = 10.0
_RESIZE_TIMEOUT_S = 5.0
# Decimals: a float is too coarse for nanoseconds since 1970.
_Seconds = Annotated[Decimal, Query(ge=0, lt=10**10)]
_Offset = Annotated[int | None, Query(ge=0)]


class ResizeBody(Body):
    """The size of a terminal, in characters."""

    rows: int = Field(ge=1, le=65535)
    cols: int = Field(ge=1, le=65535)


class StreamsApi:
    """Over the engine; holds the exec sessions whose output nobody has taken yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: dict[str, tuple[Container, int]] = {}

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", route_class=Route)
        router.get("/containers/{ref}/logs")(self.logs)
        router.get("/containers/{ref}/attach")(self.attach)
        router.post("/containers/{ref}/input", status_code=204)(self.container_input)
        router.post("/containers/{ref}/resize", status_code=204)(self.container_resize)
        router.post("/containers/{ref}/exec")(self.execute)
        router.get("/sessions/{session}/output")(self.session_output)
        router.delete("/sessions/{session}", status_code=204)(self.leave_session)
        router.post("/sessions/{session}/input", status_code=204)(self.session_input)
        router.post("/sessions/{session}/resize", status_code=204)(self.session_resize)
        router.get("/streams")(self.streams)
        return router

    async def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: Annotated[int | None, Query(ge=0)] = None,
        since: _Seconds = Decimal(0),
        until: Annotated[Decimal | None, Query(ge=0, lt=10**10)] = None,
        offset: _Offset = None,
    ) -> Streaming:
        """What it wrote."""
        until_ns = None if until is None else int(until * 10**9)
        wanted = Wanted(follow, tail, int(since * 10**9), until_ns, offset)
        reader = Reader(self._engine.rotation, self._engine.lives.find(ref), wanted)
        return _response(reader.chunks(), await reader.find())

    async def attach(self, ref: str, *, offset: _Offset = None) -> Streaming:
        """What it writes from now on, or from an offset on; it waits for whoever takes this slowly."""
        reader = Reader(
            self._engine.rotation, self._engine.lives.find(ref), Wanted(follow=True, offset=offset), holds_up=True
        )
        return _response(reader.chunks(), reader.from_now() if offset is None else await reader.find())

    async def container_input(self, ref: str, request: Request, *, end: bool = True) -> None:
        """The stdin of the container's own process; the end of the body closes it unless `end` is false."""
        one = self._engine.lives.find(ref)
        if not one.spec.stdin:
            raise Conflict(f"{one.record.name} was created without stdin: use -i", field="container")
        while one.state in {"created", "starting"}:
            await one.changed.wait()
        if one.streams is None:
            raise Conflict(f"{one.record.name} is not running", field="container")
        await one.streams.open(CONTAINER)
        await _feed(request, one.streams, CONTAINER, end=end)

    async def container_resize(self, ref: str, size: ResizeBody) -> None:
        """The size of the container's terminal."""
        await _resize(self._engine.lives.find(ref), CONTAINER, size)

    async def execute(self, ref: str, spec: ExecSpec) -> dict[str, str]:
        """Start a command in it."""
        invalid.check_directory(spec.cwd)
        one, number = await self._engine.execute(ref, spec)
        session = f"{one.id[:12]}.{number}"
        self._sessions[session] = (one, number)
        asyncio.get_running_loop().call_later(_SESSION_CLAIM_S, self._let_go, session, one.streams)
        return {"session": session}

    async def session_output(self, session: str) -> Streaming:
        """What the command writes, once; at last how it ended."""
        if session not in self._sessions:
            raise NotFound(f"there is no session {session!r}, or its output was taken already", field="session")
        one, number = self._sessions.pop(session)
        if one.streams is None:
            raise NotFound("the container has ended", field="session")
        return _response(self._records(one, one.streams, number), 0)

    async def leave_session(self, session: str) -> None:
        """Nobody will take its output: it is thrown away, and the command goes on."""
        if session not in self._sessions:
            raise NotFound(f"there is no session {session!r}, or its output was taken already", field="session")
        self._let_go(session, self._sessions[session][0].streams)

    async def session_input(self, session: str, request: Request, *, end: bool = True) -> None:
        """The command's stdin; the end of the body closes it unless `end` is false."""
        one, number = self._find(session)
        if one.streams is None:
            raise NotFound(f"there is no session {session!r}", field="session")
        await _feed(request, one.streams, number, end=end)

    async def session_resize(self, session: str, size: ResizeBody) -> None:
        """The size of the command's terminal."""
        await _resize(*self._find(session), size)

    async def streams(self) -> dict[str, Any]:
        """How many streams are open, for whoever looks for leaks."""
        return {
            "log_readers": self._engine.rotation.readers,
            "sessions": sum(one.streams.sessions for one in self._engine.lives.all() if one.streams),
            "tasks": len(asyncio.all_tasks()),
        }

    async def _records(self, one: Container, streams: Streams, number: int) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(streams.batches(number)) as batches:
            async for batch in batches:
                now = time.time_ns()
                records = []
                for event in batch:
                    if isinstance(event, Exit):
                        self._engine.command_ended(one, number, event.exit_code)
                        end = {"event": "exited", "exit_code": event.exit_code, "signal": event.signal}
                        records.append(LogRecord(EVENT, now, json.dumps(end).encode()).encode())
                    else:
                        records.append(LogRecord(event.stream, now, event.data).encode())
                yield b"".join(records)

    def _find(self, session: str) -> tuple[Container, int]:
        name, _, number = session.partition(".")
        if not number.isascii() or not number.isdigit() or int(number) == CONTAINER:
            raise NotFound(f"there is no session {session!r}", field="session")
        return self._engine.lives.find(name), int(number)

    def _let_go(self, session: str, streams: Streams | None) -> None:
        """Nobody has come for the output."""
        one, number = self._sessions.pop(session, (None, 0))
        if one is not None and streams is not None:
            streams.drop(number)


def _response(chunks: AsyncIterator[bytes], offset: int) -> Streaming:
    return Streaming(chunks, media_type=LOG_MEDIA_TYPE, headers={OFFSET_HEADER: str(offset)})


async def _resize(one: Container, session: int, size: ResizeBody) -> None:
    if one.agent is None or one.state != "running":
        raise Conflict(f"{one.record.name} is not running", field="container")
    await one.agent.call("hyper-resize", _RESIZE_TIMEOUT_S, session=session, rows=size.rows, cols=size.cols)


async def _feed(request: Request, streams: Streams, session: int, *, end: bool) -> None:
    """Write a body to a session's stdin, as fast as its process reads; give up when the client goes away.

    A client that goes away before the end of its body closes nothing: another one may go on.
    """
    coming: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    writing: asyncio.Future[None] | None = None
    try:
        more = True
        while more:
            message = await coming
            if message["type"] != "http.request":
                return
            more = bool(message.get("more_body"))
            # Asked for at once: it is the client's going away, if it is not more of the body.
            coming = asyncio.ensure_future(request.receive())
            writing = asyncio.ensure_future(streams.write(session, message.get("body", b"")))
            await asyncio.wait({writing, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() and coming.result()["type"] != "http.request":
                return
            await writing
        if end:
            streams.end_input(session)
    finally:
        for one in (coming, writing):
            if one is not None:
                one.cancel()
