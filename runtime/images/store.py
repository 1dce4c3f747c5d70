"""The images of this host: one read-only file per manifest digest, shared by all containers of it.

An image is here when its row is in the database and its file is in place. The file comes first, by a rename; a row
without a file or a file without a row is what a crash leaves, and `sweep` removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import Conflict, DiskFull, HostUnable, ImageUnknown, InvalidInput, RuntimeFault
from runtime.images import build, manifest, reference
from runtime.images.image import Image, Progress
from runtime.images.index import ImageIndex
from runtime.images.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

_TEMPORARY_PREFIX = ".tmp-"
_DIGEST_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")


def _say_nothing(progress: Progress) -> None:
    del progress


class ImageStore:
    """Pull, find and remove images. One per data directory; its methods may be called at the same time."""

    def __init__(
        self, data_dir: Path, *, insecure_registries: Sequence[str] = (), limits: build.Limits | None = None
    ) -> None:
        """Open the store; directories and tables that are missing are made.

        Raises:
            HostUnable: the directory or the database cannot be used.
        """
        self._images_dir = data_dir / "images"
        self._insecure = frozenset(insecure_registries)
        self._limits = limits or build.Limits()
        self._active: set[Path] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        try:
            self._images_dir.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise HostUnable(f"{self._images_dir} cannot be made: {err.strerror}; check data_dir") from err
        self._index = ImageIndex(data_dir / "hyper.db", self._images_dir)

    def close(self) -> None:
        """Close the database."""
        self._index.close()

    async def pull(
        self, text: str, *, tls_verify: bool | None = None, progress: Callable[[Progress], None] = _say_nothing
    ) -> Image:
        """Fetch an image unless its digest is here already, and let the reference name it.

        After any failure, and when cancelled, nothing is left behind.

        Args:
            text: A reference as in `docker run`.
            tls_verify: None: verify, except for registries on loopback and in `insecure_registries`.
            progress: Called with each step, in the event loop.

        Raises:
            InvalidInput: not a reference.
            ImageUnknown: the registry has no such image.
            Upstream: the registry cannot be reached, or answers wrongly.
            WrongDigest: the content does not have the digest asked for.
            WrongPlatform: the image is not for this architecture.
            BadLayer: a layer leaves its root, is too large, or cannot be unpacked.
            DiskFull: no space.
            HostUnable: skopeo, umoci or mkfs.erofs is not installed.
        """
        wanted = reference.parse(text)
        if tls_verify is None:
            tls_verify = not (wanted.is_loopback or wanted.registry in self._insecure)
        progress(Progress("resolving"))
        async with self._temporary() as temporary:
            registry = Registry(wanted, tls_verify=tls_verify, temporary=temporary)
            digest, parts = await registry.fetch_manifest()
            lock = self._locks.setdefault(digest, asyncio.Lock())
            if lock.locked():
                progress(Progress("waiting"))
            async with lock:
                if not await self._has(digest):
                    raw_config = await registry.fetch_config(digest, parts.config)
                    config, created_at = manifest.parse_config(raw_config, str(wanted))
                    await registry.copy(digest, parts, progress)
                    file = await build.build(temporary, digest, self._limits, progress)
                    size_bytes = await asyncio.to_thread(self._keep, file, digest, raw_config)
                    image = Image(digest, (), created_at, time.time(), size_bytes, self._index.file(digest), config)
                    await asyncio.to_thread(self._index.put, image)
                await asyncio.to_thread(self._index.tag, str(wanted), digest)
        image = await self.resolve(str(wanted))
        progress(Progress("done", None, image.size_bytes, image.size_bytes))
        return image

    async def resolve(self, text: str) -> Image:
        """The image that a reference names here, or whose digest (with or without `sha256:`) begins so.

        Raises:
            InvalidInput: not a reference.
            ImageUnknown: it is not here; the message says how to get it.
            Conflict: the beginning of a digest fits several.
        """
        try:
            wanted = reference.parse(text)
        except InvalidInput:
            if not _DIGEST_BEGINNING.fullmatch(text):
                raise
        else:
            image = await asyncio.to_thread(self._index.by_reference, str(wanted))
            if image is None and wanted.digest:
                # pulled by tag, asked for by digest: the content is the same
                found = await asyncio.to_thread(self._index.by_digest, wanted.digest)
                image = next((one for one in found if _has_repository(one, wanted.name)), None)
            if image is not None:
                return image
        beginning = _DIGEST_BEGINNING.fullmatch(text)
        found = await asyncio.to_thread(self._index.by_digest, f"sha256:{beginning[1]}") if beginning else ()
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} images have a digest that begins with {text}: write more of it", field="image"
            )
        if not found:
            raise ImageUnknown(f"there is no image {text} on this host; get it with: hyper pull {text}", field="image")
        return found[0]

    async def list(self) -> tuple[Image, ...]:
        """All images, the newest first."""
        return await asyncio.to_thread(self._index.all)

    async def untag(self, text: str, in_use: Collection[str]) -> None:
        """Forget a reference; with its last one the image goes, or, if its digest is in use, waits for `collect`.

        Args:
            text: A reference, or the (beginning of the) digest of an image that has at most one reference.
            in_use: Digests of the images that containers were made from.

        Raises:
            ImageUnknown: it is not here.
            Conflict: a digest was given, and several references name the image.
        """
        image = await self.resolve(text)
        async with self._locks.setdefault(image.digest, asyncio.Lock()):
            image = await self.resolve(text)
            names = [name for name in image.references if name == _canonical(text)] or list(image.references)
            if len(names) > 1:
                raise Conflict(f"{text} is {' and '.join(names)}: remove each by its name", field="image")
            for name in names:
                await asyncio.to_thread(self._index.untag, name)
            if set(image.references) - set(names):
                return
            if image.digest in in_use:
                await asyncio.to_thread(self._index.doom, image.digest)
            else:
                await asyncio.to_thread(self._remove, image.digest)

    async def collect(self, in_use: Collection[str]) -> tuple[str, ...]:
        """Remove the images that were untagged while in use and are so no more; return their digests."""
        removed = []
        for digest in await asyncio.to_thread(self._index.doomed):
            async with self._locks.setdefault(digest, asyncio.Lock()):
                if digest not in in_use and digest in await asyncio.to_thread(self._index.doomed):
                    await asyncio.to_thread(self._remove, digest)
                    removed.append(digest)
        return tuple(removed)

    async def sweep(self) -> None:
        """Remove what a crash has left: temporaries, files without a row, rows without a file.

        Call it before the first pull.
        """
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        known = {image.digest for image in self._index.all()}
        for path in self._images_dir.iterdir():
            if path not in self._active and f"sha256:{path.name}" not in known:
                shutil.rmtree(path)
        for digest in known:
            if not self._index.file(digest).is_file():
                self._index.remove(digest)

    async def _has(self, digest: str) -> bool:
        found = await asyncio.to_thread(self._index.by_digest, digest)
        return bool(found) and found[0].file.is_file()

    def _keep(self, file: Path, digest: str, raw_config: bytes) -> int:
        """Move a finished file to its place; return its size in bytes."""
        place = self._index.file(digest).parent
        staged = file.parent / "staged"
        staged.mkdir()
        (staged / "config.json").write_bytes(raw_config)
        file = file.rename(staged / file.name)
        build.sync(staged / "config.json")
        build.sync(staged)
        if place.exists():  # without its row: what a crash left
            shutil.rmtree(place)
        staged.rename(place)
        build.sync(self._images_dir)
        return (place / file.name).stat().st_size

    def _remove(self, digest: str) -> None:
        """Row first: a crash in between leaves a file without a row, for `sweep`."""
        self._index.remove(digest)
        shutil.rmtree(self._index.file(digest).parent, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _temporary(self) -> AsyncIterator[Path]:
        """A directory of mode 0700 for one pull, in the images' file system; removed however the pull ends."""
        try:
            path = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=self._images_dir))
            self._active.add(path)
            try:
                yield path
            finally:
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, path))
                self._active.discard(path)
        except RuntimeFault:
            raise
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"{self._images_dir}: no space left; free some space") from err
            raise HostUnable(f"{self._images_dir} cannot be written: {err}") from err


def _canonical(text: str) -> str | None:
    try:
        return str(reference.parse(text))
    except InvalidInput:
        return None


def _has_repository(image: Image, name: str) -> bool:
    return any(one.startswith((f"{name}:", f"{name}@")) for one in image.references)
