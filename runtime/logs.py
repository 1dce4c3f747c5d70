"""The record format of a container's log (`docs/reference/agent-protocol.md`, "The log file").

Imports next to nothing: the command line decodes with it as well. What stands in a log is the guest's word; a reader
meets anything, and never takes more memory than a record may have.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

STDOUT, STDERR, EVENT = 1, 2, 3
MAX_PAYLOAD_BYTES = 65536
MAGIC = b"HP"
HEADER = struct.Struct("<2sBBIQ")


class LogRecord(NamedTuple):
    """One record. `kind` is STDOUT, STDERR or EVENT; `time_ns` is since 1970 by the guest's clock."""

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

    def feed(self, data: bytes) -> Iterator[LogRecord]:
        """Records that are complete with `data`."""
        self._buffer += data
        buffer, offset = self._buffer, 0
        while len(buffer) - offset >= HEADER.size:
            magic, kind, reserved, length, time_ns = HEADER.unpack_from(buffer, offset)
            valid = magic == MAGIC and kind in (STDOUT, STDERR, EVENT) and not reserved and length <= MAX_PAYLOAD_BYTES
            if not valid:
                following = buffer.find(MAGIC, offset + 1)
                # The last byte may be the first one of a magic.
                offset = following if following >= 0 else len(buffer) - 1
                continue
            end = offset + HEADER.size + length
            if end > len(buffer):
                break
            yield LogRecord(kind, time_ns, bytes(buffer[offset + HEADER.size : end]))
            offset = end
        del buffer[:offset]
