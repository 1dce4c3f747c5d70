"""A line of JSON out, a line of JSON in, over a unix socket: what QMP and the agent have in common.

The other side is hostile. An answer has a limit, all buffers together have one, and a line is looked at only when it
is whole. A channel never closes on a missed deadline: QEMU serves one client per socket, and a new connection to a
stopped QEMU would only queue up behind the old one. The answer that is still to come is waited for, and thrown away.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Final, NoReturn

from collector.errors import MalformedError, TooLargeError, UnreachableError

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINE_BYTES: Final = 1 << 20
MAX_BUFFERED_BYTES: Final = 32 << 20
MAX_QUEUED_LINES: Final = 64


class Budget:
    """Bytes that all channels may hold together, so that many hostile guests cost no more than a few."""

    def __init__(self, limit_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


class LineChannel(asyncio.Protocol):
    """One connection. `read_line` and `write` raise `UnreachableError` or `TooLargeError` once it has failed."""

    def __init__(self, budget: Budget, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._budget = budget
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._lines: list[bytes] = []
        self._queued_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._failure: UnreachableError | TooLargeError | None = None
        self._sentinel = False

    @property
    def failed(self) -> bool:
        """It is of no more use."""
        return self._failure is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- asyncio gives stream protocols nothing else
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Cut what came into lines (called by asyncio)."""
        if self._failure:
            return
        if self._sentinel:
            _, mark, data = data.partition(b"\xff")
            if not mark:
                return
            self._sentinel = False
        self._buffer += data
        self._budget.used_bytes += len(data)
        self._cut()
        held = len(self._buffer) + self._queued_bytes
        if len(self._buffer) > self._max_line_bytes or len(self._lines) > MAX_QUEUED_LINES:
            self._fail(TooLargeError(f"an answer of more than {self._max_line_bytes} bytes"))
        elif self._budget.used_bytes > self._budget.limit_bytes and held > self._max_line_bytes // 16:
            self._fail(TooLargeError("too much unread data over all containers"))

    def _cut(self) -> None:
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._searched))) >= 0:
            line = bytes(self._buffer[start:end]).strip()
            self._budget.used_bytes -= end + 1 - start - len(line)
            if line:
                self._lines.append(line)
                self._queued_bytes += len(line)
            start = end + 1
        if start:
            del self._buffer[:start]
            self._wake()
        self._searched = len(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed (called by asyncio)."""
        self._fail(UnreachableError(f"connection lost: {exc}" if exc else "the other side closed the connection"))

    def skip_to_sentinel(self) -> None:
        """Throw away all that came, and all that comes before the next byte 0xFF."""
        self._forget()
        self._sentinel = True

    def write(self, data: bytes) -> None:
        """Send. Nothing is sent while the other side has not taken what was sent before."""
        if self._failure:
            raise self._failure
        if self._transport is None or self._transport.get_write_buffer_size():
            raise UnreachableError("the other side takes no data")
        self._transport.write(data)

    async def read_line(self) -> bytes:
        """The next line without its end. Cancelling it, as by a deadline, loses nothing."""
        while not self._lines:
            if self._failure:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        line = self._lines.pop(0)
        self._queued_bytes -= len(line)
        self._budget.used_bytes -= len(line)
        return line

    def close(self) -> None:
        """Close at once; it may be called again."""
        self._fail(UnreachableError("closed"))

    def _forget(self) -> None:
        self._budget.used_bytes -= len(self._buffer) + self._queued_bytes
        self._buffer.clear()
        self._lines.clear()
        self._queued_bytes = self._searched = 0

    def _fail(self, failure: UnreachableError | TooLargeError) -> None:
        if self._failure is None:
            self._failure = failure
            self._forget()
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def connect(path: Path, budget: Budget, max_line_bytes: int = MAX_LINE_BYTES) -> LineChannel:
    """Connect to a unix socket. It never waits: a full queue of the listener is an error, too.

    Raises:
        UnreachableError: there is no such socket, nobody listens, or too many wait already.
    """
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _connect(unix, path)
        _, channel = await asyncio.get_running_loop().create_unix_connection(
            lambda: LineChannel(budget, max_line_bytes), sock=unix
        )
    except BaseException:
        unix.close()
        raise
    return channel


def _connect(unix: socket.socket, path: Path) -> None:
    # A socket's name has at most 107 bytes; through the directory's descriptor it is always short enough.
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            unix.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except BlockingIOError as err:
        raise UnreachableError("too many connections wait at the socket") from err
    except OSError as err:
        raise UnreachableError(f"{path.name}: {err.strerror}") from err


def parse_object(line: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MalformedError: not JSON, not an object, not UTF-8, nested too deep, a number without end, or NaN.
    """
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"not JSON: {str(err)[:80]}") from err
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value


def _refuse(constant: str) -> NoReturn:
    raise MalformedError(f"not JSON: {constant}")
