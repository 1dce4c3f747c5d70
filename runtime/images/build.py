"""Make an image file from the layers of an image: check them, unpack them with umoci, write erofs.

Uncompressed erofs without inlined data reads fastest in a guest. The same image gives the same file: the file
system's UUID comes from the manifest's digest, and its build time is a constant.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import BadLayer, DiskFull, RuntimeFault, WrongDigest
from runtime.images import layers
from runtime.images.image import Progress
from runtime.images.manifest import PLATFORM_ARCHITECTURE, PLATFORM_OS, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.images.blobs import BlobStore

STEP_TIMEOUT_S = 3600.0
SCAN_MEMORY_BYTES = 1 << 30
# mkfs.erofs takes it as its build time and cuts later file times down to it. Files keep their own times (programs
# compare them), so it must be later than all of them: 2100-01-01. With `-T` every file would get that one time.
BUILD_TIME_S = 4_102_444_800
FULL_BELOW_BYTES = 1 << 20
_CRASH_TRIES = 8
CROSS = "\N{VECTOR OR CROSS PRODUCT}"
LAYOUT = "unpack"
ROOT = "root"
FILE = "image.erofs"
_PLACES = ("dev", "etc", "proc", "sys")
_PLACES_IN_ETC = ("hostname", "hosts", "resolv.conf")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may unpack to."""

    unpacked_bytes: int = 20 * 1024**3
    entries: int = 2_000_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What an image file is made of: the digest of the image, and its layers with the digests they unpack to."""

    digest: str
    layers: Sequence[str]
    diff_ids: Sequence[str]


async def build(
    temporary: Path, parts: Parts, blobs: BlobStore, limits: Limits, progress: Callable[[Progress], None]
) -> Path:
    """Make an image file in the temporary directory, synced to disk; return its path.

    Args:
        temporary: Mode 0700, as set-user-id programs are unpacked into it.
        parts: What to make it of.
        blobs: Where the layers are. One that is damaged is removed from there.
        limits: What the image may unpack to.
        progress: Told of each step.

    Raises:
        BadLayer: a layer leaves its root, is too large, or cannot be unpacked.
        WrongDigest: a layer has not its digest.
        DiskFull: no space.
        HostUnable: umoci, zstd or mkfs.erofs is not installed.
    """
    progress(Progress("checking"))
    if len(parts.layers) != len(parts.diff_ids):
        raise BadLayer(
            f"the image has {len(parts.layers)} layers and {len(parts.diff_ids)} diff_ids: its maker is broken",
            field="image",
        )
    compressions = await _scan(temporary, parts, blobs, limits)
    await _lay_out(temporary, parts, blobs, compressions, limits)
    progress(Progress("unpacking"))
    unpack = ["umoci", "raw", "unpack", "--image", f"{LAYOUT}:image", ROOT]
    # No file may be larger than all of them: a second fence, in case umoci reads an archive otherwise than the scan.
    for _ in range(_CRASH_TRIES):
        done = await _run(unpack, temporary, file_limit_bytes=limits.unpacked_bytes)
        if "panic:" not in done.stderr:
            break
        # umoci 0.4.7 may crash where it ought to say why it failed, a full disk above all; it is a race, so ask again.
        await asyncio.to_thread(shutil.rmtree, temporary / ROOT, ignore_errors=True)
    if done.returncode != 0:
        raise _fault(done, temporary, BadLayer(f"a layer cannot be unpacked: {_say_umoci(done)}", field="image"))
    progress(Progress("writing"))
    make_places(temporary / ROOT)
    make = ["mkfs.erofs", "--quiet", "-Enoinline_data", "--preserve-mtime", "-U", _uuid(parts.digest), FILE, ROOT]
    done = await _run(make, temporary, env={"SOURCE_DATE_EPOCH": str(BUILD_TIME_S)})
    if done.returncode != 0:
        raise _fault(done, temporary, BadLayer(f"the image file cannot be written: {done.last_line}", field="image"))
    file = temporary / FILE
    file.chmod(0o644)
    sync(file)
    return file


def make_places(root: Path) -> None:
    """Make what each container has something mounted over, where it is missing: else every start would have to.

    Nothing that the image has is changed, and none of its links followed.
    """
    with contextlib.ExitStack() as stack:
        top = _opened(stack, root)
        for name in _PLACES:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=top)
                os.chmod(name, 0o755, dir_fd=top)  # noqa: S103 -- whoever the container runs as
                os.utime(name, (0, 0), dir_fd=top)  # the same image gives the same file
        try:
            etc = _opened(stack, "etc", top)
        except OSError:
            return  # a link, or no directory
        for name in _PLACES_IN_ETC:
            with contextlib.suppress(FileExistsError):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=etc)
                os.fchmod(file, 0o644)
                os.close(file)
                os.utime(name, (0, 0), dir_fd=etc)


def _opened(stack: contextlib.ExitStack, path: Path | str, within: int | None = None) -> int:
    """Open a directory until the stack ends; its times are then as they were."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    stack.callback(os.close, descriptor)
    before = os.fstat(descriptor)
    stack.callback(os.utime, descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
    return descriptor


def sync(path: Path) -> None:
    """Let a file, or a directory's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _scan(temporary: Path, parts: Parts, blobs: BlobStore, limits: Limits) -> list[str]:
    """Verify and check the layers; return how each is compressed."""
    argv = [sys.executable, "-I", "-S", layers.__file__, str(limits.unpacked_bytes), str(limits.entries)]
    argv += [str(blobs.path(layer)) for layer in parts.layers]
    done = await _run(argv, temporary, memory_limit_bytes=SCAN_MEMORY_BYTES)
    if done.returncode != 0:
        raise BadLayer(f"the layers cannot be read: {done.last_line}", field="image")
    answer = json.loads(done.stdout)
    if answer.get("is_damaged"):
        blobs.path(answer["layer"]).unlink(missing_ok=True)
        raise WrongDigest(f"the layer {answer['layer']} is damaged: {answer['error']}; try again", field="image")
    if "error" in answer:
        raise BadLayer(f"the layer {answer['layer']} is refused: {answer['error']}", field="image")
    compressions: list[str] = answer["compressions"]
    return compressions


async def _lay_out(temporary: Path, parts: Parts, blobs: BlobStore, compressions: list[str], limits: Limits) -> None:
    """Make the OCI layout that umoci takes: links to the layers, and a manifest and configuration of our own.

    umoci knows no zstd: such layers are unpacked beside, and are then named by what they unpack to. It verifies both
    digests of every layer.
    """
    directory = temporary / LAYOUT / "blobs" / "sha256"
    directory.mkdir(parents=True)

    def describe(kind: str, content: bytes) -> dict[str, object]:
        digest = digest_of(content)
        (directory / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(content)}

    described = []
    for layer, diff_id, compression in zip(parts.layers, parts.diff_ids, compressions, strict=True):
        named = diff_id if compression == "zstd" else layer
        place = directory / named.removeprefix("sha256:")
        if not place.exists():  # an image may have a layer twice
            if compression == "zstd":
                await _unzstd(blobs.path(layer), place, temporary, limits)
            else:
                place.symlink_to(blobs.path(layer).absolute())
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compression == "gzip" else "")
        described.append({"mediaType": kind, "digest": named, "size": place.stat().st_size})
    config = {
        "architecture": PLATFORM_ARCHITECTURE,
        "os": PLATFORM_OS,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": list(parts.diff_ids)},
    }
    manifest = {
        "schemaVersion": 2,
        "config": describe("config.v1+json", json.dumps(config).encode()),
        "layers": described,
    }
    entry = describe("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (temporary / LAYOUT / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (temporary / LAYOUT / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


async def _unzstd(blob: Path, place: Path, temporary: Path, limits: Limits) -> None:
    argv = ["zstd", "-dq", "--no-progress", str(blob), "-o", str(place)]
    done = await _run(argv, temporary, file_limit_bytes=limits.unpacked_bytes + (64 << 20))
    if done.returncode != 0:
        raise _fault(done, temporary, BadLayer(f"a layer cannot be unpacked: {done.last_line}", field="image"))


async def _run(
    argv: list[str],
    cwd: Path,
    *,
    env: Mapping[str, str] | None = None,
    memory_limit_bytes: int | None = None,
    file_limit_bytes: int | None = None,
) -> command.Finished:
    try:
        return await command.run(
            argv,
            timeout_s=STEP_TIMEOUT_S,
            cwd=cwd,
            env=env,
            memory_limit_bytes=memory_limit_bytes,
            file_limit_bytes=file_limit_bytes,
        )
    except TimeoutError as err:
        raise BadLayer(f"{Path(argv[0]).name} has not finished the image in {STEP_TIMEOUT_S:.0f} s") from err


def _fault(done: command.Finished, temporary: Path, otherwise: RuntimeFault) -> RuntimeFault:
    text = done.stderr.lower()
    # Not every program says so: the disk itself is asked as well.
    is_full = shutil.disk_usage(temporary).free < FULL_BELOW_BYTES
    if is_full or "no space left on device" in text or "disk quota exceeded" in text:
        return DiskFull(f"{temporary.parent}: no space left while making the image file; free some space")
    return otherwise


def _say_umoci(done: command.Finished) -> str:
    """The line that begins with a cross is umoci's error; a crash has a line that begins with `panic:`."""
    for line in map(str.strip, done.stderr.splitlines()):
        if line.startswith((CROSS, "panic:")):
            return line.lstrip(f"{CROSS} ")[:500]
    return done.last_line[:500]


def _uuid(digest: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, digest))
