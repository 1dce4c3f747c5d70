"""Room on the disk that is kept for giving room back: a file beside the database, made shorter when the disk is full.

Whoever removes, stops or ends something has to write that down first, and on a full disk could not. A write that finds
no room is done again with a slice of the reserve given up: a slice, and not all of it, as others write to the same disk
and may take it first. Whatever takes room is refused until the reserve is whole again (`docs/adr/0030`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from runtime.errors import DiskFull

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")

# SQLite's log of writes is begun anew at 1000 pages, of 4 KiB each: it takes less than this, whatever is written.
WHOLE_BYTES: Final = 8 << 20
SLICE_BYTES: Final = 256 << 10
ROOM_BYTES: Final = 8 << 20  # below it nothing is begun that takes room
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The shared index of the log is a file too, and SQLite has an error of its own for that.
_FULL_OF_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def is_full(err: BaseException) -> bool:
    """Whether the error is that of a disk without room, of a file or of the database."""
    if isinstance(err, sqlite3.Error):
        return getattr(err, "sqlite_errorcode", None) in _FULL_OF_SQLITE
    return isinstance(err, OSError) and err.errno in _FULL


def free_bytes(directory: Path) -> int:
    """The room that everybody has on the directory's disk; a QEMU is not root and has no more."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


class Reserve:
    """The reserve of one data directory. Methods may be called from any thread, and block for a few milliseconds."""

    def __init__(self, path: Path | None, whole_bytes: int = WHOLE_BYTES) -> None:
        """Make the file, or take what is there of it. Without a path there is none, and no check for room."""
        self._path = path
        self._whole_bytes = whole_bytes if path is not None else 0
        self._lock = threading.Lock()
        self._fd = -1
        self._size_bytes = 0
        if path is not None:
            with self._lock:
                self._take(path)
            if self.missing_bytes:
                log.warning("%s is not whole: the disk is full, and %d bytes are given up", path, self.missing_bytes)

    def close(self) -> None:
        """Close the file; it stays as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def missing_bytes(self) -> int:
        """What has been given up and not made again."""
        return self._whole_bytes - self._size_bytes

    def writing(self, write: Callable[[], T]) -> T:
        """Do a write, and again with a slice less in reserve for as long as there is one and it finds the disk full.

        A write that fails must have changed nothing. Raises what the last one did.
        """
        while True:
            try:
                return write()
            except (sqlite3.Error, OSError) as err:
                if not is_full(err) or not self._give_up():
                    raise

    def refill(self) -> None:
        """Make again what was given up, if there is room for all of it and a slice more."""
        with self._lock:
            if self._path is None or not self.missing_bytes:
                return
            if free_bytes(self._path.parent) < self.missing_bytes + SLICE_BYTES:
                return
            self._take(self._path)
            if not self.missing_bytes:
                log.info("there is room again: the reserve %s is whole", self._path)

    def demand_room(self) -> None:
        """Refuse what takes room while there is none.

        Raises:
            DiskFull: the reserve is not whole, or what is free is less than `ROOM_BYTES`.
        """
        if self._path is None:
            return
        self.refill()
        free = free_bytes(self._path.parent)
        if self.missing_bytes or free < ROOM_BYTES:
            raise DiskFull(
                f"no space left: {self._path.parent} has {free >> 20} MiB free, and anything new needs"
                f" {ROOM_BYTES >> 20} MiB beside the daemon's reserve; free some (hyper rm, hyper system prune)"
            )

    def _take(self, path: Path) -> None:
        """Allocate what is missing, all of it or nothing. Where there can be none it is gone without, and said."""
        try:
            if self._fd < 0:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._size_bytes = min(os.fstat(self._fd).st_size, self._whole_bytes)
            before = self._size_bytes
            try:
                os.posix_fallocate(self._fd, 0, self._whole_bytes)
                self._size_bytes = self._whole_bytes
            except OSError:
                os.ftruncate(self._fd, before)
                raise
        except OSError as err:
            if not is_full(err):
                log.warning("nothing is kept for a full disk: %s cannot be made: %s", path, err.strerror)
                self._whole_bytes = self._size_bytes

    def _give_up(self) -> bool:
        """Give up one slice; False if nothing is left."""
        with self._lock:
            if self._fd < 0 or not self._size_bytes:
                return False
            if not self.missing_bytes:
                log.warning("the disk of %s is full: its reserve is being given up", self._path)
            self._size_bytes = max(0, self._size_bytes - SLICE_BYTES)
            os.ftruncate(self._fd, self._size_bytes)
            with contextlib.suppress(OSError):
                os.fsync(self._fd)  # ext4 gives blocks away again when its journal has what they were
            return True


NONE: Final = Reserve(None)
