"""Copying a sparse file: by reference where the file system can (btrfs, XFS), else its data without its holes."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from runtime import sparse
from runtime.errors import DiskFull, HostUnable

if TYPE_CHECKING:
    from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h; ioctl_ficlone(2)
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
_CHUNK_BYTES = 8 << 20
_SPARE_BYTES = 16 << 20  # a disk that is filled to the last byte takes the daemon's database with it


def copy(source: Path, target: Path) -> None:
    """Copy `source` to the new file `target` and let it reach the disk. Blocks: call it in a thread.

    Raises:
        DiskFull: there is no room; `target` is not left behind.
        HostUnable: one of them cannot be read or written; as above.
    """
    try:
        with source.open("rb") as origin, target.open("xb") as copied:
            if not _cloned(origin.fileno(), copied.fileno()):
                _check_room(origin.fileno(), target)
                _copy_data(origin.fileno(), copied.fileno())
            os.fsync(copied.fileno())
    except DiskFull:
        target.unlink(missing_ok=True)
        raise
    except OSError as err:
        target.unlink(missing_ok=True)
        raise fault(err, f"cannot copy {source.parent.name}") from err


def fault(err: OSError, what: str) -> DiskFull | HostUnable:
    """What a failed write means."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: no space left below data_dir; free some (hyper system prune)")
    return HostUnable(f"{what}: {err.strerror or err}")


def _cloned(origin: int, copied: int) -> bool:
    try:
        fcntl.ioctl(copied, _FICLONE, origin)
    except OSError as err:
        if err.errno not in _NO_CLONE:
            raise
        return False
    return True


def _check_room(origin: int, target: Path) -> None:
    needed = os.fstat(origin).st_blocks * 512
    room = os.statvfs(target.parent)
    free = room.f_bavail * room.f_frsize
    if needed + _SPARE_BYTES > free:
        raise DiskFull(
            f"a copy needs {needed >> 20} MiB and {free >> 20} MiB are left below data_dir:"
            " free some (hyper system prune)"
        )


def _copy_data(origin: int, copied: int) -> None:
    os.truncate(copied, os.fstat(origin).st_size)
    for start, end in sparse.data_ranges(origin):
        offset = start
        while offset < end:
            data = os.pread(origin, min(_CHUNK_BYTES, end - offset), offset)
            if not data:
                return
            offset += os.pwrite(copied, data, offset)
