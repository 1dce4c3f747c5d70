"""Verify the layers of an image and read them before anything is unpacked: names that leave the root, and bombs.

A program of its own, because tar is a stranger's input that may take seconds and memory: `build.py` runs it under
limits and may kill it. Only the standard library is imported, and it is run by its path, so it works wherever the
package lies. What it refuses follows Docker's "breakout" errors; names inside the root are left to umoci, which
resolves every symbolic link within the root.

Usage: layers.py MAX-BYTES MAX-ENTRIES BLOB…, where each blob's file name is its digest. Prints `{"bytes", "entries",
"compressions"}`, or `{"error", "layer", "is_damaged"}`; damaged is a blob that has not the digest of its name.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES = 1 << 20
EXTENDED_HEADER_LIMIT_BYTES = 1 << 20  # pax headers, long names: no real archive comes near it
PATH_LIMIT = 4096  # PATH_MAX
ZSTD = ("zstd", "-dcq", "--no-progress")
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_EXTENDED_TYPES = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class Refused(Exception):  # noqa: N818 -- reads as what happened
    """A layer that is not to be unpacked; the text says why."""


class Entry(tarfile.TarInfo):
    """An entry whose extended headers have a limit: tarfile reads them into memory whole."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in _EXTENDED_TYPES and self.size > EXTENDED_HEADER_LIMIT_BYTES):
            raise Refused(
                f"an entry has a header of {self.size} bytes; at most {EXTENDED_HEADER_LIMIT_BYTES} are taken"
            )
        return super()._proc_member(tar)  # type: ignore[misc]  # the hook that tarfile itself names for subclasses


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """A file that may be read only so far."""

    def __init__(self, file: _Readable, limit_bytes: int) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self.bytes_read = 0

    def read(self, size: int = READ_BYTES) -> bytes:
        data = self._file.read(size)
        self.bytes_read += len(data)
        if self.bytes_read > self._limit_bytes:
            raise Refused(f"it unpacks to more than {self._limit_bytes} bytes")
        return data


def inside(name: str) -> bool:
    """Whether a name, taken from the root, stays in it lexically."""
    depth = 0
    for part in name.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return False
    return True


def check(entry: tarfile.TarInfo) -> None:
    """Check one entry's names.

    Raises:
        Refused: it would leave the root, or replace it.
    """
    for name in (entry.name, entry.linkname):
        if "\0" in name or len(name) > PATH_LIMIT:
            raise Refused(
                f"the entry {name[:100]!r}… has a name of {len(name)} characters; at most {PATH_LIMIT} are taken"
            )
    if not inside(entry.name):
        raise Refused(f"the entry {entry.name!r} leaves the image's root")
    if entry.islnk() and not inside(entry.linkname):
        raise Refused(f"the hard link {entry.name!r} leads to {entry.linkname!r}, outside the image's root")
    if entry.name.rpartition("/")[2] in (".wh.", ".wh..", ".wh..."):
        raise Refused(f"the entry {entry.name!r} deletes no file but its own directory, or the one above")
    is_root = not [part for part in entry.name.split("/") if part not in ("", ".")]
    if is_root and not entry.isdir():
        raise Refused("an entry replaces the image's root by something that is no directory")


def compression(blob: Path) -> str:
    """`gzip`, `zstd` or `none`, by its first bytes: what a manifest says of it may be wrong."""
    with blob.open("rb") as raw:
        magic = raw.read(4)
    if magic == ZSTD_MAGIC:
        return "zstd"
    return "gzip" if magic[:2] == GZIP_MAGIC else "none"


def entries(blob: Path, limit_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The entries of one layer; the rest of the stream is read as well, as its digest covers it."""
    with _plain(blob) as raw:
        counted = _Counted(raw, limit_bytes)
        # fileobj needs no more than read() in stream mode
        with tarfile.open(fileobj=counted, mode="r|", tarinfo=Entry, bufsize=READ_BYTES) as tar:  # type: ignore[call-overload]
            for entry in tar:
                tar.members = []  # it would keep every entry it has read
                yield entry
        while counted.read():
            pass


@contextlib.contextmanager
def _plain(blob: Path) -> Iterator[_Readable]:
    """A layer without its compression."""
    kind = compression(blob)
    with blob.open("rb") as raw:
        if kind != "zstd":
            yield gzip.GzipFile(fileobj=raw) if kind == "gzip" else raw
            return
        with subprocess.Popen(ZSTD, stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None  # noqa: S101 -- for the type checker: it was asked for as a pipe
            assert process.stderr is not None  # noqa: S101 -- as above
            try:
                yield process.stdout
                message = process.stderr.read(1000).decode(errors="replace").strip()
                if process.wait() != 0:
                    raise OSError(message or "zstd failed")
            finally:
                process.kill()


def scan(blobs: list[Path], max_bytes: int, max_entries: int) -> dict[str, object]:
    """Add up what the layers unpack to; stop at the first thing that is refused."""
    total_bytes = total_entries = 0
    for blob in blobs:
        try:
            with blob.open("rb") as raw:
                if hashlib.file_digest(raw, "sha256").hexdigest() != blob.name:
                    return _refusal(blob, "it has not the digest of its name", is_damaged=True)
            for entry in entries(blob, max_bytes + (64 << 20)):  # headers and padding are not what the limit is for
                check(entry)
                total_entries += 1
                total_bytes += entry.size if entry.isreg() else 0
                _bound(total_bytes, max_bytes, "bytes")
                _bound(total_entries, max_entries, "entries")
        except Refused as err:
            return _refusal(blob, str(err))
        except FileNotFoundError as err:
            return _refusal(blob, f"{err.filename} is missing")
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as err:
            return _refusal(blob, f"it is not a whole tar archive: {err}")
        except MemoryError:
            return _refusal(blob, "its headers do not fit in memory")
    return {"bytes": total_bytes, "entries": total_entries, "compressions": [compression(blob) for blob in blobs]}


def _refusal(blob: Path, error: str, *, is_damaged: bool = False) -> dict[str, object]:
    return {"error": error, "layer": f"sha256:{blob.name}", "is_damaged": is_damaged}


def _bound(value: int, limit: int, unit: str) -> None:
    if value > limit:
        raise Refused(f"the image has more than {limit} {unit} with this layer")


def main(max_bytes: str, max_entries: str, *blobs: str) -> None:
    """Scan layers."""
    print(json.dumps(scan([Path(blob) for blob in blobs], int(max_bytes), int(max_entries))))  # noqa: T201 -- stdout is this program's answer


if __name__ == "__main__":
    main(*sys.argv[1:])
