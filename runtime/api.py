"""The REST API of hyperd (`docs/reference/api.md`)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from runtime import output, startup, view
from runtime.errors import Conflict, InvalidInput, NotFound, RuntimeFault
from runtime.logs import EVENT, LogRecord
from runtime.spec import ExecSpec, Spec
from runtime.vm.streams import CONTAINER, Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.engine import Engine
    from runtime.images.image import Image, Progress
    from runtime.life import Container

log = logging.getLogger(__name__)

LOG_MEDIA_TYPE = "application/vnd.hyper.log"
_SESSION_CLAIM_S = 30.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PullBody(_Body):
    """What to pull; `tls_verify` null: verify, except for registries known to have no TLS."""

    reference: str = Field(min_length=1, max_length=512)
    tls_verify: bool | None = None


class StopBody(_Body):
    """How long to wait before the kill; null: as the container says."""

    timeout_s: float | None = Field(None, ge=0, le=86400)


class KillBody(_Body):
    """Which signal."""

    signal: str = Field("KILL", min_length=1, max_length=16)


class RedeployBody(_Body):
    """Who wants it, and why; for the audit log."""

    actor: str = Field("user", min_length=1, max_length=128)
    reason: str = Field("", max_length=2048)


class Api:
    """The endpoints, over one engine. `about` gives what `info` and `version` say."""

    def __init__(self, engine: Engine, about: dict[str, Any]) -> None:
        self._engine = engine
        self._about = about
        self._sessions: dict[str, tuple[Container, int]] = {}

    def app(self) -> FastAPI:
        """The application to serve."""
        app = FastAPI(title="hyperd", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
        app.add_exception_handler(RuntimeFault, _fault)
        app.add_exception_handler(RequestValidationError, _invalid)
        app.add_exception_handler(HTTPException, _no_such_path)
        app.add_exception_handler(Exception, _defect)
        app.get("/v1/ping")(self.ping)
        app.get("/v1/version")(self.version)
        app.get("/v1/info")(self.info)
        app.get("/v1/images")(self.images)
        app.post("/v1/images/pull")(self.pull)
        app.delete("/v1/images/{reference:path}", status_code=204)(self.untag)
        app.get("/v1/images/{reference:path}")(self.image)
        app.get("/v1/containers")(self.containers)
        app.post("/v1/containers", status_code=201)(self.create)
        app.get("/v1/containers/{ref}")(self.inspect)
        app.post("/v1/containers/{ref}/start")(self.start)
        app.post("/v1/containers/{ref}/stop")(self.stop)
        app.post("/v1/containers/{ref}/kill", status_code=204)(self.kill)
        app.post("/v1/containers/{ref}/restart")(self.restart)
        app.post("/v1/containers/{ref}/redeploy")(self.redeploy)
        app.delete("/v1/containers/{ref}", status_code=204)(self.remove)
        app.post("/v1/containers/{ref}/wait")(self.wait)
        app.get("/v1/containers/{ref}/logs")(self.logs)
        app.post("/v1/containers/{ref}/exec")(self.execute)
        app.post("/v1/containers/{ref}/input", status_code=204)(self.container_input)
        app.get("/v1/sessions/{session}/output")(self.session_output)
        app.post("/v1/sessions/{session}/input", status_code=204)(self.session_input)
        app.get("/v1/audit")(self.audit)
        return app

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
                image = await self._engine.images.pull(body.reference, tls_verify=body.tls_verify, progress=tell)
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
        in_use = {one.record.image_digest for one in self._engine.lives.all()}
        await self._engine.images.untag(reference, in_use)

    async def containers(self, *, all: bool = False) -> list[dict[str, Any]]:  # noqa: A002 -- Docker's name
        """Containers, the newest first; only those with a VM unless `all`."""
        chosen = [one for one in self._engine.lives.all() if all or one.live]
        return [await self._view(one) for one in reversed(chosen)]

    async def create(self, spec: Spec) -> dict[str, Any]:
        """Create a container."""
        one = await self._engine.create(spec)
        return {"id": one.id, "name": one.record.name, "warnings": []}

    async def inspect(self, ref: str) -> dict[str, Any]:
        """One container."""
        return await self._view(self._engine.lives.find(ref))

    async def start(self, ref: str) -> dict[str, Any]:
        """Start it."""
        return await self._view(await self._engine.start(ref))

    async def stop(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop it."""
        return await self._view(await self._engine.stop(ref, body.timeout_s if body else None))

    async def kill(self, ref: str, body: KillBody | None = None) -> None:
        """Send it a signal."""
        await self._engine.kill(ref, (body or KillBody()).signal)

    async def restart(self, ref: str, body: StopBody | None = None) -> dict[str, Any]:
        """Stop and start it."""
        return await self._view(await self._engine.restart(ref, body.timeout_s if body else None))

    async def redeploy(self, ref: str, body: RedeployBody | None = None) -> dict[str, Any]:
        """Replace its VM by a fresh one of the same image digest."""
        body = body or RedeployBody()
        return await self._view(await self._engine.redeploy(ref, body.actor, body.reason))

    async def remove(self, ref: str, *, force: bool = False) -> None:
        """Remove it."""
        await self._engine.remove(ref, force=force)

    async def wait(self, ref: str) -> dict[str, Any]:
        """Wait until it does not run."""
        one = self._engine.lives.find(ref)
        while one.live:
            await one.changed.wait()
        lifecycle = one.record.lifecycle
        return {"exit_code": lifecycle.exit_code, "oom_killed": lifecycle.oom_killed, "error": lifecycle.error}

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

    async def audit(self, limit: Annotated[int, Query(ge=1, le=10000)] = 100) -> list[dict[str, Any]]:
        """Who did what, the newest first."""
        return self._engine.store.audit_log(limit)

    def _session(self, session: str) -> tuple[Container, int]:
        if session not in self._sessions:
            raise NotFound(f"there is no session {session!r}, or its output was taken already", field="session")
        return self._sessions[session]

    async def _view(self, one: Container) -> dict[str, Any]:
        return view.container(one, startup.arguments(one.spec, await self._image(one)))

    async def _image(self, one: Container) -> Image:
        return await self._engine.images.resolve(one.record.image_digest)


async def _fault(_request: Request, err: Exception) -> Response:
    fault = err if isinstance(err, RuntimeFault) else RuntimeFault(str(err))
    return JSONResponse(fault.to_dict(), fault.status)


async def _invalid(_request: Request, err: Exception) -> Response:
    first = err.errors()[0] if isinstance(err, RequestValidationError) and err.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ()) if part not in {"body", "query", "path"})
    text = str(first.get("msg", "the request is not valid")).removeprefix("Value error, ")
    if first.get("type") == "extra_forbidden":
        text = "there is no such member"
    fault = InvalidInput(f"{where}: {text}" if where else text, field=where or None)
    return JSONResponse(fault.to_dict(), fault.status)


async def _no_such_path(request: Request, err: Exception) -> Response:
    status = err.status_code if isinstance(err, HTTPException) else 500
    body = NotFound(f"{request.method} {request.url.path}: there is no such call (docs/reference/api.md)").to_dict()
    return JSONResponse(body, status)


async def _defect(request: Request, err: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    fault = RuntimeFault(f"an error of hyperd itself ({type(err).__name__}): its log has the details")
    return JSONResponse(fault.to_dict(), fault.status)
