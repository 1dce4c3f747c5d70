"""Reading a container's log: what to send a client, and the exit code at its end.

What is sent is the file as it is, in whole records: a client that counts what it took can go on from there later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from runtime import logs, seeking
from runtime.errors import InvalidInput
from runtime.logs import EVENT, HEADER, LogRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from runtime.life import Container
    from runtime.rotation import Rotation

_CHUNK_BYTES = 256 * 1024
# The exit record is the last one; before it there may be one of output, and events.
_TAIL_BYTES = 512 * 1024
_MAX_EVENT_BYTES = 4096
_MAX_EVENTS = 1000
_GUEST_LAYERS = ("container", "guest")
_MAX_OOM_KILLS = 1 << 31  # of one start
_POLL_S = 1.0


class LastWords(NamedTuple):
    """How the container's process ended, as its guest wrote it. `oom_kills` of this start, by layer."""

    exit_code: int
    oom_killed: bool
    oom_kills: Mapping[str, int] = MappingProxyType({})


def size_of(path: Path) -> int:
    """How long a log is, in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def last_words(path: Path, start: int) -> LastWords | None:
    """The `exited` event at the end of a log, of which the last start began at `start`; None if that has none."""
    for event in _last_events(path, start):
        if event.get("event") == "exited":
            with contextlib.suppress(TypeError, ValueError):
                code = int(str(event.get("exit_code"))) & 0xFF
                return LastWords(code, event.get("oom_killed") is True, _oom_kills(event))
    return None


def last_oom_kills(path: Path, start: int) -> Mapping[str, int]:
    """Kills for want of memory by layer, as the guest last told them since its start; empty if it told of none."""
    return next((found for event in _last_events(path, start) if (found := _oom_kills(event))), {})


def _last_events(path: Path, start: int) -> Iterator[Mapping[str, object]]:
    """Events of the last start, from the end; one whose guest was not heard of yet has none."""
    try:
        tail, _ = _tail(path, start)
    except OSError:
        return
    # From the end: a hostile guest may have filled the tail with events, and what they say is not looked at for ever.
    events = [place for place in logs.places(tail) if place[1] == EVENT and place[2] <= _MAX_EVENT_BYTES]
    for offset, kind, length, time_ns in events[: -_MAX_EVENTS - 1 : -1]:
        begin = offset + HEADER.size
        event = LogRecord(kind, time_ns, tail[begin : begin + length]).event()
        if event.get("event") == "started":
            return
        yield event


def _oom_kills(event: Mapping[str, object]) -> Mapping[str, int]:
    """`oom_kills` of an event, as far as it is what an honest guest would say."""
    told = event.get("oom_kills")
    if not isinstance(told, dict):
        return {}
    found = {layer: told.get(layer) for layer in _GUEST_LAYERS}
    return {layer: kills for layer, kills in found.items() if type(kills) is int and 0 <= kills <= _MAX_OOM_KILLS}


def write_end(path: Path, start: int, exit_code: int, error: str | None, *, oom_killed: bool = False) -> LastWords:
    """Write the `exited` event that a guest could not write; a full disk loses it for the log alone."""
    kills = last_oom_kills(path, start)
    event = {
        "event": "exited", "exit_code": exit_code, "signal": None, "oom_killed": oom_killed, "oom_kills": dict(kills),
        "error": error,
    }  # fmt: skip
    with contextlib.suppress(OSError):
        mend(path)
        with path.open("ab") as file:
            file.write(LogRecord(EVENT, time.time_ns(), json.dumps(event).encode()).encode())
    return LastWords(exit_code, oom_killed, kills)


def mend(path: Path) -> None:
    """Make the last record whole, if QEMU was killed while it wrote it: what came of it is all of it.

    Otherwise what is written later would be taken for its payload. Nobody may be writing to the file.
    """
    with contextlib.suppress(FileNotFoundError):
        tail, size = _tail(path)
        missing = len(tail) - logs.whole(tail)
        if not missing or not tail.startswith(logs.MAGIC, len(tail) - missing):
            return
        if missing < HEADER.size:
            os.truncate(path, size - missing)
            return
        with path.open("r+b") as file:
            file.seek(size - missing + 4)
            file.write((missing - HEADER.size).to_bytes(4, "little"))


def _tail(path: Path, start: int = 0) -> tuple[bytes, int]:
    """The last records of a log, from the beginning of one that is not before `start`; and the size of the file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        position = min(max(start, size - _TAIL_BYTES), size)
        file.seek(position)
        tail = file.read(size - position)
    return (tail[logs.first(tail) :] if position else tail), size


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a log is wanted. Times are nanoseconds since 1970; `offset` is one that an earlier answer led to."""

    follow: bool = False
    tail: int | None = None
    since_ns: int = 0
    until_ns: int | None = None
    offset: int | None = None


class Reader:
    """One reading of a container's log. With `follow` it goes on until the container has ended.

    A container that was never started is waited for. Its file may be removed meanwhile: it is read to its end. With
    `holds_up` the container waits for this reader; without, a reader that is too slow misses what is cut away meanwhile
    and is told so by a `cut` event.
    """

    def __init__(self, rotation: Rotation, container: Container, wanted: Wanted, *, holds_up: bool = False) -> None:
        self._rotation = rotation
        self._container = container
        self._wanted = wanted
        self._holds_up = holds_up
        self._position = 0
        self._first = b""
        self._end: int | None = None
        self._after_epoch = 0

    async def find(self) -> int:
        """Find where to begin; returns the offset of the first byte that will be sent.

        Raises:
            InvalidInput: the offset lies beyond the end.
        """
        begin, wanted = self._rotation.begin(self._container), self._wanted
        try:
            size = self._container.log_path.stat().st_size
        except FileNotFoundError:
            size = 0
        if not wanted.follow:
            self._end = size
        self._position = begin
        if wanted.offset is not None:
            if wanted.offset > size:
                raise InvalidInput(f"offset: the log has {size} bytes", field="offset")
            self._position = wanted.offset
        elif size and (wanted.tail is not None or wanted.since_ns):
            with self._rotation.reading(self._container, begin, holds_up=False):
                self._position, self._first = await asyncio.to_thread(
                    seeking.find, self._container.log_path, begin, size, wanted.tail, wanted.since_ns
                )
        return self._position - len(self._first)

    def from_now(self) -> int:
        """Begin with what is written from now on, by its next start if it does not run; returns its offset."""
        if not self._container.live:
            self._after_epoch = self._container.record.lifecycle.epoch
        with contextlib.suppress(FileNotFoundError):
            tail, size = _tail(self._container.log_path)
            self._position = size - len(tail) + logs.whole(tail)
        return self._position

    async def chunks(self) -> AsyncIterator[bytes]:
        """The records, in pieces of any number of them."""
        container = self._container
        while self._wanted.follow and not self._started():
            await container.changed.wait()
        try:
            file = container.log_path.open("rb")
        except FileNotFoundError:
            return
        with (
            file,
            self._rotation.reading(container, self._position, holds_up=self._holds_up) as place,
            self._rotation.watch.of(container.log_path) as grown,
        ):
            if self._first:
                yield self._first
            while True:
                # A file that grows as fast as it is read, and a client that takes all, or has gone: none of it waits.
                await asyncio.sleep(0)
                grown.clear()
                # Looked at before the file: what was written before the end is then read for certain.
                ended, changed = container.over, container.changed
                data = os.pread(file.fileno(), _CHUNK_BYTES, place.position)
                missed = self._rotation.begin(container) - place.position
                if missed > 0:
                    place.position += missed
                    yield _cut_event(missed)
                    continue
                count, last = self._within(data, place.position)
                place.position += count
                if count:
                    yield data[:count]
                if last or (not count and (ended or not self._wanted.follow)):
                    return
                if not count and not await self._more(grown, changed):
                    return

    def _started(self) -> bool:
        """Whether there is, or was, the start that is waited for."""
        gone = self._container.state in {"removing", "dead"}
        if self._container.state == "starting" and not self._container.log_path.exists():
            return False  # its very first start: the file is made with the VM
        return self._container.live or gone or self._container.record.lifecycle.epoch > self._after_epoch

    def _within(self, data: bytes, position: int) -> tuple[int, bool]:
        """How much of the data is wanted, and whether nothing after it is."""
        count, until_ns = logs.whole(data), self._wanted.until_ns
        if until_ns is not None:
            for offset, _, _, time_ns in logs.places(data[:count]):
                if time_ns > until_ns:
                    return offset, True
        return count, self._end is not None and position + count >= self._end

    async def _more(self, grown: asyncio.Event, changed: asyncio.Event) -> bool:
        """Wait for more; False when the time is over for which it is wanted."""
        wait_s = _POLL_S
        if self._wanted.until_ns is not None:
            wait_s = min(wait_s, (self._wanted.until_ns - time.time_ns()) / 1e9)
            if wait_s <= 0:
                return False
        waiting = [asyncio.ensure_future(grown.wait()), asyncio.ensure_future(changed.wait())]
        try:
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return True


def _cut_event(missed: int) -> bytes:
    return LogRecord(EVENT, time.time_ns(), json.dumps({"event": "cut", "bytes": missed}).encode()).encode()
