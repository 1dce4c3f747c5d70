"""Keeping what guests' kernels and QEMU itself say from filling the disk, or the host's memory.

A guest decides how much that is: `console.log` grows with each message of its kernel, and `qemu.log`, which is in the
state directory and so in memory, with each complaint of QEMU's. QEMU appends to both. Beginnings are punched out, as
those of logs are (`runtime.rotation`), so that the last words stay where they were.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import TYPE_CHECKING

from runtime.rotation import punch
from runtime.vm.launch import QEMU_LOG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEPT_BYTES = 1 << 20  # as much as is saved as evidence
_INTERVAL_S = 5.0
_STATE = (f"containers/*/{QEMU_LOG}", f"pool/*/{QEMU_LOG}")
_DATA = ("containers/*/console.log", "pool/*.console", "templates/*/console.log", f"templates/*/{QEMU_LOG}")


async def keep_bounded(state_dir: Path, data_dir: Path) -> None:
    """Cut them until cancelled: of containers, of members of the pool, and of templates that are being made."""
    while True:
        await asyncio.to_thread(cut, state_dir, data_dir)
        await asyncio.sleep(_INTERVAL_S)


def cut(state_dir: Path, data_dir: Path) -> None:
    """Give back what those that take twice `KEPT_BYTES` have before their last `KEPT_BYTES`."""
    for path in _all(state_dir, data_dir):
        try:
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size > KEPT_BYTES and found.st_blocks * 512 > 2 * KEPT_BYTES:
                _cut(path, found.st_size - KEPT_BYTES)
        except FileNotFoundError:
            continue  # its container is gone, or it has just got another name


def _cut(path: Path, end: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        punch(descriptor, end)
    except OSError as err:
        if err.errno != errno.EOPNOTSUPP:
            raise
        os.truncate(descriptor, 0)  # better no last words than a full disk
    finally:
        os.close(descriptor)


def _all(state_dir: Path, data_dir: Path) -> Iterator[Path]:
    for directory, patterns in ((state_dir, _STATE), (data_dir, _DATA)):
        for pattern in patterns:
            yield from directory.glob(pattern)
