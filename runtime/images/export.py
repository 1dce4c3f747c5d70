"""Write images into a tar archive that this runtime, docker, podman and skopeo read.

The archive is an OCI layout; a `docker-archive` has Docker's `manifest.json` beside the OCI index. Blobs go in as they
are, so digests survive. The same images give the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tarfile
from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import InvalidInput
from runtime.images import reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from runtime.images.image import Image
    from runtime.images.store import ImageStore

Kind = Literal["docker-archive", "oci-archive"]
CHUNK_BYTES = 1 << 20
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"


class Export:
    """Images to be saved. `prepare` finds everything; after it only the disk can fail."""

    def __init__(self, store: ImageStore, kind: Kind) -> None:
        self._store = store
        self._kind = kind
        self._small: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self._blobs: dict[str, Path] = {}
        self._held = contextlib.ExitStack()

    async def prepare(self, texts: Sequence[str]) -> None:
        """Find the images.

        Raises:
            InvalidInput: none is named.
            ImageUnknown, Conflict: one is not here, or not whole.
        """
        if not texts:
            raise InvalidInput("name at least one image to save", field="references")
        names: dict[str, list[str]] = {}
        images: dict[str, Image] = {}
        for text in texts:
            image = await self._store.resolve(text)
            images[image.digest] = image
            given = [name for name in image.references if name == _tagged(text)]
            names.setdefault(image.digest, []).extend(given)
        index, listing = [], []
        for digest, image in images.items():
            content, parts, _ = await asyncio.to_thread(self._store.parts, image)
            blobs = [digest, parts.config.digest, *(layer.digest for layer in parts.layers)]
            self._held.enter_context(self._store.blobs.pinned(blobs))
            for blob in blobs:
                self._blobs[_place(blob)] = self._store.blobs.path(blob)
            entry: dict[str, Any] = {"mediaType": _media_type(content), "digest": digest, "size": len(content)}
            index += [{**entry, "annotations": _annotations(name)} for name in names[digest]] or [entry]
            listing.append(
                {
                    "Config": _place(parts.config.digest),
                    "RepoTags": [_familiar(name) for name in names[digest]] or None,
                    "Layers": [_place(layer.digest) for layer in parts.layers],
                }
            )
        self._small["index.json"] = json.dumps({"schemaVersion": 2, "manifests": index}).encode()
        if self._kind == "docker-archive":
            self._small["manifest.json"] = json.dumps(listing).encode()

    async def stream(self) -> AsyncIterator[bytes]:
        """The archive, piece by piece."""
        with self._held:
            for name, content in sorted(self._small.items()):
                yield _header(name, len(content)) + content + _padding(len(content))
            for name, path in sorted(self._blobs.items()):
                with path.open("rb") as file:
                    size = path.stat().st_size
                    yield _header(name, size)
                    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                        yield chunk
                    yield _padding(size)
            yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _place(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _media_type(content: bytes) -> str:
    """What the manifest says it is; OCI's need not say it."""
    found = json.loads(content).get("mediaType")
    return found if isinstance(found, str) and found else "application/vnd.oci.image.manifest.v1+json"


def _annotations(name: str) -> dict[str, str]:
    return {REF_NAME: name.rpartition(":")[2], FULL_NAME: name}


def _familiar(name: str) -> str:
    parsed = reference.parse(name)
    return f"{parsed.familiar_name}:{parsed.tag}"


def _tagged(text: str) -> str | None:
    """The canonical reference, if it is one by tag."""
    try:
        parsed = reference.parse(text)
    except InvalidInput:
        return None
    return None if parsed.digest else str(parsed)
