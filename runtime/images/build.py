"""Make an image file from an OCI layout: check the layers, unpack them with umoci, write erofs.

Uncompressed erofs without inlined data reads fastest in a guest. The same image gives the same file: the file
system's UUID comes from the manifest's digest, and its build time is a constant.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import BadLayer, DiskFull, RuntimeFault
from runtime.images import layers
from runtime.images.image import Progress
from runtime.images.registry import LAYOUT, TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STEP_TIMEOUT_S = 3600.0
SCAN_MEMORY_BYTES = 1 << 30
# mkfs.erofs takes it as its build time and cuts later file times down to it. Files keep their own times (programs
# compare them), so it must be later than all of them: 2100-01-01. With `-T` every file would get that one time.
BUILD_TIME_S = 4_102_444_800
FULL_BELOW_BYTES = 1 << 20
CROSS = "\N{VECTOR OR CROSS PRODUCT}"
ROOT = "root"
FILE = "image.erofs"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may unpack to."""

    unpacked_bytes: int = 20 * 1024**3
    entries: int = 2_000_000


async def build(temporary: Path, digest: str, limits: Limits, progress: Callable[[Progress], None]) -> Path:
    """Turn the layout in the temporary directory into an image file in it, synced to disk; return its path.

    Args:
        temporary: Holds the layout `oci`; mode 0700, as set-user-id programs are unpacked into it.
        digest: Of the image, for the file system's UUID.
        limits: What the image may unpack to.
        progress: Told of each step.

    Raises:
        BadLayer: a layer leaves its root, is too large, or cannot be unpacked.
        DiskFull: no space.
        HostUnable: umoci or mkfs.erofs is not installed.
    """
    manifest_digest = json.loads((temporary / LAYOUT / "index.json").read_bytes())["manifests"][0]["digest"]
    progress(Progress("checking"))
    await _scan(temporary, manifest_digest, limits)
    progress(Progress("unpacking"))
    unpack = ["umoci", "raw", "unpack", "--image", f"{LAYOUT}:{TAG}", ROOT]
    # No file may be larger than all of them: a second fence, in case umoci reads an archive otherwise than the scan.
    done = await _run(unpack, temporary, file_limit_bytes=limits.unpacked_bytes)
    if done.returncode != 0:
        raise _fault(done, temporary, BadLayer(f"a layer cannot be unpacked: {_say_umoci(done)}", field="image"))
    progress(Progress("writing"))
    make = ["mkfs.erofs", "--quiet", "-Enoinline_data", "--preserve-mtime", "-U", _uuid(digest), FILE, ROOT]
    done = await _run(make, temporary, env={"SOURCE_DATE_EPOCH": str(BUILD_TIME_S)})
    if done.returncode != 0:
        raise _fault(done, temporary, BadLayer(f"the image file cannot be written: {done.last_line}", field="image"))
    file = temporary / FILE
    file.chmod(0o644)
    sync(file)
    return file


def sync(path: Path) -> None:
    """Let a file, or a directory's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _scan(temporary: Path, manifest_digest: str, limits: Limits) -> None:
    argv = [sys.executable, "-I", "-S", layers.__file__, LAYOUT, manifest_digest]
    argv += [str(limits.unpacked_bytes), str(limits.entries)]
    done = await _run(argv, temporary, memory_limit_bytes=SCAN_MEMORY_BYTES)
    if done.returncode != 0:
        raise BadLayer(f"the layers cannot be read: {done.last_line}", field="image")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise BadLayer(f"the layer {answer['layer']} is refused: {answer['error']}", field="image")


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
    # umoci 0.4.7 may crash (a race in its way out) instead of saying so: the disk itself is asked as well
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
