"""What containers write and read: logs, stdin, exec sessions."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from runtime import output
from runtime.errors import Conflict, NotFound
from runtime.logs import EVENT, LogRecord
from runtime.spec import ExecSpec
from runtime.vm.streams import CONTAINER, Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.engine import Engine
    from runtime.life import Container

LOG_MEDIA_TYPE = "application/vnd.hyper.log"
_SESSION_CLAIM_S = 30.0


class StreamsApi:
    """Over the engine; holds the exec sessions whose output nobody has taken yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: dict[str, tuple[Container, int]] = {}

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1")
        router.get("/containers/{ref}/logs")(self.logs)
        router.post("/containers/{ref}/input", status_code=204)(self.container_input)
        router.post("/containers/{ref}/exec")(self.execute)
        router.get("/sessions/{session}/output")(self.session_output)
        router.post("/sessions/{session}/input", status_code=204)(self.session_input)
        return router

    async def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: Annotated[int | None, Query(ge=0)] = None,
        since: Annotated[float, Query(ge=0)] = 0.0,
    ) -> StreamingResponse:
        """What it wrote."""
        one = self._engine.lives.find(ref)
        chunks = output.read(one, follow=follow, tail=tail, since_ns=int(since * 1e9))
        return StreamingResponse(chunks, media_type=LOG_MEDIA_TYPE)

    async def container_input(self, ref: str, request: Request) -> None:
        """The stdin of the container's own process; the end of the body closes it."""
        one = self._engine.lives.find(ref)
        if not one.spec.stdin:
            raise Conflict(f"{one.record.name} was created without stdin: use -i", field="container")
        while one.state in {"created", "starting"}:
            await one.changed.wait()
        if one.streams is None:
            raise Conflict(f"{one.record.name} is not running", field="container")
        await one.streams.open(CONTAINER)
        async for chunk in request.stream():
            await one.streams.write(CONTAINER, chunk)
        one.streams.end_input(CONTAINER)

    async def execute(self, ref: str, spec: ExecSpec) -> dict[str, str]:
        """Start a command in it."""
        one, number = await self._engine.execute(ref, spec)
        session = f"{one.id[:12]}.{number}"
        self._sessions[session] = (one, number)
        asyncio.get_running_loop().call_later(_SESSION_CLAIM_S, self._sessions.pop, session, None)
        return {"session": session}

    async def session_output(self, session: str) -> StreamingResponse:
        """What the command writes, once; at last how it ended."""
        one, number = self._session(session)
        del self._sessions[session]
        streams = one.streams
        if streams is None:
            raise NotFound("the container has ended", field="session")

        async def records() -> AsyncIterator[bytes]:
            async for event in streams.output(number):
                if isinstance(event, Exit):
                    self._engine.command_ended(one, number, event.exit_code)
                    end = {"event": "exited", "exit_code": event.exit_code, "signal": event.signal}
                    yield LogRecord(EVENT, time.time_ns(), json.dumps(end).encode()).encode()
                else:
                    yield LogRecord(event.stream, time.time_ns(), event.data).encode()

        return StreamingResponse(records(), media_type=LOG_MEDIA_TYPE)

    async def session_input(self, session: str, request: Request) -> None:
        """The command's stdin; the end of the body closes it."""
        name, _, number = session.partition(".")
        one = self._engine.lives.find(name)
        if one.streams is None or not number.isdigit():
            raise NotFound(f"there is no session {session!r}", field="session")
        async for chunk in request.stream():
            await one.streams.write(int(number), chunk)
        one.streams.end_input(int(number))

    def _session(self, session: str) -> tuple[Container, int]:
        if session not in self._sessions:
            raise NotFound(f"there is no session {session!r}, or its output was taken already", field="session")
        return self._sessions[session]
