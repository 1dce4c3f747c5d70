"""Sparse ext4 files: the writable layer of a container, and volumes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import command, sparse
from runtime.errors import DiskFull, HostUnable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Literal

    Mounted = Literal["barrier", "nobarrier"]

MIN_BYTES = 16 * 1024**2
_TIMEOUT_S = 30.0
_EXTENDED = "assume_storage_prezeroed=1,lazy_itable_init=1,root_owner=0:0"
# No thread that reads the bitmaps of all groups ahead, while the container starts: they are read when they are needed.
_MOUNT = "discard,no_prefetch_block_bitmaps"
_LARGE_JOURNAL_FROM_BYTES = 256 * 1024**2
# fs/ext4/ext4.h: the superblock is at 1024, s_feature_incompat at 0x60 in it.
_INCOMPAT_OFFSET = 1024 + 0x60
_INCOMPAT_RECOVER = 0x4


_KEPT = 8  # sizes of which the blank is kept, of 240 KB each


@dataclass(frozen=True, slots=True)
class Content:
    """What a sparse file holds, to make copies of it: its size, and the parts that are not holes by their offset."""

    size_bytes: int
    parts: tuple[tuple[int, bytes], ...]


_blanks: dict[int, Content] = {}


async def make_writable(path: Path, size_bytes: int) -> None:
    """Make the writable layer of a container, as `make_ext4` does; all of one size are copies of the first.

    Raises:
        DiskFull, HostUnable: as `make_ext4`.
    """
    what = f"the writable layer {path}"
    blank = _blanks.get(size_bytes)
    if blank is None:
        content = path.with_name(f".{path.name}.content")  # beside it: what a crash leaves there is swept
        shutil.rmtree(content, ignore_errors=True)
        try:
            for name in ("upper", "work"):  # what the guest's overlay is made of
                (content / name).mkdir(mode=0o755, parents=True)
            await make_ext4(path, size_bytes, what, content)
        except OSError as err:
            raise DiskFull(f"cannot make {what}: {err.strerror}") from err
        finally:
            shutil.rmtree(content, ignore_errors=True)
        if len(_blanks) >= _KEPT:
            _blanks.pop(next(iter(_blanks)))
        _blanks[size_bytes] = await asyncio.to_thread(read_content, path)
    else:
        await write_content(path, blank, what)


async def write_content(path: Path, content: Content, what: str) -> None:
    """Make the sparse file `path`, whole or not at all. Errors name it as `what`.

    Raises:
        DiskFull: no space left.
    """
    await asyncio.to_thread(_write_data, path, content, what)


async def make_ext4(path: Path, size_bytes: int, what: str, content: Path | None = None) -> None:
    """Make a file system of that apparent size, empty or with `content`; it takes room only as it is written to.

    An existing file is replaced at the end, so that there is never half of one. Errors name it as `what`.

    Raises:
        DiskFull: no space left.
        HostUnable: mke2fs is missing or failed.
    """
    journal_mb = 16 if size_bytes >= _LARGE_JOURNAL_FROM_BYTES else 4
    with _new_file(path, size_bytes, what) as temporary:
        made = await command.run(
            # No root reserve, no resize table, a small journal; the file is known to be zero: 5 ms and 240 KB.
            [
                *f"mke2fs -q -F -t ext4 -m 0 -O ^resize_inode -J size={journal_mb} -E {_EXTENDED}".split(),
                *(("-d", str(content)) if content else ()),
                str(temporary),
            ],
            timeout_s=_TIMEOUT_S,
        )
        if made.returncode != 0:
            kind = DiskFull if "No space" in made.stderr else HostUnable
            raise kind(f"cannot make {what}: {made.last_line}")


@contextlib.contextmanager
def _new_file(path: Path, size_bytes: int, what: str) -> Iterator[Path]:
    """An empty sparse file to fill, which then takes the place of `path`."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            os.truncate(file.fileno(), size_bytes)
        temporary.chmod(0o600)
        yield temporary
        temporary.replace(path)
    except OSError as err:
        raise DiskFull(f"cannot make {what}: {err.strerror}") from err
    finally:
        temporary.unlink(missing_ok=True)


def read_content(path: Path) -> Content:
    """What a sparse file holds.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        ranges = list(sparse.data_ranges(file.fileno()))
        parts = tuple((start, os.pread(file.fileno(), end - start, start)) for start, end in ranges)
    return Content(size_bytes, parts)


def _write_data(path: Path, content: Content, what: str) -> None:
    with _new_file(path, content.size_bytes, what) as temporary, temporary.open("r+b", buffering=0) as file:
        for offset, part in content.parts:
            if os.pwrite(file.fileno(), part, offset) != len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mount_options(path: Path, *, keep: bool = True, mounted: Mounted | None = None) -> dict[str, str]:
    """How a guest mounts the file system to write to it: `options`, and `remount`, those that hold from then on.

    What the mount itself writes need not reach the host's disk at once, unless the journal has to be replayed. With
    `keep` all that follows is flushed as the container asks for it; without, nobody will look at it after a crash.
    `mounted`: the guest has it mounted since it was made, so that an unfinished journal is its own, and like this.
    """
    if mounted is None and needs_recovery(path):
        return {"options": _MOUNT, "remount": ""}
    wanted: Mounted = "barrier" if keep else "nobarrier"
    return {"options": f"{_MOUNT},nobarrier", "remount": "" if wanted == (mounted or "nobarrier") else wanted}


def needs_recovery(path: Path) -> bool:
    """Whether the file system was not unmounted: its journal must be replayed before it can be read."""
    with path.open("rb") as file:
        file.seek(_INCOMPAT_OFFSET)
        return bool(int.from_bytes(file.read(4), "little") & _INCOMPAT_RECOVER)


def used_bytes(path: Path) -> int:
    """What a sparse file takes on the disk; 0 if there is none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
