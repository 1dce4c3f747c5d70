"""A line of JSON out, a line of JSON in, over a unix socket: what QMP and the agent have in common.

The other side is hostile. An answer has a limit, all buffers together have one, and a line is looked at only when it
is whole. A channel never closes on a missed deadline: QEMU serves one client per socket, and a new connection to a
stopped QEMU would only queue up behind the old one. The answer that is still to come is waited for, and thrown away.
What had come before the other side closed is still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Final, NoReturn

from collector.errors import MalformedError, TooLargeError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_LINE_BYTES: Final = 1 << 20
MAX_BUFFERED_BYTES: Final = 32 << 20
MAX_QUEUED_LINES: Final = 64
MAX_TAKEN_LINES: Final = 1024
"""Lines between two writes that are dealt with as they come, or empty.

They and what comes before a sentinel are together no longer than one line may be: who sends more is not read for ever.
"""
_CHUNK_BYTES: Final = 65536


class Budget:
    """Bytes that all channels may hold together, so that many hostile guests cost no more than a few."""

    def __init__(self, limit_bytes: int = MAX_BUFFERED_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


class LineChannel(asyncio.Protocol):
    """One connection. `write` raises `UnreachableError` or `TooLargeError` once it has failed, and so does `read_line`.

    `take` is shown each line as it comes, and says whether it has dealt with it: then nobody reads it any more.
    """

    def __init__(
        self,
        budget: Budget,
        max_line_bytes: int = MAX_LINE_BYTES,
        take: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._budget = budget
        self._max_line_bytes = max_line_bytes
        self._take = take
        self._taken = self._taken_bytes = 0
        self._buffer = bytearray()
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
            skipped, mark, data = data.partition(b"\xff")
            self._taken_bytes += len(skipped)
            self._sentinel = not mark
        self._budget.used_bytes += len(data)
        unread = self._queued_bytes
        fits = self._cut(data)
        # Who reads has read everything before the next piece comes, however many lines a piece has.
        queued = self._queued_bytes if unread else 0
        held = len(self._buffer) + self._queued_bytes
        if not fits or max(len(self._buffer), queued, self._taken_bytes) > self._max_line_bytes:
            self._fail(TooLargeError(f"more than {self._max_line_bytes} bytes in a line or unasked, or too many lines"))
        elif self._budget.used_bytes > self._budget.limit_bytes and held > self._max_line_bytes // 16:
            self._fail(TooLargeError("too much unread data over all containers"))

    def _cut(self, data: bytes) -> bool:
        """Take whole lines off what came; false: one is too long, or there are too many."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._buffer += data
            return True
        # An answer mostly comes in one piece, and is then not copied.
        whole = bytes(self._buffer) + data[:end]
        self._buffer.clear()
        self._buffer += data[end:]
        self._budget.used_bytes -= len(whole)
        for piece in whole.split(b"\n")[:-1]:
            if len(piece) > self._max_line_bytes:
                return False
            line = piece.strip()
            if not line or (self._take is not None and self._take(line)):
                self._taken += 1
                self._taken_bytes += len(piece)
            else:
                self._lines.append(line)
                self._queued_bytes += len(line)
                self._budget.used_bytes += len(line)
            if len(self._lines) > MAX_QUEUED_LINES or self._taken > MAX_TAKEN_LINES:
                return False
        if self._lines:
            self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed (called by asyncio). Whole lines stay to be read."""
        self._receive_rest()  # after a write that failed asyncio does not look what had come before
        if self._failure is None:
            self._failure = UnreachableError(
                f"connection lost: {exc}" if exc else "the other side closed the connection"
            )
            self._budget.used_bytes -= len(self._buffer)
            self._buffer.clear()
        self._wake()

    def _receive_rest(self) -> None:
        """Take what the kernel still holds, 1 MiB at most."""
        if self._transport is None:
            return
        descriptor = self._transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):  # nothing there, or closed
            for _ in range(MAX_LINE_BYTES // _CHUNK_BYTES):
                if self._failure is not None or not (data := os.read(descriptor, _CHUNK_BYTES)):
                    break
                self.data_received(data)

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
        self._taken = self._taken_bytes = 0
        self._transport.write(data)

    async def read_line(self) -> bytes:
        """The next line without its end. Cancelling it, as by a deadline, loses nothing.

        Raises:
            SourceError: the channel has failed, and all lines that came before are read.
        """
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
        """Close at once; it may be called again. Lines that have come are shown to `take`, and not read any more."""
        if self._take is not None:
            self._receive_rest()
        self._fail(UnreachableError("closed"))

    def _forget(self) -> None:
        self._budget.used_bytes -= len(self._buffer) + self._queued_bytes
        self._buffer.clear()
        self._lines.clear()
        self._queued_bytes = 0

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


async def connect(path: Path, budget: Budget, take: Callable[[bytes], bool] | None = None) -> LineChannel:
    """Connect to a unix socket; `take` as of `LineChannel`. It never waits: a full queue of the listener is an error.

    Raises:
        UnreachableError: there is no such socket, nobody listens, or too many wait already.
    """
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _connect(unix, path)
        _, channel = await asyncio.get_running_loop().create_unix_connection(
            lambda: LineChannel(budget, take=take), sock=unix
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


def _refuse(constant: str) -> NoReturn:
    raise MalformedError(f"not JSON: {constant}")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse)


def parse_object(line: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MalformedError: not JSON, not an object, not UTF-8, nested too deep, a number without end, or NaN.
    """
    try:
        value = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"not JSON: {str(err)[:80]}") from err
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    return value
