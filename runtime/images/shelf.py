"""What images there are: found, named, counted and removed. How they come is in `store.py`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import BadLayer, Conflict, ImageUnknown, InvalidInput, RuntimeFault
from runtime.images import manifest, reference
from runtime.images.blobs import KEEP_UNUSED_S, BlobStore
from runtime.images.image import Image, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from typing import Any

    from runtime.images.index import ImageIndex

    InUse = Callable[[], Collection[str]]  # digests of the images that containers were made from, now

_DIGEST_BEGINNING = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal has done: references and digests that are no more, the bytes freed, and what failed, with why."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    freed_bytes: int = 0
    failed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        return {"untagged": list(self.untagged), "deleted": list(self.deleted), "freed_bytes": self.freed_bytes}


def say_nothing(progress: Progress) -> None:
    """What is told of progress where nobody wants to know."""
    del progress


class Shelf:
    """The images of this host, by reference and by digest; its methods may be called at the same time."""

    def __init__(self, index: ImageIndex, blobs: BlobStore) -> None:
        self._index = index
        self.blobs = blobs
        self._locks: dict[str, asyncio.Lock] = {}
        self._removals = 0
        self._leaving: set[str] = set()

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
            image = await self._named(str(wanted))
            if image is None and wanted.digest:
                # pulled by tag, asked for by digest: the content is the same
                found = await self._beginning(wanted.digest)
                image = next((one for one in found if _has_repository(one, wanted.name)), None)
            if image is not None:
                return image
        beginning = _DIGEST_BEGINNING.fullmatch(text)
        found = await self._beginning(f"sha256:{beginning[1]}") if beginning else ()
        if len(found) > 1:
            raise Conflict(
                f"{len(found)} images have a digest that begins with {text}: write more of it", field="image"
            )
        if not found:
            raise _unknown(text)
        return found[0]

    # What was asked before is answered without a thread: on a busy host its turn takes longer than the answer.

    async def _named(self, canonical: str) -> Image | None:
        known = self._index.remembered(canonical)
        if known is not None:
            return known[0] if known else None
        return await asyncio.to_thread(self._index.by_reference, canonical)

    async def _beginning(self, digest: str) -> tuple[Image, ...]:
        known = self._index.remembered(digest)
        return known if known is not None else await asyncio.to_thread(self._index.by_digest, digest)

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
            last = not set(image.references) - set(names)
            if last:  # first: a crash in between leaves no image that nothing names
                await asyncio.to_thread(self._index.doom, image.digest)
            for name in names:
                await asyncio.to_thread(self._index.untag, name)
            if not last or image.digest in in_use():
                return Removed(tuple(names))
            return Removed(tuple(names), (image.digest,), await self._remove(image))

    async def prune(self, in_use: InUse, *, everything: bool = False) -> Removed:
        """Remove images that no container uses: those without a reference, or, with `everything`, all.

        With `everything`, layers that failed pulls have left go as well.
        """
        untagged: list[str] = []
        deleted: list[str] = []
        failed: list[str] = []
        freed_bytes = 0
        for one in await self.list():
            async with self._locked(one.digest):
                found = await asyncio.to_thread(self._index.by_digest, one.digest)
                for image in found:  # one, or none if it has gone meanwhile
                    if image.digest not in in_use() and (everything or not image.references):
                        try:
                            freed_bytes += await self._remove(image)
                        except RuntimeFault as err:
                            failed.append(f"{image.name}: {err.message}")
                            continue
                        untagged += image.references
                        deleted.append(image.digest)
        older_than_s = 0.0 if everything else KEEP_UNUSED_S
        freed_bytes += await asyncio.to_thread(self._collect_blobs, older_than_s)
        return Removed(tuple(untagged), tuple(deleted), freed_bytes, tuple(failed))

    async def collect(self, in_use: InUse) -> tuple[str, ...]:
        """Remove the images that were untagged while in use and are so no more; return their digests."""
        removed = []
        for digest in await asyncio.to_thread(self._index.doomed) if self._index.has_doomed() else ():
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
        unused_bytes = self.blobs.unused_bytes()
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

    @contextlib.asynccontextmanager
    async def _locked(self, digest: str, progress: Callable[[Progress], None] = say_nothing) -> AsyncIterator[None]:
        """One at a time may make or remove an image."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        if lock.locked():
            progress(Progress("waiting"))
        async with lock:
            yield

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

    def _drop(self, digests: Collection[str]) -> None:
        self.blobs.drop(digests)

    def _collect_blobs(self, older_than_s: float) -> int:
        return self.blobs.collect(older_than_s=older_than_s)


def _unknown(text: str) -> ImageUnknown:
    return ImageUnknown(f"there is no image {text} on this host; get it with: hyper pull {text}", field="image")


def _canonical(text: str) -> str | None:
    try:
        return str(reference.parse(text))
    except InvalidInput:
        return None


def _has_repository(image: Image, name: str) -> bool:
    return any(one.startswith((f"{name}:", f"{name}@")) for one in image.references)
