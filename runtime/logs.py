"""The record format of a container's log (`docs/reference/agent-protocol.md`, "The log file").

Imports next to nothing: the command line decodes with it as well. What stands in a log is the guest's word; a reader
meets anything, and never takes more memory than a record may have.
"""

from __future__ import annotations

import json
import re
import struct
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STDOUT, STDERR, EVENT = 1, 2, 3
MAX_PAYLOAD_BYTES = 65536
MAGIC = b"HP"
HEADER = struct.Struct("<2sBBIQ")
_CHAIN = 4  # so many records in a row are no accident
# The first half of a header that is one; damage is searched by it, as a guest may send any amount of nearly-headers.
_HEAD = rb"(?s)HP[\x01-\x03]\0(?:..\0\0|\0\0\x01\0)"


# Not of `typing`, which would slow every start of the command line.
class LogRecord(namedtuple("LogRecord", ("kind", "time_ns", "payload"))):
    """One record. `kind` is STDOUT, STDERR or EVENT; `time_ns` is since 1970 by the guest's clock."""

    __slots__ = ()
    kind: int
    time_ns: int
    payload: bytes

    def event(self) -> dict[str, object]:
        """The object of an EVENT record; empty if it is none or not JSON."""
        if self.kind != EVENT:
            return {}
        try:
            content = json.loads(self.payload)
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def encode(self) -> bytes:
        """The record as it stands in a file."""
        return HEADER.pack(MAGIC, self.kind, 0, len(self.payload), self.time_ns) + self.payload


class Decoder:
    """Takes bytes in any pieces and gives whole records; finds its place again after damage."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of a record that is not complete yet are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[LogRecord]:
        """Records that are complete with `data`."""
        held = bytes(self._buffer) + data
        last = 0
        for offset, kind, length, time_ns in places(held):
            begin = offset + HEADER.size
            last = begin + length
            yield LogRecord(kind, time_ns, held[begin:last])
        self._buffer = bytearray(held[whole(held, last) :])


def places(data: bytes, offset: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """Where the whole records are: offset, kind, length of the payload, time in nanoseconds. Damage is skipped."""
    size, head = len(data), HEADER.size
    unpack = HEADER.unpack_from
    while size - offset >= head:
        magic, kind, reserved, length, time_ns = unpack(data, offset)
        if magic == MAGIC and 0 < kind < 4 and not reserved and length <= MAX_PAYLOAD_BYTES:
            end = offset + head + length
            if end > size:
                return
            yield offset, kind, length, time_ns
            offset = end
        else:
            offset = _next(data, offset + 1)


def whole(data: bytes, offset: int = 0) -> int:
    """Where the last whole record ends, and damage that no record can begin in: all before it can be passed on."""
    for begin, _, length, _ in places(data, offset):
        offset = begin + HEADER.size + length
    if len(data) - offset >= HEADER.size and not _begins(data, offset):
        return _next(data, offset + 1)
    return offset


def first(data: bytes) -> int:
    """Where the first record begins in a piece that was cut out of a log; the length if none does.

    What a container writes may look like a record; that several follow one another to the end is told from chance.
    """
    offset = _next(data, 0)
    while len(data) - offset >= HEADER.size:
        at, seen = offset, 0
        while seen < _CHAIN and len(data) - at >= HEADER.size and _begins(data, at):
            at += HEADER.size + int.from_bytes(data[at + 4 : at + 8], "little")
            seen += 1
        if seen == _CHAIN or (seen and len(data) - at < HEADER.size):
            return offset
        offset = _next(data, offset + 1)
    return len(data)


def _next(data: bytes, offset: int) -> int:
    """Where a record may begin, from a place on: a header, or what the end of the data leaves of one."""
    if found := re.compile(_HEAD).search(data, offset):  # compiled when one is needed, and kept by `re`
        return found.start()
    cut = data.find(MAGIC[:1], max(offset, len(data) - HEADER.size + 1))
    return cut if cut >= 0 else len(data)


def _begins(data: bytes, offset: int) -> bool:
    magic, kind, reserved, length, _ = HEADER.unpack_from(data, offset)
    return bool(magic == MAGIC and 0 < kind < 4 and not reserved and length <= MAX_PAYLOAD_BYTES)
