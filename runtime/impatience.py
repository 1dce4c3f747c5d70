"""How programs that serve over TCP keep no connection on which nobody asks for anything.

uvicorn waits without an end for a first request and for the rest of one, and counts each connection that waits against
its `limit_concurrency`: as many silent ones as that, and it answers nobody any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio


class Impatient(H11Protocol):
    """Breaks a connection off on which no whole request has come within `request_timeout_s` of its first byte.

    For the first request it counts from when the connection was made. Between two of them uvicorn's own limit holds.
    """

    request_timeout_s = 10.0
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest, if it is no whole request yet."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()
        else:
            self._wait_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._giving_up is None:
            # Not closed: that would wait until whoever says nothing has taken all that was answered.
            self._giving_up = self.loop.call_later(self.request_timeout_s, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
