"""Unpack what a client sends to be built: a Containerfile, and the context that it may copy from.

The archive is a stranger's. While files are written there is no symbolic link in the directory, as links are made
last, and no name comes twice: so no name can lead out of it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from typing import TYPE_CHECKING

from runtime.errors import InvalidInput
from runtime.images.layers import READ_BYTES, Entry, Refused, inside

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES_LIMIT = 500_000
CONTAINERFILE = "Containerfile"
CONTEXT = "context"
CONTAINERFILE_LIMIT_BYTES = 1 << 20


def unpack(archive: Path, directory: Path, limit_bytes: int) -> str:
    """Unpack into a new directory, which then has `Containerfile` and `context`; return the digest of the context.

    The digest covers names, kinds, modes and contents, not owners and times: the same files have the same digest.

    Raises:
        InvalidInput: the archive is not what `hyper build` sends, or too large.
        OSError: it cannot be written.
    """
    directory.mkdir(mode=0o700)
    (directory / CONTEXT).mkdir(mode=0o755)
    told: dict[str, str] = {}
    links: list[tuple[Path, str]] = []
    total = 0
    try:
        with tarfile.open(archive, mode="r|", tarinfo=Entry, bufsize=READ_BYTES) as tar:
            for entry in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every entry it has read
                name = _name(entry, told)
                total += entry.size if entry.isreg() else 0
                _bound(total, limit_bytes, "bytes")
                _bound(len(told), ENTRIES_LIMIT, "entries")
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry.isdir():
                    target.mkdir(exist_ok=True)
                    target.chmod(entry.mode & 0o7777)
                    told[name] = f"d {entry.mode & 0o7777:o}"
                elif entry.issym():
                    links.append((target, entry.linkname))
                    told[name] = f"l {entry.linkname}"
                else:
                    told[name] = f"f {entry.mode & 0o7777:o} {_write(tar, entry, target)}"
        for target, text in links:
            target.symlink_to(text)
    except Refused as err:
        raise InvalidInput(f"the context is refused: {err}", field="context") from err
    except (tarfile.TarError, EOFError, ValueError, OverflowError, FileExistsError, NotADirectoryError) as err:
        raise InvalidInput(f"the context is not a whole archive: {err}", field="context") from err
    if CONTAINERFILE not in told:
        raise InvalidInput(f"the context has no {CONTAINERFILE} beside it", field="context")
    if (directory / CONTAINERFILE).stat().st_size > CONTAINERFILE_LIMIT_BYTES:
        raise InvalidInput(f"the {CONTAINERFILE} is larger than {CONTAINERFILE_LIMIT_BYTES} bytes", field="context")
    lines = (f"{name}\0{text}\n" for name, text in sorted(told.items()) if name != CONTAINERFILE)
    return f"sha256:{hashlib.sha256(''.join(lines).encode(errors='surrogateescape')).hexdigest()}"


def _name(entry: tarfile.TarInfo, told: dict[str, str]) -> str:
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if not inside(entry.name) or ".." in parts or "\0" in name:
        raise Refused(f"the entry {entry.name!r} leaves it")
    if name != CONTAINERFILE and parts[:1] != [CONTEXT]:
        raise Refused(f"the entry {entry.name!r} is neither {CONTAINERFILE} nor below {CONTEXT}/")
    if name in told:
        raise Refused(f"the entry {entry.name!r} comes twice")
    if not (entry.isreg() or entry.isdir() or entry.issym()) or entry.issparse():
        raise Refused(f"the entry {entry.name!r} is neither a file, a directory nor a symbolic link")
    if name in (CONTAINERFILE, CONTEXT) and entry.isdir() != (name == CONTEXT):
        raise Refused(f"the entry {entry.name!r} is of the wrong kind")
    if name == CONTAINERFILE and not entry.isreg():
        raise Refused(f"the {CONTAINERFILE} is not a plain file")
    return name


def _bound(value: int, limit: int, unit: str) -> None:
    if value > limit:
        raise Refused(f"it has more than {limit} {unit}")


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> str:
    hasher = hashlib.sha256()
    source = tar.extractfile(entry)
    with target.open("xb") as out:
        while source is not None and (chunk := source.read(READ_BYTES)):
            hasher.update(chunk)
            out.write(chunk)
    target.chmod(entry.mode & 0o7777)
    os.utime(target, (entry.mtime, entry.mtime))
    return hasher.hexdigest()
