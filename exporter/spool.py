"""A directory of batches that InfluxDB has not taken yet: bounded, in order, and still there after a restart.

One file per batch, named by time and number, so that the names sort as the batches came. A file appears whole, by a
rename. Beyond the limit the oldest batches go first.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_LIMIT_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """One file of the spool."""

    path: Path
    size_bytes: int


class Spool:
    """The batches of one directory. Its methods may be called from several threads."""

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Take over what an earlier process left.

        Raises:
            OSError: the directory cannot be made or read.
        """
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for rest in directory.glob("*.part"):  # its writer was killed; it was never a batch
            rest.unlink(missing_ok=True)
        self._batches = [Batch(path, path.stat().st_size) for path in sorted(directory.glob("*.lp"))]
        self._serial = 0

    @property
    def backlog_bytes(self) -> int:
        """Bytes of all batches."""
        with self._lock:
            return sum(batch.size_bytes for batch in self._batches)

    def put(self, text: bytes, at_ns: int) -> int:
        """Append a batch; returns how many old ones had to go for it.

        Raises:
            OSError: the disk is full; the spool is as before.
        """
        self._serial += 1
        path = self._directory / f"{at_ns:020d}-{self._serial:08d}.lp"
        part = path.with_suffix(".part")
        try:
            part.write_bytes(text)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        dropped = 0
        with self._lock:
            self._batches.append(Batch(path, len(text)))
            total = sum(batch.size_bytes for batch in self._batches)
            while total > self._limit_bytes and len(self._batches) > 1:
                oldest = self._batches.pop(0)
                oldest.path.unlink(missing_ok=True)
                total -= oldest.size_bytes
                dropped += 1
        return dropped

    def oldest(self) -> Batch | None:
        """The batch to send next."""
        with self._lock:
            return self._batches[0] if self._batches else None

    def remove(self, batch: Batch) -> None:
        """It has been taken, or is given up."""
        with self._lock:
            if batch in self._batches:
                self._batches.remove(batch)
        batch.path.unlink(missing_ok=True)
