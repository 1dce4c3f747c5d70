"""Which containers have an alert, by Alertmanager: those are sampled deep.

Source: Alertmanager's API v2, GET /api/v2/alerts. What comes is not trusted: it has a deadline, a size, a shape.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Final

import httpx

from collector.errors import MalformedError, SourceError, TooLargeError, UnreachableError

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 8 << 20
MAX_ALERTS: Final = 20_000
STALE_READS: Final = 3
"""Reads without an answer after which no container counts as having an alert any more."""
_ACTIVE: Final = {"active": "true", "silenced": "false", "inhibited": "false"}
_ID: Final = re.compile(r"[0-9a-f]{64}")


def parse_alerts(text: bytes) -> frozenset[str]:
    """Ids of containers, the label `id` of each alert; an alert of something else has none.

    Raises:
        MalformedError: not a list of alerts.
    """
    try:
        alerts = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise MalformedError("Alertmanager: not JSON") from err
    if not isinstance(alerts, list) or len(alerts) > MAX_ALERTS:
        raise MalformedError("Alertmanager: not a list of alerts")
    found = set()
    for alert in alerts:
        labels = alert.get("labels") if isinstance(alert, dict) else None
        if not isinstance(labels, dict):
            raise MalformedError("Alertmanager: an alert without labels")
        one = labels.get("id")
        if isinstance(one, str) and _ID.fullmatch(one):
            found.add(one)
    return frozenset(found)


class AlertsReader:
    """Asks one Alertmanager, beside the rounds: `poll` never waits, and `ids` is what was answered last."""

    def __init__(self, url: str, deadline_s: float) -> None:
        self._client = httpx.AsyncClient(timeout=deadline_s, trust_env=False)
        self._url = f"{url.rstrip('/')}/api/v2/alerts"
        self._deadline_s = deadline_s
        self._asking: asyncio.Task[None] | None = None
        self._missed = 0
        self.ids: frozenset[str] = frozenset()
        self.failures = 0

    def poll(self) -> None:
        """Ask again, unless the answer to the last question is still to come."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="alertmanager")

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                self.ids = await self._read()
        except TimeoutError:
            self._failed(f"no answer within {self._deadline_s:g} s")
        except SourceError as err:
            self._failed(err.reason)
        except Exception:
            logger.exception("defect in asking Alertmanager")
            self._failed("defect in the collector")
        else:
            self._missed = 0

    async def _read(self) -> frozenset[str]:
        text = bytearray()
        try:
            async with self._client.stream("GET", self._url, params=_ACTIVE) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise UnreachableError(f"HTTP {answer.status_code}")
                async for piece in answer.aiter_bytes():
                    text += piece
                    if len(text) > MAX_ANSWER_BYTES:
                        raise TooLargeError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            raise UnreachableError(str(err) or type(err).__name__) from err
        return parse_alerts(bytes(text))

    def _failed(self, reason: str) -> None:
        self.failures += 1
        self._missed += 1
        if self._missed == 1:
            logger.warning("Alertmanager: %s", reason[:200])
        if self._missed >= STALE_READS:
            self.ids = frozenset()

    async def close(self) -> None:
        """Give up what is asked, and close the connection."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._client.aclose()
