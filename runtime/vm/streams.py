"""Exec sessions and stdin, multiplexed over one port of the guest with credits (`docs/reference/agent-protocol.md`).

Memory is bounded by the credit that was given: at most 256 KiB a stream wait here for a slow client. A guest that sends
more than that, or no frames, loses the session or the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
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

_FRAME = struct.Struct("<IBBHI")
_RESET, _DATA, _EOF, _CREDIT, _EXIT, _CLOSE = range(6)
_SYNC = b"\xff" * 16
_SYNC_TIMEOUT_S = 5.0
_SYNC_AGAIN_S = 0.3
# More than a guest can still be waiting for of a frame; as a frame's head it is out of range.
_PADDING = b"\xff" * (_FRAME.size + MAX_FRAME_BYTES)
_READ_BYTES = 256 * 1024


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


@dataclass(slots=True)
class _Session:
    events: asyncio.Queue[Output | Exit] = field(default_factory=asyncio.Queue)
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
                batch = [await state.events.get()]
                while not state.events.empty():
                    batch.append(state.events.get_nowait())
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
            if self._writer is not None:
                await self._writer.drain()

    def end_input(self, session: int) -> None:
        """Close the session's stdin."""
        if session in self._sessions:
            self._send(session, _EOF, STDIN)

    def drop(self, session: int) -> None:
        """Nobody takes the session's output any more; its process goes on. One that has ended is forgotten."""
        state = self._sessions.pop(session, None)
        if state is not None and not state.ended:
            self._send(session, _CLOSE)
            state.ended = True
            state.more_credit.set()

    def forget(self, session: int) -> None:
        """Drop a session that was not started after all."""
        self._sessions.pop(session, None)

    @property
    def sessions(self) -> int:
        """How many exec sessions are open."""
        return sum(1 for session in self._sessions if session != CONTAINER)

    def close(self) -> None:
        """Close the connection; the guest's processes go on."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()

    async def _connect(self) -> None:
        self._lose()
        try:
            async with asyncio.timeout(_SYNC_TIMEOUT_S):
                reader, self._writer = await process.connect(self._path, _READ_BYTES)
                held = await self._synchronise(reader)
        except (OSError, EOFError, TimeoutError) as err:
            self._lose()
            raise GuestFailed("the guest does not answer on its streams port") from err
        self._reading = asyncio.create_task(self._read(reader, held))

    async def _synchronise(self, reader: asyncio.StreamReader) -> bytearray:
        """Send RESET until the guest answers the last one; returns what came after its answer.

        A daemon that was killed may have left half a frame behind, and the guest may not have seen that it went: then
        the first RESET is taken for the rest of that frame. So each one after it comes with enough to fill any frame.
        """
        held = bytearray()
        padding = b""
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
                        del held[: -len(mark)]
                        if not (data := await reader.read(_READ_BYTES)):
                            raise EOFError
                        held += data
                    return held[at + len(mark) :]

    async def _read(self, reader: asyncio.StreamReader, held: bytearray) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
            while self._take_frames(held):
                if not (data := await reader.read(_READ_BYTES)):
                    break
                held += data
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
            payload = bytes(held[at + size : at + size + length])
            at += size + length
            state = self._sessions.get(session)
            if state is not None and not self._take(state, kind, stream, payload):
                return False
        del held[:at]
        return True

    def _take(self, state: _Session, kind: int, stream: int, payload: bytes) -> bool:
        """One frame of a known session; False for one that breaks the protocol."""
        if kind == _DATA:
            left = state.granted.get(stream, 0) - len(payload)
            if left < 0:
                return False
            state.granted[stream] = left
            state.events.put_nowait(Output(stream, payload))
        elif kind == _CREDIT and len(payload) == 4:
            state.may_send = min(state.may_send + int.from_bytes(payload, "little"), CREDIT_BYTES)
            state.more_credit.set()
        elif kind == _EXIT:
            content = json.loads(payload)
            signal = content.get("signal")
            self._end(state, Exit(int(content["exit_code"]), None if signal is None else int(signal)))
        return kind in (_DATA, _EOF, _CREDIT, _EXIT)

    def _grant(self, session: int, state: _Session, taken: list[Output | Exit]) -> None:
        """Give back the credit of what a client has taken."""
        for stream in (STDOUT, STDERR):
            count = sum(len(one.data) for one in taken if isinstance(one, Output) and one.stream == stream)
            if count:
                state.granted[stream] += count
                if not state.ended:
                    self._send(session, _CREDIT, stream, count.to_bytes(4, "little"))

    def _end(self, state: _Session, how: Exit) -> None:
        if not state.ended:
            state.ended = True
            state.events.put_nowait(how)
            state.more_credit.set()

    def _lose(self) -> None:
        """The connection is gone: every session has ended, as far as anybody here can tell."""
        for state in self._sessions.values():
            self._end(state, Exit(255, None))
        # Whoever takes the output of one still holds it; a new connection begins with none.
        self._sessions.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _send(self, session: int, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_FRAME.pack(session, kind, stream, 0, len(payload)) + payload)
