"""The initramfs of the guest: the init program and the kernel modules it loads, as an uncompressed newc cpio archive.

Format: `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel. What a module needs is read from the
module itself (`depends=` and `softdep=` in its `.modinfo`), so a kernel package that was only unpacked, without
`depmod`, serves as well as an installed one. In the guest, `/modules/order` lists the files in load order.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

WANTED: tuple[str, ...] = (
    "virtio_mmio",
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "ext4",
    "crc32c_generic",  # of ext4 and erofs, which ask for it by an alias
    "erofs",
    "overlay",
    "9pnet_virtio",
    "9p",
)
"""What a guest of ours uses: devices on either transport, then file systems."""

MAX_MODULE_BYTES = 64 << 20
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst")
_MODINFO = re.compile(rb"(?:^|\0)(depends|softdep)=([^\0]*)")


class InitrdError(Exception):
    """The initramfs cannot be made; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Initrd:
    """What was packed: module names in load order, and those wanted that this kernel does not have at all."""

    modules: tuple[str, ...]
    builtin: tuple[str, ...]
    missing: tuple[str, ...]


def build(init: Path, modules_root: Path | None, out: Path, *, wanted: Sequence[str] = WANTED) -> Initrd:
    """Write the initramfs to `out`, atomically; one that is there already is left, as the disk may be full.

    Args:
        init: the static guest init.
        modules_root: the contents of `lib/modules/<version>`; None for a kernel with everything built in.
        out: the archive; replaced if it is there.
        wanted: names of modules; `-` and `_` are the same, as for modprobe.

    Returns:
        What was packed and what this kernel lacks.

    Raises:
        InitrdError: the init or a module cannot be read or decompressed.
        OSError: `out` cannot be written; an earlier `out` is then still whole.
    """
    kernel = _Kernel.read(modules_root)
    order: dict[str, bytes] = {}
    builtin: list[str] = []
    missing: list[str] = []
    for name in map(_canonical, wanted):
        if name in kernel.files:
            _collect(kernel, name, order, ())
        elif name in kernel.builtin:
            builtin.append(name)
        else:
            missing.append(name)
    try:
        program = init.read_bytes()
    except OSError as err:
        raise InitrdError(f"{init}: cannot read the guest init ({err.strerror}); build it with `make guest`") from err
    archive = b"".join(_archive(program, order))
    if not out.is_file() or out.read_bytes() != archive:
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        try:
            temporary.write_bytes(archive)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    return Initrd(tuple(order), tuple(builtin), tuple(missing))


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Modules of one kernel by canonical name: those that are files, those in the image."""

    files: Mapping[str, str]
    builtin: frozenset[str]

    @classmethod
    def read(cls, root: Path | None) -> _Kernel:
        if root is None:
            return cls({}, frozenset())
        if not root.is_dir():
            raise InitrdError(f"{root}: no such directory of kernel modules")
        files: dict[str, str] = {}
        for directory, _, names in os.walk(root / "kernel"):
            for name in names:
                if name.endswith(_SUFFIXES):
                    # As text: a distribution's kernel has a thousand, of which a handful is wanted.
                    files[_canonical(name.partition(".ko")[0])] = f"{directory}/{name}"
        try:
            lines = (root / "modules.builtin").read_text().splitlines()
        except FileNotFoundError:
            lines = []
        return cls(files, frozenset(_canonical(os.path.basename(line).partition(".ko")[0]) for line in lines))  # noqa: PTH119 -- a name in a text, not a path


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _collect(kernel: _Kernel, name: str, order: dict[str, bytes], path: tuple[str, ...]) -> None:
    """Put a module behind what it needs. A cycle can only come from soft dependencies and is cut."""
    if name in order or name in path:
        return
    image = _image(Path(kernel.files[name]))
    try:
        hard, soft = _needs(image)
    except InitrdError as err:
        raise InitrdError(f"{kernel.files[name]}: {err}") from err
    for needed in hard:
        if needed in kernel.files:
            _collect(kernel, needed, order, (*path, name))
        elif needed not in kernel.builtin:
            raise InitrdError(f"{kernel.files[name]}: needs the module {needed}, which this kernel does not have")
    for needed in soft:
        if needed in kernel.files:
            _collect(kernel, needed, order, (*path, name))
    order[name] = image


def _needs(image: bytes) -> tuple[list[str], list[str]]:
    """Hard and soft ("pre:") dependencies of a module, from its `.modinfo`."""
    hard: list[str] = []
    soft: list[str] = []
    for key, value in _MODINFO.findall(_section(image, b".modinfo")):
        text = value.decode("ascii", "replace")
        if key == b"depends":
            hard += [_canonical(name) for name in text.split(",") if name]
        else:
            before = text.partition("pre:")[2].partition("post:")[0]
            soft += [_canonical(name) for name in before.split()]
    return hard, soft


def _section(image: bytes, name: bytes) -> bytes:
    """A section of a 64-bit little-endian ELF file.

    Raises:
        InitrdError: not such a file, or it has no such section.
    """

    def number(offset: int, size: int) -> int:
        if offset + size > len(image):
            raise InitrdError("a kernel module is cut short")
        return int.from_bytes(image[offset : offset + size], "little")

    if image[:6] != b"\x7fELF\x02\x01":
        raise InitrdError("a kernel module is not a 64-bit little-endian ELF file")
    table, entry, count, names = number(40, 8), number(58, 2), number(60, 2), number(62, 2)
    strings = number(table + names * entry + 24, 8)
    for index in range(count):
        header = table + index * entry
        start = strings + number(header, 4)
        if image[start : start + len(name) + 1] == name + b"\0":
            offset, size = number(header + 24, 8), number(header + 32, 8)
            return image[offset : offset + size]
    raise InitrdError(f"a kernel module has no section {name.decode()}")


def _image(path: Path) -> bytes:
    """A module, decompressed.

    Raises:
        InitrdError: it cannot be read or decompressed, or is too large.
    """
    try:
        if path.name.endswith(".xz"):
            with lzma.open(path) as file:
                image = file.read(MAX_MODULE_BYTES + 1)
        elif path.name.endswith(".zst"):
            done = subprocess.run(["zstd", "-dcq", "--", path], capture_output=True, check=False, timeout=60)
            if done.returncode:
                raise InitrdError(f"{path}: zstd failed: {done.stderr.decode(errors='replace').strip()}")
            image = done.stdout
        else:
            image = path.read_bytes()
    except FileNotFoundError as err:
        if err.filename == "zstd":
            raise InitrdError(f"{path}: this kernel's modules need the program zstd; install it") from err
        raise InitrdError(f"{path}: no such file") from err
    except (OSError, EOFError, lzma.LZMAError, subprocess.TimeoutExpired) as err:
        raise InitrdError(f"{path}: cannot be read: {err}") from err
    if len(image) > MAX_MODULE_BYTES:
        raise InitrdError(f"{path}: larger than {MAX_MODULE_BYTES} bytes")
    return image


def _archive(init: bytes, modules: Mapping[str, bytes]) -> Iterator[bytes]:
    listing = "".join(f"{name}.ko\n" for name in modules).encode()
    directories: Iterable[str] = ("dev", "proc", "sys", "run", "modules")
    for index, name in enumerate(directories):
        yield _entry(index, name, stat.S_IFDIR | 0o755)
    # The kernel opens /dev/console for init before there is a devtmpfs.
    yield _entry(10, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield _entry(11, "init", stat.S_IFREG | 0o755, init)
    if modules:
        yield _entry(12, "modules/order", stat.S_IFREG | 0o644, listing)
    for index, (name, image) in enumerate(modules.items()):
        yield _entry(20 + index, f"modules/{name}.ko", stat.S_IFREG | 0o644, image)
    yield _entry(0, "TRAILER!!!", 0)


def _entry(inode: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of a newc archive: the header's 13 numbers in hexadecimal, the name, the data, each padded to 4 bytes.

    Owner and times are 0, so that equal input gives an equal archive: its digest is part of a template's key.
    """
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)
