"""Exec sessions and stdin, multiplexed over one port of the guest with credits (`docs/reference/agent-protocol.md`).

Memory is bounded by the credit that was given: at most 256 KiB a stream wait here for a slow client, in few pieces. A
guest that breaks the protocol (more than its credit, frames that say nothing, more for a session after its end, much
for sessions that there are not) loses the connection, and with it all its sessions; so does one that takes nothing from
us. Frames are taken in pieces between which other work goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.errors import GuestFailed
from runtime.vm import process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

STDIN, STDOUT, STDERR = 0, 1, 2
CONTAINER = 0  # the session that is the container itself
CREDIT_BYTES = 256 * 1024
MAX_FRAME_BYTES = 32768
MAX_PIECE_BYTES = 65536  # what a record of a log may carry

_FRAME = struct.Struct("<IBBHI")
_RESET, _DATA, _EOF, _CREDIT, _EXIT, _CLOSE = range(6)
_SYNC = b"\xff" * 16
_SYNC_TIMEOUT_S = 5.0
_SYNC_AGAIN_S = 0.3
# More than a guest can still be waiting for of a frame; as a frame's head it is out of range.
_PADDING = b"\xff" * (_FRAME.size + MAX_FRAME_BYTES)
_READ_BYTES = 64 * 1024  # 5000 frames at most: some milliseconds
_MAX_STALE_BYTES = 8 << 20  # before the answer to a RESET: far more than can be on its way
# What an honest guest may still send for a session that was dropped: all its credit, two EOF and an EXIT.
_STRAY_BYTES = 2 * CREDIT_BYTES + 4096
_MAX_STRAY_BYTES = 64 * _STRAY_BYTES  # a guest has so many sessions at most
_MAX_UNREAD_BYTES = 4 << 20  # waiting for a guest to take them; those who write wait long before
_MANY_PIECES = 256
_MAX_EXIT_BYTES = 256
_FAILED = 255
_MAX_SIGNAL = 64


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a session's output; `stream` is STDOUT or STDERR."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a session."""

    exit_code: int
    signal: int | None


class _Events:
    """What a session has to say, until somebody takes it.

    A piece is joined to the one before it; if many wait, to the last of its stream, as the order between two streams
    is nobody's promise. So a guest that sends single bytes takes no more memory than its credit.
    """

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, bytearray]] = deque()
        self._exit: Exit | None = None
        self._some = asyncio.Event()

    def put(self, stream: int, data: memoryview) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last[0] != stream and len(self._pieces) > _MANY_PIECES:
            last = self._pieces[-2]  # of the other stream: neighbours are joined
        if last is not None and last[0] == stream and (len(last[1]) < MAX_FRAME_BYTES or last is not self._pieces[-1]):
            last[1].extend(data)
        else:
            self._pieces.append((stream, bytearray(data)))
        self._some.set()

    def end(self, how: Exit) -> None:
        self._exit = how
        self._some.set()

    async def get(self) -> list[Output | Exit]:
        """All that waits; the `Exit` comes last."""
        await self._some.wait()
        self._some.clear()
        found: list[Output | Exit] = [
            Output(stream, bytes(data[at : at + MAX_PIECE_BYTES]))
            for stream, data in self._pieces
            for at in range(0, len(data), MAX_PIECE_BYTES)
        ]
        self._pieces.clear()
        if self._exit is not None:
            found.append(self._exit)
        return found


@dataclass(slots=True)
class _Session:
    events: _Events = field(default_factory=_Events)
    granted: dict[int, int] = field(default_factory=lambda: {STDOUT: CREDIT_BYTES, STDERR: CREDIT_BYTES})
    may_send: int = CREDIT_BYTES
    more_credit: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False


class Streams:
    """The connection to one guest's streams port, made when it is first needed."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._sessions: dict[int, _Session] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._strays_bytes = 0

    async def open(self, session: int) -> None:
        """Make a session known, before the agent is told to start it.

        Raises:
            GuestFailed: the guest does not answer on the port.
        """
        async with self._connecting:
            if self._reading is None or self._reading.done():
                await self._connect()
            self._sessions.setdefault(session, _Session())

    async def output(self, session: int) -> AsyncIterator[Output | Exit]:
        """What the session writes, and at last its `Exit`; the guest waits for whoever reads slowly.

        Raises:
            GuestFailed: the connection to the guest was lost.
        """
        async with contextlib.aclosing(self.batches(session)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def batches(self, session: int) -> AsyncGenerator[list[Output | Exit]]:
        """The same, with all that has come since the last batch in one.

        Raises:
            GuestFailed: the connection to the guest was lost, or the output was taken already.
        """
        state = self._sessions.get(session)
        if state is None:
            raise GuestFailed("the session has ended")
        try:
            while True:
                batch = await state.events.get()
                yield batch
                if isinstance(batch[-1], Exit):
                    return
                self._grant(session, state, batch)
        finally:
            self.drop(session)

    async def write(self, session: int, data: bytes) -> None:
        """Write to the session's stdin; returns when all of it has been sent.

        Raises:
            GuestFailed: the session has ended, or its output is not taken any more.
        """
        state = self._sessions.get(session)
        view = memoryview(data)
        while view:
            if state is None or state.ended:
                raise GuestFailed("the session has ended")
            if not state.may_send:
                state.more_credit.clear()
                await state.more_credit.wait()
                continue
            part = view[: min(MAX_FRAME_BYTES, state.may_send)]
            state.may_send -= len(part)
            self._send(session, _DATA, STDIN, bytes(part))
            view = view[len(part) :]
            try:
                if self._writer is not None:
                    await self._writer.drain()
            except OSError as err:
                raise GuestFailed("the session has ended") from err

    def end_input(self, session: int) -> None:
        """Close the session's stdin."""
        if session in self._sessions:
            self._send(session, _EOF, STDIN)

    def drop(self, session: int) -> None:
        """Nobody takes the session's output any more; its process goes on. One that has ended is forgotten."""
        state = self._sessions.pop(session, None)
        if state is not None and not state.ended:
            self._strays_bytes = min(self._strays_bytes + _STRAY_BYTES, _MAX_STRAY_BYTES)
            self._send(session, _CLOSE)
            state.ended = True
            state.more_credit.set()

    def forget(self, session: int) -> None:
        """Drop a session that was not started after all, or of which that is not known."""
        self.drop(session)

    @property
    def sessions(self) -> int:
        """How many exec sessions are open."""
        return sum(1 for session in self._sessions if session != CONTAINER)

    def close(self) -> None:
        """Close the connection; the guest's processes go on."""
        if self._reading is not None:
            self._reading.cancel()
        self._lose()

    async def _connect(self) -> None:
        self._lose()
        try:
            async with asyncio.timeout(_SYNC_TIMEOUT_S):
                reader, self._writer = await process.connect(self._path, _READ_BYTES)
                held = await self._synchronise(reader)
        except (OSError, EOFError, ValueError) as err:
            self._lose()
            if isinstance(err, TimeoutError):
                raise GuestFailed(f"the guest did not answer on its streams port within {_SYNC_TIMEOUT_S:g} s") from err
            if isinstance(err, ValueError):
                raise GuestFailed("the guest sends something else than frames on its streams port") from err
            raise GuestFailed("the guest's streams port is closed: its VM has ended") from err
        self._strays_bytes = _STRAY_BYTES
        self._reading = asyncio.create_task(self._read(reader, held))

    async def _synchronise(self, reader: asyncio.StreamReader) -> bytearray:
        """Send RESET until the guest answers the last one; returns what came after its answer.

        A daemon that was killed may have left half a frame behind, and the guest may not have seen that it went: then
        the first RESET is taken for the rest of that frame. So each one after it comes with enough to fill any frame.
        """
        held = bytearray()
        padding = b""
        stale = 0
        while True:
            nonce = os.urandom(8)
            if self._writer is not None:
                self._writer.write(padding)
            self._send(0, _RESET, 0, nonce)
            padding = _PADDING
            mark = _SYNC + _FRAME.pack(0, _RESET, 0, 0, len(nonce)) + nonce
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SYNC_AGAIN_S):
                    while (at := held.find(mark)) < 0:
                        stale += max(0, len(held) - len(mark))
                        if stale > _MAX_STALE_BYTES:
                            raise ValueError("no end of old frames")
                        del held[: -len(mark)]
                        held += await _more(reader)
                    return held[at + len(mark) :]

    async def _read(self, reader: asyncio.StreamReader, held: bytearray) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                while self._take_frames(held):
                    held += await _more(reader)
        finally:
            self._lose()

    def _take_frames(self, held: bytearray) -> bool:
        """All whole frames; False if one breaks the protocol."""
        at, size = 0, _FRAME.size
        while len(held) - at >= size:
            session, kind, stream, _, length = _FRAME.unpack_from(held, at)
            if length > MAX_FRAME_BYTES:
                return False
            if len(held) - at - size < length:
                break
            payload = memoryview(held)[at + size : at + size + length]
            at += size + length
            state = self._sessions.get(session)
            keeps = self._stray(length) if state is None else self._take(state, kind, stream, payload)
            payload.release()
            if not keeps:
                return False
        del held[:at]
        return True

    def _stray(self, length: int) -> bool:
        """A frame of no known session, such as one that was dropped; False if there have been too many."""
        self._strays_bytes -= length + 1
        return self._strays_bytes >= 0

    def _take(self, state: _Session, kind: int, stream: int, payload: memoryview) -> bool:
        """One frame of a known session; False for one that breaks the protocol."""
        if state.ended:
            return False
        if kind == _DATA:
            left = state.granted.get(stream, 0) - len(payload)
            if left < 0 or not payload:
                return False
            state.granted[stream] = left
            state.events.put(stream, payload)
        elif kind == _EOF:
            return state.granted.pop(stream, None) is not None
        elif kind == _CREDIT:
            more = int.from_bytes(payload[:4], "little")
            if len(payload) != 4 or not 0 < more <= CREDIT_BYTES - state.may_send:
                return False
            state.may_send += more
            state.more_credit.set()
        elif kind == _EXIT:
            how = _exit_of(bytes(payload[: _MAX_EXIT_BYTES + 1]))
            if how is None:
                return False
            self._end(state, how)
        return kind in (_DATA, _EOF, _CREDIT, _EXIT)

    def _grant(self, session: int, state: _Session, taken: list[Output | Exit]) -> None:
        """Give back the credit of what a client has taken."""
        for stream in (STDOUT, STDERR):
            count = sum(len(one.data) for one in taken if isinstance(one, Output) and one.stream == stream)
            if count and stream in state.granted:
                state.granted[stream] += count
                if not state.ended:
                    self._send(session, _CREDIT, stream, count.to_bytes(4, "little"))

    def _end(self, state: _Session, how: Exit) -> None:
        if not state.ended:
            state.ended = True
            state.events.end(how)
            state.more_credit.set()

    def _lose(self) -> None:
        """The connection is gone: every session has ended, as far as anybody here can tell."""
        for state in self._sessions.values():
            self._end(state, Exit(_FAILED, None))
        # Whoever takes the output of one still holds it; a new connection begins with none.
        self._sessions.clear()
        if self._writer is not None:
            self._writer.transport.abort()  # what the guest has not taken yet is not waited for
            self._writer = None

    def _send(self, session: int, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        if self._writer is None or self._writer.is_closing():
            return
        self._writer.write(_FRAME.pack(session, kind, stream, 0, len(payload)) + payload)
        if self._writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._writer.transport.abort()  # who reads from it sees its end


async def _more(reader: asyncio.StreamReader) -> bytes:
    """What has come, after others had their turn: a reader that is never empty would not let them.

    Raises:
        EOFError: the connection was closed.
    """
    await asyncio.sleep(0)
    data = await reader.read(_READ_BYTES)
    if not data:
        raise EOFError
    return data


def _exit_of(payload: bytes) -> Exit | None:
    """What an EXIT frame says; None if it is not what the protocol has there."""
    if len(payload) > _MAX_EXIT_BYTES:
        return None
    try:
        content = json.loads(payload)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    exit_code, signal = content.get("exit_code"), content.get("signal")
    if type(exit_code) is not int or not 0 <= exit_code <= _FAILED:
        return None
    if signal is not None and (type(signal) is not int or not 0 < signal <= _MAX_SIGNAL):
        return None
    return Exit(exit_code, signal)
