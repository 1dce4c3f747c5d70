"""Take in images from an archive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import command
from runtime.errors import BadLayer, DiskFull, InvalidInput
from runtime.images import archive, manifest, reference
from runtime.images.image import Progress
from runtime.images.store import say_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Mapping, Sequence

    from runtime.images.image import Image
    from runtime.images.store import ImageStore

READ_TIMEOUT_S = 3600.0
MEMORY_BYTES = 1 << 30
BLOBS = "loaded"


async def spool(source: AsyncIterable[bytes], target: Path, limit_bytes: int, what: str) -> None:
    """Write what a client sends into a file.

    What is too much, or does not fit on the disk, is read on and dropped: a client that still sends reads no answer.

    Raises:
        InvalidInput: it is more than the limit, or nothing.
        OSError: the file cannot be written.
    """
    written = 0
    fault: OSError | None = None
    with target.open("wb", buffering=0) as out:
        async for chunk in source:
            written += len(chunk)
            if written > 2 * limit_bytes + (1 << 30):
                break
            if fault is None and written <= limit_bytes:
                try:
                    await asyncio.to_thread(out.write, chunk)
                except OSError as err:
                    fault = err
                    out.truncate(0)
    if fault is not None:
        raise fault
    if written > limit_bytes:
        raise InvalidInput(f"the {what} is larger than {limit_bytes} bytes", field="body")
    if not written:
        raise InvalidInput(f"the {what} is empty", field="body")


async def load(
    store: ImageStore, file: Path, temporary: Path, *, progress: Callable[[Progress], None] = say_nothing
) -> list[Image]:
    """Take in all images of an archive.

    Args:
        store: Where to.
        file: The archive: tar, plain or compressed.
        temporary: A directory of the store's `temporary`.
        progress: Told of each step.

    Raises:
        BadLayer: it is no archive of images, is damaged, too large, or has names that are none.
        WrongPlatform: an image in it is for another platform.
        DiskFull: no space.
    """
    progress(Progress("reading"))
    blobs = temporary / BLOBS
    blobs.mkdir()
    argv = [sys.executable, "-P", "-m", archive.__name__, str(file), str(blobs), str(store.limits.unpacked_bytes)]
    try:
        done = await command.run(
            argv,
            timeout_s=READ_TIMEOUT_S,
            env={"PYTHONPATH": str(Path(archive.__file__).parents[2])},
            memory_limit_bytes=MEMORY_BYTES,
            file_limit_bytes=store.limits.unpacked_bytes,
        )
    except TimeoutError as err:
        raise BadLayer(f"the archive is not read after {READ_TIMEOUT_S:.0f} s", field="body") from err
    if done.returncode != 0:
        raise BadLayer(f"the archive cannot be read: {done.last_line}", field="body")
    answer = json.loads(done.stdout)
    if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFull(f"{temporary.parent}: no space left while reading the archive; free some space")
    if "error" in answer:
        raise BadLayer(f"the archive is refused: {answer['error']}", field="body")
    found = [(one["manifest"], _canonical(one["names"])) for one in answer["images"]]
    return [await take(store, blobs, temporary, digest, names, progress) for digest, names in found]


async def take(
    store: ImageStore,
    blobs: Path,
    temporary: Path,
    digest: str,
    names: Sequence[str],
    progress: Callable[[Progress], None],
    made_by: Mapping[str, Any] | None = None,
) -> Image:
    """Make an image of verified blobs in a directory.

    Raises:
        RuntimeFault: as `ImageStore.pull`.
    """
    content = (blobs / digest.removeprefix("sha256:")).read_bytes()
    parts = manifest.parse(content, digest)
    if isinstance(parts, manifest.Index):
        raise BadLayer(f"{digest} is an index, not a manifest", field="image")
    raw_config = await asyncio.to_thread((blobs / parts.config.digest.removeprefix("sha256:")).read_bytes)
    with store.held(digest, parts) as needed:
        for name in needed:
            with contextlib.suppress(FileNotFoundError):  # another image of the archive has it as well
                store.blobs.adopt(blobs / name.removeprefix("sha256:"), name)
        async with store.temporary() as scratch:
            return await store.install(scratch, content, raw_config, names=names, progress=progress, made_by=made_by)


def _canonical(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(str(reference.parse(name)))
        except InvalidInput as err:
            raise BadLayer(f"the archive is refused: {err.message}", field="body") from err
    return found
