"""The application: all routes, and how an error is answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from runtime.api import invalid
from runtime.api.answer import Answer
from runtime.api.changes import ChangesApi
from runtime.api.containers import ContainersApi
from runtime.api.images import ImagesApi
from runtime.api.streams import StreamsApi
from runtime.api.system import SystemApi
from runtime.api.volumes import VolumesApi
from runtime.errors import CommandNotFound, DiskFull, InvalidInput, NotFound, RuntimeFault
from runtime.reserve import is_full

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engine import Engine

log = logging.getLogger(__name__)


def build(engine: Engine, about: Mapping[str, Any]) -> FastAPI:
    """The application to serve over one engine; `about` is what `info` and `version` say of the host."""
    app = FastAPI(
        title="hyperd",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        redirect_slashes=False,  # a name that is empty would be led to the call about all of them
    )
    app.add_exception_handler(RuntimeFault, _fault)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _turned_away)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(OSError, _of_the_system)
    app.add_exception_handler(Exception, _defect)
    images = ImagesApi(engine)
    volumes = VolumesApi(engine, images)
    parts = (SystemApi(engine, about), images, ContainersApi(engine), ChangesApi(engine), StreamsApi(engine), volumes)
    for part in parts:
        # Not `include_router`, which makes each route once more when it is first asked for.
        app.router.routes.extend(part.router().routes)
    return app


async def _fault(_request: Request, err: Exception) -> Response:
    fault = err if isinstance(err, RuntimeFault) else RuntimeFault(str(err))
    if isinstance(fault, CommandNotFound):
        fault = invalid.unknown_user(fault) or fault
    return Answer(fault.to_dict(), fault.status)


async def _invalid(request: Request, err: Exception) -> Response:
    fault = invalid.fault(err.errors() if isinstance(err, RequestValidationError) else (), request.url.path)
    return Answer(fault.to_dict(), fault.status)


async def _turned_away(request: Request, err: Exception) -> Response:
    """What FastAPI answers by itself: there is no such call, or its body is not UTF-8, or nested without an end."""
    status = err.status_code if isinstance(err, HTTPException) else 500
    if status == InvalidInput.status:
        return await _fault(request, InvalidInput("the request is not JSON"))
    body = NotFound(f"{request.method} {request.url.path}: there is no such call (docs/reference/api.md)").to_dict()
    return Answer(body, status)


async def _left(_request: Request, _err: Exception) -> Response:
    """The client went away before the end of its body. What it had begun is undone; this answer reaches nobody."""
    return Response(status_code=400)


async def _of_the_system(request: Request, err: Exception) -> Response:
    if is_full(err):
        where = getattr(err, "filename", None)
        return await _fault(request, DiskFull(f"no space left{f' for {where}' if where else ''}: free some"))
    return await _defect(request, err)


async def _defect(request: Request, err: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    fault = RuntimeFault(f"an error of hyperd itself ({type(err).__name__}): its log has the details")
    return Answer(fault.to_dict(), fault.status)
