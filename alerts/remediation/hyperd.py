"""The controller's client of hyperd: two calls of its REST API over the unix socket (`docs/reference/api.md`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from pydantic import ValidationError

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation.policy import Container

if TYPE_CHECKING:
    from pathlib import Path

READ_TIMEOUT_S = 10.0
REDEPLOY_TIMEOUT_S = 180.0
"""A cold boot without KVM on a busy host takes seconds; this is the end of patience, not an expectation."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Hyperd:
    """Asks hyperd, and asks it to act. Makes one attempt a call: when to try again is the controller's to know."""

    def __init__(self, socket: Path, *, redeploy_timeout_s: float = REDEPLOY_TIMEOUT_S) -> None:
        self._socket = socket
        self._redeploy_timeout_s = redeploy_timeout_s
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://hyperd", timeout=READ_TIMEOUT_S
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def container(self, ref: str) -> Container:
        """The container named by `ref`.

        Raises:
            HyperdAway: no answer, a 5xx, or an answer that is no container.
            HyperdRefused: 4xx; 404 if there is no such container.
        """
        return await self._call("GET", ref, None, READ_TIMEOUT_S)

    async def redeploy(self, container_id: str, reason: str) -> Container:
        """Redeploy a container and return it as it is then.

        Raises:
            HyperdAway: no answer or a 5xx; with `sent` the redeploy may nevertheless have been made.
            HyperdRefused: 4xx; the redeploy may have been begun and have failed.
        """
        body = {"actor": "remediation", "reason": reason}
        return await self._call("POST", f"{container_id}/redeploy", body, self._redeploy_timeout_s)

    async def _call(self, method: str, path: str, body: dict[str, str] | None, timeout_s: float) -> Container:
        try:
            answer = await self._client.request(method, f"/v1/containers/{path}", json=body, timeout=timeout_s)
        except _NOT_SENT as err:
            raise HyperdAway(
                f"no connection to hyperd at {self._socket}: {err or type(err).__name__}", sent=False
            ) from err
        except httpx.HTTPError as err:
            raise HyperdAway(f"no answer from hyperd: {err or type(err).__name__}", sent=True) from err
        if answer.status_code >= 500:
            raise HyperdAway(f"hyperd answered {answer.status_code}: {_message(answer)}", sent=True)
        if answer.status_code >= 300:
            raise HyperdRefused(f"hyperd answered {answer.status_code}: {_message(answer)}", status=answer.status_code)
        try:
            return Container.model_validate_json(answer.content)
        except ValidationError as err:
            first = err.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise HyperdAway(f"hyperd's answer is no container: {where}: {first['msg']}", sent=True) from err


def _message(answer: httpx.Response) -> str:
    """The message of an error answer, or the beginning of whatever came instead."""
    try:
        return str(answer.json()["error"]["message"])[:500]
    except (ValueError, TypeError, KeyError):
        return answer.text[:200]
