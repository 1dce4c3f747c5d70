"""The images of this host: one read-only file per manifest digest, shared by all containers of it, and its blobs.

An image is here when its row is in the database and its file is in place. The file comes first, by a rename; a row
without a file or a file without a row is what a crash leaves, and `sweep` removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import (
    BadLayer,
    DiskFull,
    HostUnable,
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
from runtime.images.shelf import Shelf, say_nothing
from runtime.reserve import NONE, Reserve, is_full

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from typing import Any

_TEMPORARY_PREFIX = ".tmp-"
_HEX = re.compile(r"[0-9a-f]{64}")
_SPOILED = (BadLayer, WrongDigest, WrongPlatform, DiskFull)  # what was fetched is of no use, or takes the last space

__all__ = ["ImageStore", "say_nothing"]


class ImageStore(Shelf):
    """Pull, find and remove images. One per data directory; its methods may be called at the same time."""

    def __init__(
        self,
        data_dir: Path,
        *,
        insecure_registries: Sequence[str] = (),
        limits: build.Limits | None = None,
        reserve: Reserve = NONE,
    ) -> None:
        """Open the store; directories and tables that are missing are made.

        Raises:
            HostUnable: the directory or the database cannot be used.
        """
        self.data_dir = data_dir
        self._reserve = reserve
        self._images_dir = data_dir / "images"
        self.insecure_registries = frozenset(insecure_registries)
        self.limits = limits or build.Limits()
        self._active: set[Path] = set()
        try:
            self._images_dir.mkdir(parents=True, exist_ok=True)
            index = ImageIndex(data_dir / "hyper.db", self._images_dir, reserve)
            super().__init__(index, BlobStore(data_dir / "blobs", index.all_blobs))
        except OSError as err:
            raise HostUnable(f"{self._images_dir} cannot be made: {err.strerror}; check data_dir") from err

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
                        await asyncio.to_thread(self._demand_sizes, parts, str(wanted))
                        await self._install(temporary, content, raw_config, progress, to_be_named=True)
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
                await self._install(temporary, content, raw_config, progress, made_by, to_be_named=bool(names))
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
        *,
        to_be_named: bool,
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
        sizes = await asyncio.to_thread(self._keep_blobs, content, raw_config, parts, made_by or {})
        size_bytes = self._index.file(digest).stat().st_size
        image = Image(digest, (), created_at, time.time(), size_bytes, self._index.file(digest), config, build=made_by)
        await asyncio.to_thread(self._index.put, image, sizes, to_be_named=to_be_named)

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

    def count(self) -> int:
        """How many image files are here, those in the making among them."""
        with os.scandir(self._images_dir) as found:
            return sum(1 for _ in found)

    async def sweep(self) -> None:
        """Remove what a crash has left: temporaries, files without a row, rows without a file.

        Call it before the first pull.
        """
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        known = {image.digest for image in self._index.all()}
        for path in self._images_dir.iterdir():
            ours = path.name.startswith(_TEMPORARY_PREFIX) or _HEX.fullmatch(path.name)
            if ours and path not in self._active and f"sha256:{path.name}" not in known:
                shutil.rmtree(path)
        for digest in known:
            if not self._index.file(digest).is_file():
                self._index.remove(digest)
        self.blobs.sweep()
        self._collect_blobs(KEEP_UNUSED_S)

    def _is_complete(self, digest: str) -> bool:
        """Whether the image file and all blobs are here."""
        blobs = self._index.blobs(digest)
        return bool(blobs) and self._index.file(digest).is_file() and all(map(self.blobs.has, blobs))

    def _drop_cut(self, parts: manifest.Manifest) -> None:
        """Remove layers that are shorter than they should be: what a power failure may leave.

        The manifest's word alone is no reason to: others may have the layer, and it may be nowhere else.
        """
        for layer in parts.layers:
            with contextlib.suppress(FileNotFoundError):
                size = self.blobs.size(layer.digest)
                known = size == layer.size_bytes or size == self._index.all_blobs().get(layer.digest)
                if not known and not self.blobs.is_whole(layer.digest):
                    self.blobs.path(layer.digest).unlink()

    def _demand_sizes(self, parts: manifest.Manifest, what: str) -> None:
        for layer in parts.layers:
            if (size := self.blobs.size(layer.digest)) != layer.size_bytes:
                raise BadLayer(
                    f"{what}: the size of the layer {layer.digest} does not match: its manifest says"
                    f" {layer.size_bytes} bytes, and it has {size}. The image must be pushed anew",
                    field="image",
                )

    def _keep_blobs(
        self, content: bytes, raw_config: bytes, parts: manifest.Manifest, made_by: Mapping[str, Any]
    ) -> dict[str, int]:
        """Let all blobs of an image reach the disk, and what it was built from; return their sizes in bytes."""
        sizes = {self.blobs.put(one): len(one) for one in (content, raw_config)}
        sizes |= {layer.digest: self.blobs.size(layer.digest) for layer in parts.layers}
        if kept := made_by.get("archive_digest"):
            sizes[kept] = self.blobs.size(kept)
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

    @contextlib.asynccontextmanager
    async def temporary(self) -> AsyncIterator[Path]:
        """A directory of mode 0700 for one pull, load or build, in the images' file system; removed in any case.

        Raises:
            DiskFull: there is no room to begin with, or left.
        """
        self._reserve.demand_room()
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
            if is_full(err):
                raise DiskFull(f"{self._images_dir}: no space left; free some space") from err
            raise HostUnable(f"{self._images_dir} cannot be written: {err}") from err
