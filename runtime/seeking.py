"""Finding the last lines, or a time, in a log that may be far larger than memory should hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime import logs
from runtime.logs import EVENT, HEADER, LogRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READ_BYTES = 1 << 20
_WINDOW_STEP = 16


def find(path: Path, begin: int, end: int, tail: int | None, since_ns: int) -> tuple[int, bytes]:
    """Where to read on, and what to send before that: the record that holds the first of the last lines, cut to them.

    `begin` is the beginning of a record, `end` the size of the file. A line that is not ended yet counts. Lines of
    both outputs count together, as they come.
    """
    with path.open("rb") as file:
        descriptor = file.fileno()
        start = _since(descriptor, begin, end, since_ns) if since_ns else begin
        if tail is None:
            return start, b""
        window = _READ_BYTES
        while True:
            position = _aligned(descriptor, start, max(start, end - window))
            lines = _count(descriptor, position, end)
            # What is wanted is nearly always at the very end of a log.
            if lines > tail or position == start:
                break
            window *= _WINDOW_STEP
        return (position, b"") if lines <= tail else _after(descriptor, position, end, lines - tail)


def _windows(descriptor: int, position: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Whole records, many at a time, and where they stand."""
    while position < end:
        data = os.pread(descriptor, _READ_BYTES, position)
        count = logs.whole(data)
        if not count:
            return
        yield position, data[:count]
        position += count


def _since(descriptor: int, position: int, end: int, since_ns: int) -> int:
    following = position
    for place, data in _windows(descriptor, position, end):
        for offset, _, _, time_ns in logs.places(data):
            if time_ns >= since_ns:
                return place + offset
        following = place + len(data)
    return following


def _aligned(descriptor: int, start: int, position: int) -> int:
    """The beginning of a record, at or after the position."""
    return position if position == start else position + logs.first(os.pread(descriptor, _READ_BYTES, position))


def _count(descriptor: int, position: int, end: int) -> int:
    newlines, last = 0, b"\n"
    for _, data in _windows(descriptor, position, end):
        for offset, kind, length, _ in logs.places(data):
            if kind != EVENT and length:
                after = offset + HEADER.size + length
                newlines += data.count(b"\n", offset + HEADER.size, after)
                last = data[after - 1 : after]
    return newlines + (last != b"\n")


def _after(descriptor: int, position: int, end: int, lines: int) -> tuple[int, bytes]:
    """The place after so many lines; the end if that is all there are."""
    following = position
    for place, data in _windows(descriptor, position, end):
        for offset, kind, length, time_ns in logs.places(data):
            begin = offset + HEADER.size
            after = begin + length
            if kind == EVENT:
                continue
            newlines = data.count(b"\n", begin, after)
            if newlines < lines:
                lines -= newlines
                continue
            for _ in range(lines):
                begin = data.index(b"\n", begin) + 1
            rest = data[begin:after]
            return place + after, LogRecord(kind, time_ns, rest).encode() if rest else b""
        following = place + len(data)
    return following, b""
