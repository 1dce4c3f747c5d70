"""Finding a guest kernel, and the initramfs that goes with it."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import HostUnable
from runtime.vm import initrd

if TYPE_CHECKING:
    from runtime.config import Config


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable guest kernel.

    `key` is a digest of its content and initramfs: whatever is derived from a boot of it (a template) is keyed by it.
    `lacks` names wanted modules that it has in no form.
    """

    version: str
    vmlinuz: Path
    initrd: Path
    key: str
    needs_acpi: bool
    lacks: tuple[str, ...]


def find(config: Config) -> Kernel:
    """The configured kernel, else the newest below `<data_dir>/kernels`, else the newest in `/boot`.

    Builds its initramfs below `<data_dir>/initrd` if that is not there yet.

    Raises:
        HostUnable: there is none, or there is no guest init.
    """
    vmlinuz, modules = _locate(config)
    version = _version(vmlinuz)
    init = find_init(config)
    digest = hashlib.sha256()
    for path in (vmlinuz, init):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(repr(initrd.WANTED).encode())
    key = digest.hexdigest()[:16]
    target = config.data_dir / "initrd" / f"{key}.cpio"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = initrd.build(init, modules, target)
    except initrd.InitrdError as err:
        raise HostUnable(str(err)) from err
    lacks = made.missing if modules else ()
    return Kernel(version, vmlinuz, target, key, needs_acpi=modules is not None, lacks=lacks)


def find_init(config: Config) -> Path:
    """The guest's PID 1: configured, installed, or built in a checkout.

    Raises:
        HostUnable: it has not been built.
    """
    checkout = Path(__file__).resolve().parents[2] / "build" / "guest" / "init"
    candidates = [config.guest_init] if config.guest_init else [Path("/usr/lib/hyper/init"), checkout]
    for path in candidates:
        if path.is_file():
            return path
    raise HostUnable(f"there is no guest init at {' or '.join(map(str, candidates))}: run 'make setup'")


def _locate(config: Config) -> tuple[Path, Path | None]:
    if config.kernel:
        if not config.kernel.is_file():
            raise HostUnable(f"there is no kernel {config.kernel}: correct HYPER_KERNEL or unset it", field="kernel")
        return config.kernel, _modules_of(config.kernel)
    ours = config.data_dir / "kernels"
    candidates = [*ours.glob("*/vmlinuz"), *Path("/boot").glob("vmlinuz-*")]
    readable = [path for path in candidates if path.is_file()]
    if not readable:
        raise HostUnable(f"no guest kernel in {ours} or /boot: run 'make setup', or name one with HYPER_KERNEL")
    newest = max(readable, key=lambda path: (path.parent.parent == ours, _sort_key(_version(path))))
    return newest, _modules_of(newest)


def _modules_of(vmlinuz: Path) -> Path | None:
    """Where the modules of a kernel are: beside it, or in /lib/modules; None for one with all built in."""
    beside = vmlinuz.parent / "modules"
    installed = Path("/lib/modules") / _version(vmlinuz)
    for directory in (beside, installed):
        if (directory / "kernel").is_dir():
            return directory
    return None


def _version(vmlinuz: Path) -> str:
    """The release in the boot header (Documentation/arch/x86/boot.rst: `kernel_version` at 0x20e, offset by 0x200)."""
    with vmlinuz.open("rb") as file:
        header = file.read(0x210)
        if len(header) < 0x210 or header[0x202:0x206] != b"HdrS":
            raise HostUnable(f"{vmlinuz} is not a bootable x86 kernel (bzImage)", field="kernel")
        (offset,) = struct.unpack_from("<H", header, 0x20E)
        file.seek(offset + 0x200)
        return file.read(256).split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")


def _sort_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
