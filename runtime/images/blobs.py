"""The blobs of images as registries have them: manifests, configurations, layers; one file per digest, shared.

They are kept beside the image files because a digest cannot be made again: an unpacked layer packed anew has another
one. With them an image is pushed, saved and built upon under the digest it came with. A blob that no image has (what a
failed pull had fetched) is kept for a day, so that the next try need not fetch it again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from runtime.images.manifest import digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

KEEP_UNUSED_S = 86_400.0


class BlobStore:
    """A directory `sha256/<hex>`, as in an OCI layout; skopeo takes it as its shared blob directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
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
        self._pins.update(held)
        try:
            yield
        finally:
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

    def drop(self, digests: Iterable[str], referenced: Collection[str]) -> None:
        """Remove those of these that nothing refers to."""
        for digest in digests:
            if digest not in referenced and digest not in self._pins:
                self.path(digest).unlink(missing_ok=True)

    def collect(self, referenced: Collection[str], *, older_than_s: float) -> int:
        """Remove blobs that no image has and that have not been touched for so long; return the bytes freed."""
        freed = 0
        for path, size_bytes, age_s in self._unused(referenced):
            if age_s >= older_than_s:
                path.unlink(missing_ok=True)
                freed += size_bytes
        return freed

    def unused_bytes(self, referenced: Collection[str]) -> int:
        """What `collect` could free."""
        return sum(size_bytes for _, size_bytes, _ in self._unused(referenced))

    def _unused(self, referenced: Collection[str]) -> Iterator[tuple[Path, int, float]]:
        now = time.time()
        with os.scandir(self._files) as found:
            for entry in found:
                digest = f"sha256:{entry.name}"
                if digest in referenced or digest in self._pins:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield self._files / entry.name, stat.st_size, now - stat.st_mtime
