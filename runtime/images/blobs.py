"""The blobs of images as registries have them: manifests, configurations, layers; one file per digest, shared.

They are kept beside the image files because a digest cannot be made again: an unpacked layer packed anew has another
one. With them an image is pushed, saved and built upon under the digest it came with. A blob that no image has (what a
failed pull had fetched) is kept for a day, so that the next try need not fetch it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from runtime.images.manifest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

KEEP_UNUSED_S = 86_400.0
_TRASH = ".trash-"
# Names that only we and skopeo give: blobs, those that `put` writes, those that `_discard` removes.
_OURS = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9]+|\.trash-.+")


class BlobStore:
    """A directory `sha256/<hex>`, as in an OCI layout; skopeo takes it as its shared blob directory.

    A blob stays while an image refers to it (`referenced` tells the digests) or somebody has pinned it. Pins are taken
    and released under the lock that removals hold, and an image is entered while its blobs are pinned: so that nothing
    falls between the two.
    """

    def __init__(self, directory: Path, referenced: Callable[[], Collection[str]]) -> None:
        self.directory = directory
        self._referenced = referenced
        self._lock = threading.Lock()
        self._files = directory / "sha256"
        self._files.mkdir(parents=True, exist_ok=True)
        self._pins: Counter[str] = Counter()

    def path(self, digest: str) -> Path:
        """Where the blob of a digest is, or would be."""
        return self._files / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether it is here."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Its bytes.

        Raises:
            OSError: it is not here.
        """
        return self.path(digest).stat().st_size

    def is_whole(self, digest: str) -> bool:
        """Whether its content has its digest; all of it is read.

        Raises:
            OSError: it is not here.
        """
        with self.path(digest).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.removeprefix("sha256:")

    def put(self, content: bytes) -> str:
        """Keep a small blob, synced; return its digest."""
        digest = digest_of(content)
        path = self.path(digest)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with staged.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staged.rename(path)
        finally:
            staged.unlink(missing_ok=True)
        return digest

    def adopt(self, file: Path, digest: str) -> None:
        """Take over a file whose digest was verified, on the same file system."""
        if self.has(digest):
            file.unlink()
        else:
            file.rename(self.path(digest))

    @contextlib.contextmanager
    def pinned(self, digests: Iterable[str]) -> Iterator[None]:
        """While this lasts, `collect` and `drop` leave these alone."""
        held = Counter(set(digests))
        with self._lock:
            self._pins.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._pins -= held

    def sync(self, digests: Iterable[str]) -> None:
        """Let blobs reach the disk, with their names.

        Raises:
            OSError: one is not here.
        """
        for path in (*map(self.path, digests), self._files):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def sweep(self) -> None:
        """Remove what a crash has left half written or half removed; call it before the first use."""
        with os.scandir(self._files) as found:
            for entry in found:
                if entry.name.startswith(".") and _OURS.fullmatch(entry.name):
                    self._files.joinpath(entry.name).unlink(missing_ok=True)

    def drop(self, digests: Iterable[str]) -> None:
        """Remove those of these that no image has."""
        names = {digest.removeprefix("sha256:") for digest in digests}
        self._discard(lambda name, _: name in names)

    def collect(self, *, older_than_s: float) -> int:
        """Remove blobs that no image has and that have not been touched for so long; return the bytes freed."""
        return self._discard(lambda _, age_s: age_s >= older_than_s)

    def unused_bytes(self) -> int:
        """What `collect` could free."""
        with self._lock:
            return sum(stat.st_size for _, stat in self._unused())

    def _discard(self, is_wanted: Callable[[str, float], bool]) -> int:
        """Remove unused blobs by name and age; under the lock they are only renamed, as a large file takes time."""
        freed = 0
        gone = []
        with self._lock:
            now = time.time()
            for path, stat in self._unused():
                if path.name.startswith(_TRASH):
                    gone.append(path)  # what a crash has left
                elif is_wanted(path.name, now - stat.st_mtime):
                    with contextlib.suppress(FileNotFoundError):
                        gone.append(path.rename(path.with_name(f"{_TRASH}{path.name}.{secrets.token_hex(4)}")))
                        freed += stat.st_size
        for path in gone:
            path.unlink(missing_ok=True)
        return freed

    def _unused(self) -> Iterator[tuple[Path, os.stat_result]]:
        referenced = self._referenced()
        with os.scandir(self._files) as found:
            for entry in found:
                if not _OURS.fullmatch(entry.name):
                    continue
                # `.<hex>.…` is one that `put` writes
                digest = f"sha256:{entry.name.removeprefix('.').partition('.')[0]}"
                if digest in referenced or digest in self._pins:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield self._files / entry.name, entry.stat()
