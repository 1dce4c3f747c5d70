"""The images of this host: one read-only file per manifest digest, shared by all containers of it, and its blobs.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import (
    BadLayer,
    Conflict,
    DiskFull,
    HostUnable,
    ImageUnknown,
    InvalidInput,
    RuntimeFault,
    WrongDigest,
    WrongPlatform,
)
from runtime.images import build, manifest, reference
from runtime.images.access import Access
from runtime.images.blobs import KEEP_UNUSED_S, BlobStore
from runtime.images.image import Image, Progress
from runtime.images.index import ImageIndex
from runtime.images.registry import Registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
    from typing import Any

    InUse = Callable[[], Collection[str]]  # digests of the images that containers were made from, now

_TEMPORARY_PREFIX = ".tmp-"
_SPOILED = (BadLayer, WrongDigest, WrongPlatform, DiskFull)  # what was fetched is of no use, or takes the last space
_DIGEST_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal has done: references and digests that are no more, and the bytes freed."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    freed_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        return {"untagged": list(self.untagged), "deleted": list(self.deleted), "freed_bytes": self.freed_bytes}


def say_nothing(progress: Progress) -> None:
    """What is told of progress where nobody wants to know."""
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
        self.data_dir = data_dir
        self._images_dir = data_dir / "images"
        self.insecure_registries = frozenset(insecure_registries)
        self.limits = limits or build.Limits()
        self._active: set[Path] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._removals = 0
        self._leaving: set[str] = set()
        try:
            self._images_dir.mkdir(parents=True, exist_ok=True)
            self.blobs = BlobStore(data_dir / "blobs")
        except OSError as err:
            raise HostUnable(f"{self._images_dir} cannot be made: {err.strerror}; check data_dir") from err
        self._index = ImageIndex(data_dir / "hyper.db", self._images_dir)

    def close(self) -> None:
        """Close the database."""
        self._index.close()

    def tls_verify(self, wanted: reference.Reference, access: Access) -> bool:
        """Whether this registry's certificate is verified: the caller's word, or the configuration's."""
        if access.tls_verify is not None:
            return access.tls_verify
        return not (wanted.is_loopback or wanted.registry in self.insecure_registries)

    async def pull(
        self, text: str, *, access: Access | None = None, progress: Callable[[Progress], None] = say_nothing
    ) -> Image:
        """Fetch an image unless its digest is here already, and let the reference name it.

        After a failure, and when cancelled, nothing is left behind but whole layers, which the next try need not fetch.

        Args:
            text: A reference as in `docker run`.
            access: How the registry is reached.
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
        access = access or Access()
        progress(Progress("resolving"))
        async with self.temporary() as temporary:
            registry = Registry(
                wanted, access, tls_verify=self.tls_verify(wanted, access), temporary=temporary, blobs=self.blobs
            )
            content, parts = await registry.fetch_manifest()
            digest = manifest.digest_of(content)
            with self.held(digest, parts) as names:
                async with self._locked(digest, progress):
                    if not await asyncio.to_thread(self._is_complete, digest):
                        raw_config = await registry.fetch_config(digest, parts.config)
                        manifest.parse_config(raw_config, str(wanted))  # before layers that are of no use are fetched
                        await asyncio.to_thread(self._drop_cut, parts)
                        made = await registry.copy(digest, parts, progress)
                        await asyncio.to_thread(self._drop, made - names)
                        await self._install(temporary, content, raw_config, progress)
                    await asyncio.to_thread(self._index.tag, str(wanted), digest)
                    image = await self.resolve(digest)
        progress(Progress("done", None, image.size_bytes, image.size_bytes))
        return image

    async def install(
        self,
        temporary: Path,
        content: bytes,
        raw_config: bytes,
        *,
        names: Sequence[str],
        progress: Callable[[Progress], None],
        made_by: Mapping[str, Any] | None = None,
    ) -> Image:
        """Make an image of blobs that are in the store and `held`, unless it is here, and let references name it.

        Args:
            temporary: A directory of `temporary`.
            content: The manifest.
            raw_config: The configuration.
            names: Canonical references.
            progress: Told of each step.
            made_by: How it was built, if it was.

        Raises:
            RuntimeFault: as `pull`.
        """
        digest = manifest.digest_of(content)
        async with self._locked(digest, progress):
            if made_by is not None or not await asyncio.to_thread(self._is_complete, digest):
                await self._install(temporary, content, raw_config, progress, made_by)
            for name in names:
                await asyncio.to_thread(self._index.tag, name, digest)
            return await self.resolve(digest)

    async def _install(
        self,
        temporary: Path,
        content: bytes,
        raw_config: bytes,
        progress: Callable[[Progress], None],
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        digest = manifest.digest_of(content)
        parts = manifest.parse(content, digest)
        if isinstance(parts, manifest.Index):
            raise BadLayer(f"{digest} is an index, not a manifest", field="image")
        config, created_at = manifest.parse_config(raw_config, digest)
        if not self._index.file(digest).is_file():  # it may be that only the blobs were lost
            layers = [layer.digest for layer in parts.layers]
            made = build.Parts(digest, layers, manifest.parse_diff_ids(raw_config, digest))
            file = await build.build(temporary, made, self.blobs, self.limits, progress)
            await asyncio.to_thread(self._keep, file, digest, raw_config)
        sizes = await asyncio.to_thread(self._keep_blobs, content, raw_config, parts)
        size_bytes = self._index.file(digest).stat().st_size
        image = Image(digest, (), created_at, time.time(), size_bytes, self._index.file(digest), config, build=made_by)
        await asyncio.to_thread(self._index.put, image, sizes)

    @contextlib.contextmanager
    def held(self, digest: str, parts: manifest.Manifest) -> Iterator[set[str]]:
        """Keep the blobs of an image from the garbage collection; if they turn out to be of no use, remove them."""
        names = {digest, parts.config.digest, *(layer.digest for layer in parts.layers)}
        try:
            with self.blobs.pinned(names):
                yield names
        except _SPOILED:
            self._drop(names)
            raise

    def parts(self, image: Image) -> tuple[bytes, manifest.Manifest, bytes]:
        """The manifest of an image here, as it is and parsed, and its configuration.

        Raises:
            Conflict: they are not here: the image was pulled before blobs were kept, or its files were removed.
        """
        try:
            content = self.blobs.path(image.digest).read_bytes()
            parts = manifest.parse(content, image.digest)
            if isinstance(parts, manifest.Index):
                raise BadLayer(f"{image.digest} is an index, not a manifest", field="image")
            raw_config = self.blobs.path(parts.config.digest).read_bytes()
            for layer in parts.layers:
                self.blobs.size(layer.digest)
        except FileNotFoundError as err:
            lost = f"sha256:{Path(err.filename).name}"
            raise Conflict(
                f"the image {image.digest} cannot be copied: {lost} of it is not here; pull it again", field="image"
            ) from err
        return content, parts, raw_config

    async def resolve(self, text: str) -> Image:
        """The image that a reference names here, or whose digest (with or without `sha256:`) begins so.

        Raises:
            InvalidInput: not a reference.
            ImageUnknown: it is not here; the message says how to get it.
            Conflict: the beginning of a digest fits several.
        """
        while True:
            removals = self._removals
            image = await self._find(text)
            # A removal that began while we looked has taken what we found, or will have in a moment.
            if removals == self._removals:
                if image.digest not in self._leaving:
                    return image
                raise _unknown(text)

    async def _find(self, text: str) -> Image:
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
            raise _unknown(text)
        return found[0]

    async def list(self) -> tuple[Image, ...]:
        """All images, the newest first."""
        return await asyncio.to_thread(self._index.all)

    async def tag(self, source: str, target: str) -> Image:
        """Let a reference name an image that is here.

        Raises:
            InvalidInput: the target is not a reference by tag.
            ImageUnknown, Conflict: as `resolve`.
        """
        wanted = reference.parse(target)
        if wanted.digest:
            raise InvalidInput(f"{target!r} has a digest; a tag is name:tag", field="target")
        image = await self.resolve(source)
        async with self._locked(image.digest):
            image = await self.resolve(image.digest)
            await asyncio.to_thread(self._index.tag, str(wanted), image.digest)
        return await self.resolve(str(wanted))

    async def untag(self, text: str, in_use: InUse, *, force: bool = False) -> Removed:
        """Forget a reference; with its last one the image goes, or, if its digest is in use, waits for `collect`.

        Args:
            text: A reference, or the (beginning of the) digest of an image that has at most one reference.
            in_use: Asked right before a removal.
            force: With a digest: also if several references name the image.

        Raises:
            ImageUnknown: it is not here.
            Conflict: a digest was given, and several references name the image.
        """
        image = await self.resolve(text)
        async with self._locked(image.digest):
            image = await self.resolve(image.digest)
            names = [name for name in image.references if name == _canonical(text)] or list(image.references)
            if len(names) > 1 and not force:
                raise Conflict(
                    f"{text} is {' and '.join(names)}: remove each by its name, or all with --force", field="image"
                )
            for name in names:
                await asyncio.to_thread(self._index.untag, name)
            if set(image.references) - set(names):
                return Removed(tuple(names))
            if image.digest in in_use():
                await asyncio.to_thread(self._index.doom, image.digest)
                return Removed(tuple(names))
            return Removed(tuple(names), (image.digest,), await self._remove(image))

    async def prune(self, in_use: InUse, *, everything: bool = False) -> Removed:
        """Remove images that no container uses: those without a reference, or, with `everything`, all.

        With `everything`, layers that failed pulls have left go as well.
        """
        untagged: list[str] = []
        deleted: list[str] = []
        freed_bytes = 0
        for one in await self.list():
            async with self._locked(one.digest):
                found = await asyncio.to_thread(self._index.by_digest, one.digest)
                for image in found:  # one, or none if it has gone meanwhile
                    if image.digest not in in_use() and (everything or not image.references):
                        freed_bytes += await self._remove(image)
                        untagged += image.references
                        deleted.append(image.digest)
        older_than_s = 0.0 if everything else KEEP_UNUSED_S
        freed_bytes += await asyncio.to_thread(self._collect_blobs, older_than_s)
        return Removed(tuple(untagged), tuple(deleted), freed_bytes)

    async def collect(self, in_use: InUse) -> tuple[str, ...]:
        """Remove the images that were untagged while in use and are so no more; return their digests."""
        removed = []
        for digest in await asyncio.to_thread(self._index.doomed):
            async with self._locked(digest):
                if digest not in in_use() and digest in await asyncio.to_thread(self._index.doomed):
                    found = await asyncio.to_thread(self._index.by_digest, digest)
                    if digest not in in_use() and found:
                        await self._remove(found[0])
                        removed.append(digest)
        return tuple(removed)

    async def usage(self, in_use: Collection[str]) -> dict[str, int]:
        """What images take on the disk, in bytes; blobs that several images have are counted once."""
        return await asyncio.to_thread(self._usage, in_use)

    def _usage(self, in_use: Collection[str]) -> dict[str, int]:
        images = self._index.all()
        blobs = self._index.all_blobs()
        needed = {blob for image in images if image.digest in in_use for blob in self._index.blobs(image.digest)}
        unused_bytes = self.blobs.unused_bytes(blobs)
        files_bytes = sum(image.size_bytes for image in images)
        idle = [image for image in images if image.digest not in in_use]
        reclaimable = sum(image.size_bytes for image in idle)
        reclaimable += sum(size for blob, size in blobs.items() if blob not in needed)
        return {
            "images": len(images),
            "active": len(images) - len(idle),
            "files_bytes": files_bytes,
            "blobs_bytes": sum(blobs.values()),
            "unused_blobs_bytes": unused_bytes,
            "size_bytes": files_bytes + sum(blobs.values()) + unused_bytes,
            "reclaimable_bytes": reclaimable + unused_bytes,
        }

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
        self._collect_blobs(KEEP_UNUSED_S)

    def _is_complete(self, digest: str) -> bool:
        """Whether the image file and all blobs are here."""
        blobs = self._index.blobs(digest)
        return bool(blobs) and self._index.file(digest).is_file() and all(map(self.blobs.has, blobs))

    @contextlib.asynccontextmanager
    async def _locked(self, digest: str, progress: Callable[[Progress], None] = say_nothing) -> AsyncIterator[None]:
        """One at a time may make or remove an image."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        if lock.locked():
            progress(Progress("waiting"))
        async with lock:
            yield

    def _drop(self, digests: Collection[str]) -> None:
        self.blobs.drop(digests, self._index.all_blobs())

    def _drop_cut(self, parts: manifest.Manifest) -> None:
        """Remove layers that are shorter than they should be: what a power failure may leave."""
        for layer in parts.layers:
            with contextlib.suppress(FileNotFoundError):
                if self.blobs.size(layer.digest) != layer.size_bytes:
                    self.blobs.path(layer.digest).unlink()

    def _collect_blobs(self, older_than_s: float) -> int:
        return self.blobs.collect(self._index.all_blobs(), older_than_s=older_than_s)

    def _keep_blobs(self, content: bytes, raw_config: bytes, parts: manifest.Manifest) -> dict[str, int]:
        """Let all blobs of an image reach the disk; return their sizes in bytes."""
        sizes = {self.blobs.put(one): len(one) for one in (content, raw_config)}
        sizes |= {layer.digest: self.blobs.size(layer.digest) for layer in parts.layers}
        self.blobs.sync(sizes)
        return sizes

    def _keep(self, file: Path, digest: str, raw_config: bytes) -> None:
        """Move a finished file to its place."""
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

    async def _remove(self, image: Image) -> int:
        """Remove an image that its caller has just seen to be unused, before any other task runs; the bytes freed.

        From the first line on `resolve` does not give it any more.
        """
        self._removals += 1
        self._leaving.add(image.digest)
        try:
            return await asyncio.shield(asyncio.to_thread(self._remove_files, image))
        finally:
            self._leaving.discard(image.digest)

    def _remove_files(self, image: Image) -> int:
        """Row first: a crash in between leaves a file without a row, for `sweep`."""
        blobs = self._index.blobs(image.digest)
        self._index.remove(image.digest)
        shutil.rmtree(image.file.parent, ignore_errors=True)
        self._drop(blobs)
        return image.size_bytes + sum(size for blob, size in blobs.items() if not self.blobs.has(blob))

    @contextlib.asynccontextmanager
    async def temporary(self) -> AsyncIterator[Path]:
        """A directory of mode 0700 for one pull, load or build, in the images' file system; removed in any case."""
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


def _unknown(text: str) -> ImageUnknown:
    return ImageUnknown(f"there is no image {text} on this host; get it with: hyper pull {text}", field="image")


def _canonical(text: str) -> str | None:
    try:
        return str(reference.parse(text))
    except InvalidInput:
        return None


def _has_repository(image: Image, name: str) -> bool:
    return any(one.startswith((f"{name}:", f"{name}@")) for one in image.references)
