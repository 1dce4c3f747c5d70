"""Finding a guest kernel, what it can do, and the initramfs that goes with it."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import HostUnable
from runtime.vm import initrd, kernel_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.config import Config

OURS = "-hyper"  # how the release of a kernel that `make kernel` built ends (CONFIG_LOCALVERSION)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a kernel has built in, has as modules, or lacks.

    It is there if each of `options` is `y`, or each of `modules` is a file that the initramfs takes along.
    """

    name: str
    options: tuple[str, ...]
    modules: tuple[str, ...] = ()
    required: bool = False


FEATURES = (
    Feature("virtio_mmio", ("VIRTIO_MMIO",), ("virtio_mmio",), required=True),
    Feature("virtio_console", ("VIRTIO_CONSOLE",), ("virtio_console",), required=True),
    Feature("virtio_blk", ("VIRTIO_BLK",), ("virtio_blk",), required=True),
    Feature("virtio_net", ("VIRTIO_NET",), ("virtio_net",), required=True),
    Feature("ext4", ("EXT4_FS",), ("ext4",), required=True),
    Feature("erofs", ("EROFS_FS",), ("erofs",), required=True),
    Feature("overlay", ("OVERLAY_FS",), ("overlay",), required=True),
    Feature("virtio_rng", ("HW_RANDOM_VIRTIO",), ("virtio_rng",)),
    Feature("9p", ("9P_FS", "NET_9P_VIRTIO"), ("9p", "9pnet_virtio")),
)
SEVERAL_CPUS = "several CPUs"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable guest kernel.

    `file` is what QEMU loads: `vmlinux`, unpacked, if it lies beside `vmlinuz` and has an entry for that (PVH).
    `key` is a digest of its content and initramfs: whatever is derived from a boot of it (a template) is keyed by it.
    `lacks` names what it has in no form: a feature of `FEATURES` that is not required, or `SEVERAL_CPUS`.
    `reason` says why this one of all that are there.
    """

    version: str
    file: Path
    initrd: Path
    key: str
    needs_acpi: bool
    lacks: tuple[str, ...]
    reason: str

    def require(self, feature: str, wanted_by: str, *, field: str | None = None) -> None:
        """Refuse what this kernel cannot do, before anything is begun.

        Raises:
            HostUnable: the kernel lacks the feature.
        """
        if feature in self.lacks:
            raise HostUnable(
                f"{wanted_by} needs {feature}, which the guest kernel {self.version} lacks: build one that has it with"
                " 'make kernel' and restart hyperd, or name one with HYPER_KERNEL",
                field=field,
            )


def find(config: Config) -> Kernel:
    """The configured kernel, else one built by `make kernel`, else the newest of the distribution's.

    Builds its initramfs below `<data_dir>/initrd` if that is not there yet.

    Raises:
        HostUnable: there is none, it lacks what every guest needs, or there is no guest init.
    """
    vmlinuz, reason = _locate(config)
    version = _version(vmlinuz)
    modules = _modules_of(vmlinuz, version)
    options = kernel_options.read(vmlinuz, version)
    if modules is None and (options is None or _needs_modules(options)):
        raise HostUnable(_no_modules(vmlinuz, version, known=options is not None), field="kernel")
    init = find_init(config)
    file, content = _loaded(vmlinuz, version, options)
    digest = hashlib.sha256()
    for part in (content, init.read_bytes()):
        digest.update(hashlib.sha256(part).digest())
    digest.update(repr(initrd.WANTED).encode())
    key = digest.hexdigest()[:16]
    target = config.data_dir / "initrd" / f"{key}.cpio"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = initrd.build(init, modules, target)
    except initrd.InitrdError as err:
        raise HostUnable(str(err)) from err
    options = options or {}
    absent = [feature for feature in FEATURES if not _has(feature, options, made)]
    if required := [feature.name for feature in absent if feature.required]:
        raise HostUnable(
            f"the kernel {vmlinuz} ({version}) lacks {', '.join(required)}, which every guest needs: build one with"
            " 'make kernel', or name another with HYPER_KERNEL",
            field="kernel",
        )
    needs_acpi = _needs_acpi(options, vmlinuz)
    lacks = [feature.name for feature in absent]
    if not needs_acpi and options.get("X86_MPPARSE") != "y":
        lacks.append(SEVERAL_CPUS)  # without ACPI the MP table is the only list of processors
    return Kernel(version, file, target, key, needs_acpi=needs_acpi, lacks=tuple(lacks), reason=reason)


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


def _locate(config: Config) -> tuple[Path, str]:
    """The kernel to take and why."""
    if config.kernel:
        if not config.kernel.is_file():
            raise HostUnable(f"there is no kernel {config.kernel}: correct HYPER_KERNEL or unset it", field="kernel")
        return config.kernel, "named by the setting 'kernel' (HYPER_KERNEL)"
    directory = config.data_dir / "kernels"
    found = [path for path in directory.glob("[!.]*/vmlinuz") if path.is_file()]
    ours = [path for path in found if path.parent.name.endswith(OURS)]
    if ours:
        return _newest(ours), f"built by 'make kernel', in {directory}"
    faster = "'make kernel' builds one that boots faster"
    if found:
        return _newest(found), f"the distribution's newest in {directory}; {faster}"
    installed = [path for path in Path("/boot").glob("vmlinuz-*") if path.is_file()]
    if not installed:
        raise HostUnable(f"no guest kernel in {directory} or /boot: run 'make setup', or name one with HYPER_KERNEL")
    return _newest(installed), f"the newest in /boot, as {directory} has none; {faster}"


def _newest(kernels: list[Path]) -> Path:
    return max(kernels, key=lambda path: tuple(int(part) for part in re.findall(r"\d+", _version(path))))


def _modules_of(vmlinuz: Path, version: str) -> Path | None:
    """Where the modules of a kernel are: beside it, or in /lib/modules."""
    for directory in (vmlinuz.parent / "modules", Path("/lib/modules") / version):
        if (directory / "kernel").is_dir():
            return directory
    return None


def _no_modules(vmlinuz: Path, version: str, *, known: bool) -> str:
    """What is wrong with a kernel that has no modules and is not known to do without."""
    places = f"{vmlinuz.parent / 'modules'} or /lib/modules/{version}"
    if known:
        return (
            f"the kernel {vmlinuz} has its drivers as modules, and there are none in {places}: put them there,"
            " run 'make setup' for a kernel with its modules, or 'make kernel' for one that needs none"
        )
    return (
        f"the kernel {vmlinuz} has no modules in {places}, and nothing tells what is built into it: put its modules or"
        f" its configuration ({vmlinuz.with_name('config')}) there, or run 'make kernel'"
    )


def _needs_modules(options: Mapping[str, str]) -> bool:
    return any(options.get(option) == "m" for feature in FEATURES if feature.required for option in feature.options)


def _has(feature: Feature, options: Mapping[str, str], made: initrd.Initrd) -> bool:
    there = {*made.modules, *made.builtin}
    if feature.modules and there.issuperset(feature.modules):
        return True
    return all(options.get(option) == "y" for option in feature.options)


def _needs_acpi(options: Mapping[str, str], vmlinuz: Path) -> bool:
    """Whether ACPI has to tell the kernel its devices: only a built-in driver reads them from the command line."""
    if options.get("VIRTIO_MMIO") == "y" and options.get("VIRTIO_MMIO_CMDLINE_DEVICES") == "y":
        return False
    if options and options.get("ACPI") != "y":
        raise HostUnable(
            f"the kernel {vmlinuz} can find its devices neither by ACPI (CONFIG_ACPI) nor on its command line"
            " (CONFIG_VIRTIO_MMIO and CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES): build one with 'make kernel'",
            field="kernel",
        )
    return True


def _loaded(vmlinuz: Path, version: str, options: Mapping[str, str] | None) -> tuple[Path, bytes]:
    """What QEMU loads, and its content: the same kernel unpacked, which saves an emulated guest that, if it can be.

    Raises:
        HostUnable: the unpacked file is of another kernel.
    """
    file = vmlinuz.with_name("vmlinux")
    if not file.is_file() or (options or {}).get("PVH") != "y":
        return vmlinuz, vmlinuz.read_bytes()
    content = file.read_bytes()
    if f"Linux version {version} ".encode() not in content:
        raise HostUnable(
            f"{file} is not of the same kernel as {vmlinuz} ({version}): remove it, or run 'make kernel'",
            field="kernel",
        )
    return file, content


def _version(vmlinuz: Path) -> str:
    """The release in the boot header (Documentation/arch/x86/boot.rst: `kernel_version` at 0x20e, offset by 0x200)."""
    with vmlinuz.open("rb") as file:
        header = file.read(0x210)
        if len(header) < 0x210 or header[0x202:0x206] != b"HdrS":
            raise HostUnable(f"{vmlinuz} is not a bootable x86 kernel (bzImage)", field="kernel")
        (offset,) = struct.unpack_from("<H", header, 0x20E)
        file.seek(offset + 0x200)
        return file.read(256).split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
