"""The application: all routes, and how an error is answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from runtime.api.changes import ChangesApi
from runtime.api.containers import ContainersApi
from runtime.api.images import ImagesApi
from runtime.api.streams import StreamsApi
from runtime.api.system import SystemApi
from runtime.api.volumes import VolumesApi
from runtime.errors import InvalidInput, NotFound, RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engine import Engine

log = logging.getLogger(__name__)


def build(engine: Engine, about: Mapping[str, Any]) -> FastAPI:
    """The application to serve over one engine; `about` is what `info` and `version` say of the host."""
    app = FastAPI(title="hyperd", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.add_exception_handler(RuntimeFault, _fault)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(Exception, _defect)
    images = ImagesApi(engine)
    volumes = VolumesApi(engine, images)
    parts = (SystemApi(engine, about), images, ContainersApi(engine), ChangesApi(engine), StreamsApi(engine), volumes)
    for part in parts:
        app.include_router(part.router())
    return app


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
