"""The writable layer of a container: a sparse ext4 file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import DiskFull, HostUnable

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 30.0
_EXTENDED = "assume_storage_prezeroed=1,lazy_itable_init=1,root_owner=0:0"


async def make_writable(path: Path, size_bytes: int) -> None:
    """Make an empty file system of that apparent size; it takes room only as it is written to.

    An existing file is replaced at the end, so that there is never half of one.

    Raises:
        DiskFull: no space left.
        HostUnable: mke2fs is missing or failed.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            os.truncate(file.fileno(), size_bytes)
        made = await command.run(
            # No root reserve, no resize table, a small journal; the file is known to be zero: 5 ms and 240 KB.
            [*f"mke2fs -q -F -t ext4 -m 0 -O ^resize_inode -J size=16 -E {_EXTENDED}".split(), str(temporary)],
            timeout_s=_TIMEOUT_S,
        )
        if made.returncode != 0:
            kind = DiskFull if "No space" in made.stderr else HostUnable
            raise kind(f"cannot make the writable layer {path}: {made.last_line}")
        temporary.replace(path)
    except OSError as err:
        raise DiskFull(f"cannot make the writable layer {path}: {err.strerror}") from err
    finally:
        temporary.unlink(missing_ok=True)
