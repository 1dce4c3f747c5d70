"""The HTTP face of the controller.

`POST /alertmanager` takes the webhook, `GET /healthz` says that the controller lives, `GET /metrics` is for Prometheus
and `GET /audit` for people. All but `/healthz` want the bearer token, if one is configured.
"""

from __future__ import annotations

import hmac
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from alerts.errors import BadWebhook
from alerts.remediation import webhook
from alerts.remediation.journal import RECENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.middleware.base import RequestResponseEndpoint

    from alerts.remediation.controller import Controller
    from alerts.remediation.journal import Journal
    from alerts.remediation.telemetry import Telemetry

log = logging.getLogger("hyper.remediation")

DRAIN_S = 20.0
"""How long a redeploy that is under way may take to end when the controller is told to."""


class _UnauthorizedError(Exception):
    """No bearer token, or another one."""


def build_app(controller: Controller, journal: Journal, telemetry: Telemetry, token: str | None) -> FastAPI:
    """The application; its lifespan takes up unfinished actions at the start and drains at the end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        controller.recover()
        yield
        await controller.drain(DRAIN_S)

    def authorize(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise _UnauthorizedError

    app = FastAPI(title="hyper-remediation", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    authorized = [Depends(authorize)]
    app.exception_handler(BadWebhook)(_bad_webhook)
    app.exception_handler(_UnauthorizedError)(_unauthorized)
    app.exception_handler(RequestValidationError)(_bad_query)

    @app.middleware("http")
    async def count(request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        if request.url.path == "/alertmanager":
            telemetry.answered(answer.status_code)
        return answer

    @app.post("/alertmanager", dependencies=authorized)
    async def alertmanager(request: Request) -> Response:
        notification = webhook.parse_webhook(await _json_body(request))
        if notification.truncated_alerts:
            log.warning(
                "%d alerts of %s were cut away by max_alerts", notification.truncated_alerts, notification.group_key
            )
        if not controller.submit(notification.alerts):
            # Alertmanager tries again after a 5xx.
            return _error(503, "too many alerts are being worked on; try again later")
        return JSONResponse({"accepted": len(notification.alerts)})

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "pending": controller.pending})

    @app.get("/metrics", dependencies=authorized)
    async def metrics() -> Response:
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/audit", dependencies=authorized)
    async def audit(limit: Annotated[int, Query(ge=1, le=RECENT)] = 100) -> list[dict[str, Any]]:
        return journal.recent(limit)

    return app


async def _json_body(request: Request) -> bytes:
    """The body, read no further than the limit.

    Raises:
        BadWebhook: it is not declared as JSON, or too long.
    """
    # A web page in the user's browser cannot post this type to a loopback address without being asked first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadWebhook("Content-Type must be application/json", status=415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > webhook.MAX_BODY_BYTES:
            break
    return bytes(body)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)


async def _bad_webhook(_: Request, err: Exception) -> Response:
    return _error(err.status if isinstance(err, BadWebhook) else 400, str(err))


async def _unauthorized(_: Request, __: Exception) -> Response:
    return _error(401, "a bearer token is needed: the one in remediation_token_file", {"WWW-Authenticate": "Bearer"})


async def _bad_query(_: Request, err: Exception) -> Response:
    first = err.errors()[0] if isinstance(err, RequestValidationError) else {"loc": ("request",), "msg": str(err)}
    return _error(400, f"{first['loc'][-1]}: {first['msg']}")
