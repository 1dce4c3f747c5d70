"""The options that a kernel was built with: from a file beside it, or from the copy inside its image.

A kernel built with `CONFIG_IKCONFIG` carries them between two marks, as `kernel/configs.c` puts them; the image around
that is compressed, and its boot header says where the compressed part is (Documentation/arch/x86/boot.rst).
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import re
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_IMAGE_BYTES = 256 << 20
MAX_CONFIG_BYTES = 4 << 20
_LINE = re.compile(r"^CONFIG_([A-Za-z0-9_]+)=(.*)$", re.MULTILINE)
_START, _END = b"IKCFG_ST", b"IKCFG_ED"
_UNPACK_TIMEOUT_S = 60
# What the standard library cannot unpack. The kernel's build appends the size, 4 bytes (`size_append` in
# scripts/Makefile.lib), which these programs would take for a block.
_SIZE_BYTES = 4
_PROGRAMS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}


def read(vmlinuz: Path, version: str) -> Mapping[str, str] | None:
    """Options by name without `CONFIG_`: `y`, `m`, a number or a quoted text. One that is off is not there.

    Looked for in `config` beside the kernel, in `config-<version>` there (as distributions have it in `/boot`), then in
    the image. None: nothing tells.
    """
    for path in (vmlinuz.with_name("config"), vmlinuz.with_name(f"config-{version}")):
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                return parse(file.read(MAX_CONFIG_BYTES))
    text = embedded(vmlinuz.read_bytes())
    return None if text is None else parse(text)


def parse(text: str) -> Mapping[str, str]:
    """The options of a `.config`."""
    return dict(_LINE.findall(text))


def embedded(image: bytes) -> str | None:
    """The `.config` inside a bootable image; None if there is none, or none that can be unpacked here."""
    for content in (_unpacked(image), image):  # LZ4 leaves the marks legible in what it packs, and not what is between
        start = content.find(_START)
        end = content.find(_END, start)
        if start < 0 or end < 0:
            continue
        with contextlib.suppress(zlib.error, UnicodeDecodeError):
            return zlib.decompressobj(31).decompress(content[start + len(_START) : end], MAX_CONFIG_BYTES).decode()
    return None


def _unpacked(image: bytes) -> bytes:
    """The kernel in a bootable image, by the header's `setup_sects`, `payload_offset` and `payload_length`."""
    if len(image) < 0x250:
        return b""
    (sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((sectors or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        if payload[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(payload, MAX_IMAGE_BYTES)
        if payload[:6] == b"\xfd7zXZ\0" or payload[:3] == b"\x5d\0\0":
            return lzma.LZMADecompressor().decompress(payload, MAX_IMAGE_BYTES)
        if payload[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(payload, MAX_IMAGE_BYTES)
        if payload[:4] in _PROGRAMS:
            argv = [_PROGRAMS[payload[:4]], "-dc"]
            done = subprocess.run(
                argv, input=payload[:-_SIZE_BYTES], capture_output=True, check=False, timeout=_UNPACK_TIMEOUT_S
            )
            return done.stdout
    except (zlib.error, lzma.LZMAError, EOFError, OSError, subprocess.TimeoutExpired):
        pass
    return b""
