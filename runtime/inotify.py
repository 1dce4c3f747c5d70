"""Waking whoever waits for a file to grow: one inotify(7) instance for all, as a user may have but few of them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IN_MODIFY = 0x2
_EVENT = struct.Struct("iIII")
_READ_BYTES = 16384
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Files that somebody waits for. Opened when it is first used, in the loop that uses it."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._waiting: dict[int, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def of(self, path: Path) -> Iterator[asyncio.Event]:
        """An event that is set whenever the file has been written to; whoever waits clears it.

        Where the kernel gives no watch (its limits are used up) the event stays silent: wait with a timeout.
        """
        event = asyncio.Event()
        watch = self._add(path)
        self._waiting.setdefault(watch, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting.get(watch, set())
            waiting.discard(event)
            if not waiting:
                self._waiting.pop(watch, None)
                if watch >= 0:
                    _libc.inotify_rm_watch(self._descriptor, watch)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, path: Path) -> int:
        if self._descriptor < 0:
            self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._descriptor < 0:
                return -1
            asyncio.get_running_loop().add_reader(self._descriptor, self._wake)
        return int(_libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_MODIFY))

    def _wake(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset + _EVENT.size <= len(data):
            watch, _, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            for event in self._waiting.get(watch, ()):
                event.set()
