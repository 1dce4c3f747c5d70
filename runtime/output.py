"""Reading a container's log: what to send a client, and the exit code at its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, NamedTuple

from runtime.logs import EVENT, Decoder, LogRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runtime.life import Container

_CHUNK_BYTES = 256 * 1024
# The exit record is the last one; before it there may be one of output, and events.
_TAIL_BYTES = 512 * 1024
_POLL_S = 0.02


class LastWords(NamedTuple):
    """How the container's process ended, as its guest wrote it."""

    exit_code: int
    oom_killed: bool


def last_words(path: Path) -> LastWords | None:
    """The `exited` event at the end of a log; None if its last start has none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read(_TAIL_BYTES)
    except OSError:
        return None
    words = None
    for record in Decoder().feed(tail):
        event = record.event()
        if event.get("event") == "started":
            words = None
        elif event.get("event") == "exited":
            with contextlib.suppress(TypeError, ValueError):
                words = LastWords(int(str(event.get("exit_code"))) & 0xFF, event.get("oom_killed") is True)
    return words


def write_end(path: Path, exit_code: int, error: str | None) -> LastWords:
    """Write the `exited` event that a guest could not write; a full disk loses it for the log alone."""
    event = {"event": "exited", "exit_code": exit_code, "signal": None, "oom_killed": False, "error": error}
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(LogRecord(EVENT, time.time_ns(), json.dumps(event).encode()).encode())
    return LastWords(exit_code, oom_killed=False)


async def read(container: Container, *, follow: bool, tail: int | None, since_ns: int) -> AsyncIterator[bytes]:
    """The log as encoded records, in chunks. With `follow` it goes on until the container has ended.

    A container that was never started is waited for. Its file may be removed meanwhile: it is read to its end.
    """
    decoder = Decoder()
    kept: list[LogRecord] | None = [] if tail is not None else None
    while follow and container.state == "created":
        await container.changed.wait()
    try:
        file = container.log_path.open("rb")
    except FileNotFoundError:
        return
    with file:
        while True:
            # Looked at before the file: what was written before the end is then read for certain.
            ended, changed = not container.live, container.changed
            data = file.read(_CHUNK_BYTES)
            records = [record for record in decoder.feed(data) if record.time_ns >= since_ns]
            if kept is not None:
                kept = _last_lines([*kept, *records], tail or 0)
            elif records:
                yield b"".join(record.encode() for record in records)
            if data:
                continue
            if kept is not None:
                yield b"".join(record.encode() for record in kept)
                kept = None
            if ended or not follow:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await changed.wait()


def _last_lines(records: list[LogRecord], count: int) -> list[LogRecord]:
    """The records that hold the last lines, the first one cut to them; events after them are kept."""
    if count == 0:
        return [record for record in records[-1:] if record.kind == EVENT]
    lines, at_end = 0, True
    for index in range(len(records) - 1, -1, -1):
        record = records[index]
        if record.kind == EVENT:
            continue
        # The newline at the very end closes the last line and begins none.
        text = record.payload[:-1] if at_end and record.payload.endswith(b"\n") else record.payload
        at_end = False
        found = text.count(b"\n")
        if lines + found >= count:
            pieces = text.split(b"\n")
            start = len(text) - len(b"\n".join(pieces[len(pieces) - (count - lines) :]))
            return [record._replace(payload=record.payload[start:]), *records[index + 1 :]]
        lines += found
    return records
