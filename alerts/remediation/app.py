"""The HTTP face of the controller.

`POST /alertmanager` and `POST /registry` take the webhooks, `GET /healthz` says that the controller lives, and
`GET /metrics` is for Prometheus. `GET /audit` and `/waiting`, `POST /approve`, `/stop` and `/resume` are for people and
`hyper remediation`. All but `/healthz` want the bearer token, if one is configured.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ConfigDict, Field

from alerts.errors import AuditUnwritable, BadWebhook, NotApproved
from alerts.remediation import registry, webhook
from alerts.remediation.journal import RECENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from starlette.middleware.base import RequestResponseEndpoint

    from alerts.remediation.controller import Controller
    from alerts.remediation.journal import Journal
    from alerts.remediation.policyfile import PolicyFile
    from alerts.remediation.telemetry import Telemetry

log = logging.getLogger("hyper.remediation")

DRAIN_S = 20.0
"""How long a redeploy that is under way may take to end when the controller is told to."""


MAX_WHO_BYTES = 16 << 10
"""Of a body that says who wants something. It is read before the token is looked at."""


class _UnauthorizedError(Exception):
    """No bearer token, or another one."""


class _StrangeHostError(Exception):
    """A name that a web page gave our address, perhaps."""


class Who(BaseModel):
    """Who wants something, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    actor: str = Field("user", min_length=1, max_length=128)
    reason: str = Field("", max_length=2048)


def build_app(
    controller: Controller,
    journal: Journal,
    telemetry: Telemetry,
    token: str | None,
    *,
    policy_file: PolicyFile,
    background: Sequence[Callable[[], Coroutine[object, object, None]]],
) -> FastAPI:
    """The application; its lifespan takes up unfinished actions at the start and drains at the end.

    `background` is what goes on meanwhile, without an end.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        controller.recover()
        tasks = [asyncio.get_running_loop().create_task(run()) for run in background]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await controller.drain(DRAIN_S)

    def authorize(request: Request) -> None:
        if token is None and not _is_loopback(request.url.hostname or ""):
            raise _StrangeHostError
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise _UnauthorizedError

    app = FastAPI(title="hyper-remediation", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    authorized = [Depends(authorize)]
    app.exception_handler(BadWebhook)(_bad_webhook)
    app.exception_handler(NotApproved)(_not_approved)
    app.exception_handler(AuditUnwritable)(_unwritable)
    app.exception_handler(_UnauthorizedError)(_unauthorized)
    app.exception_handler(_StrangeHostError)(_strange_host)
    app.exception_handler(RequestValidationError)(_bad_query)

    @app.middleware("http")
    async def count(request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        if request.url.path == "/alertmanager":
            telemetry.answered(answer.status_code)
        return answer

    @app.post("/alertmanager", dependencies=authorized)
    async def alertmanager(request: Request) -> Response:
        notification = webhook.parse_webhook(await _body(request, _is_json))
        if notification.truncated_alerts:
            log.warning(
                "%d alerts of %s were cut away by max_alerts", notification.truncated_alerts, notification.group_key
            )
        if not controller.submit(notification.alerts):
            # Alertmanager tries again after a 5xx.
            return _error(503, "too many alerts are being worked on; try again later")
        return JSONResponse({"accepted": len(notification.alerts)})

    @app.post("/registry", dependencies=authorized)
    async def pushed(request: Request) -> Response:
        pushes = registry.parse_notification(await _body(request, _is_notification), policy_file.follow.hosts)
        if not controller.submit_pushes(pushes):
            # The registry tries again after a 5xx.
            return _error(503, "too much is being worked on; try again later")
        return JSONResponse({"accepted": len(pushes)})

    @app.post("/approve/{decision_id}", dependencies=authorized, status_code=202, max_body_size=MAX_WHO_BYTES)
    async def approve(decision_id: Annotated[str, Path(max_length=64)], who: Who) -> dict[str, Any]:
        return {"kind": "decision", **asdict(await controller.approve(decision_id, who.actor))}

    @app.post("/stop", dependencies=authorized, max_body_size=MAX_WHO_BYTES)
    async def stop(who: Who) -> dict[str, bool]:
        await controller.switch(stop=True, actor=who.actor, reason=who.reason)
        return {"stopped": controller.stopped}

    @app.post("/resume", dependencies=authorized, max_body_size=MAX_WHO_BYTES)
    async def resume(who: Who) -> dict[str, bool]:
        await controller.switch(stop=False, actor=who.actor, reason=who.reason)
        return {"stopped": controller.stopped}

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "pending": controller.pending, "stopped": controller.stopped})

    @app.get("/metrics", dependencies=authorized)
    async def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(telemetry.registry), media_type=media_type)

    @app.get("/audit", dependencies=authorized)
    async def audit(
        limit: Annotated[int, Query(ge=1, le=RECENT)] = 100,
        container: Annotated[str | None, Query(max_length=128)] = None,
    ) -> list[dict[str, Any]]:
        return journal.recent(limit, container)

    @app.get("/waiting", dependencies=authorized)
    async def waiting() -> list[dict[str, Any]]:
        return [{"kind": "decision", **asdict(one)} for one in reversed(journal.waiting(time.time()))]

    return app


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_json(kind: str) -> bool:
    return kind == "application/json"


def _is_notification(kind: str) -> bool:
    # The registry has its own type, with a version in it.
    return _is_json(kind) or (kind.startswith("application/vnd.docker.distribution.events.") and kind.endswith("+json"))


async def _body(request: Request, fits: Callable[[str], bool]) -> bytes:
    """The body, read no further than the limit.

    Raises:
        BadWebhook: it is not declared as JSON, or too long.
    """
    # A web page in the user's browser cannot post this type to a loopback address without being asked first.
    if not fits(request.headers.get("content-type", "").partition(";")[0].strip().lower()):
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


async def _not_approved(_: Request, err: Exception) -> Response:
    return _error(err.status if isinstance(err, NotApproved) else 409, str(err))


async def _unwritable(_: Request, err: Exception) -> Response:
    return _error(507, f"{err}; nothing is done that is not written down first")


async def _unauthorized(_: Request, __: Exception) -> Response:
    return _error(401, "a bearer token is needed: the one in remediation_token_file", {"WWW-Authenticate": "Bearer"})


async def _strange_host(_: Request, __: Exception) -> Response:
    return _error(403, "without remediation_token_file only 127.0.0.1, ::1 and localhost are answered as Host")


async def _bad_query(_: Request, err: Exception) -> Response:
    first = err.errors()[0] if isinstance(err, RequestValidationError) else {"loc": ("request",), "msg": str(err)}
    return _error(400, f"{first['loc'][-1]}: {first['msg']}")
