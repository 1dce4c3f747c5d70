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
    from collections.abc import AsyncIterator
    from pathlib import Path

STDIN, STDOUT, STDERR = 0, 1, 2
CONTAINER = 0  # the session that is the container itself
CREDIT_BYTES = 256 * 1024
MAX_FRAME_BYTES = 32768

_FRAME = struct.Struct("<IBBHI")
_RESET, _DATA, _EOF, _CREDIT, _EXIT, _CLOSE = range(6)
_SYNC = b"\xff" * 16
_SYNC_TIMEOUT_S = 5.0


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
        state = self._sessions[session]
        try:
            while True:
                event = await state.events.get()
                yield event
                if isinstance(event, Exit):
                    return
                self._grant(session, state, event)
        finally:
            if not state.ended:
                self._send(session, _CLOSE)
            self._sessions.pop(session, None)

    async def write(self, session: int, data: bytes) -> None:
        """Write to the session's stdin; returns when all of it has been sent.

        Raises:
            GuestFailed: the session has ended.
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

    def forget(self, session: int) -> None:
        """Drop a session that was not started after all."""
        self._sessions.pop(session, None)

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
                reader, self._writer = await process.connect(self._path, 4 * MAX_FRAME_BYTES)
                nonce = os.urandom(8)
                self._send(0, _RESET, 0, nonce)
                await reader.readuntil(_SYNC + _FRAME.pack(0, _RESET, 0, 0, len(nonce)) + nonce)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as err:
            raise GuestFailed("the guest does not answer on its streams port") from err
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, struct.error):
            while True:
                session, kind, stream, _, length = _FRAME.unpack(await reader.readexactly(_FRAME.size))
                if length > MAX_FRAME_BYTES:
                    break
                payload = await reader.readexactly(length)
                state = self._sessions.get(session)
                if state is not None and not self._take(state, kind, stream, payload):
                    break
        self._lose()

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

    def _grant(self, session: int, state: _Session, taken: Output) -> None:
        """Give back the credit of what a client has taken."""
        state.granted[taken.stream] += len(taken.data)
        if not state.ended:
            self._send(session, _CREDIT, taken.stream, len(taken.data).to_bytes(4, "little"))

    def _end(self, state: _Session, how: Exit) -> None:
        if not state.ended:
            state.ended = True
            state.events.put_nowait(how)
            state.more_credit.set()

    def _lose(self) -> None:
        """The connection is gone: every session has ended, as far as anybody here can tell."""
        for state in self._sessions.values():
            self._end(state, Exit(255, None))
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _send(self, session: int, kind: int, stream: int = 0, payload: bytes = b"") -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_FRAME.pack(session, kind, stream, 0, len(payload)) + payload)
