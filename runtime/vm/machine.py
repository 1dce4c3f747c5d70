"""The micro-VM's machine: QEMU's command line for a cold boot, a template and a clone.

One list of devices serves all three, because a clone must have the devices of its template in the same order. What
differs is what stands behind them: files and a tap in a VM that runs a container, placeholders in a template.
Everything that QEMU opens is handed to it as a descriptor: it runs as a user that may open nothing.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.vm.kernel import Kernel

LAYOUT = 7  # to be raised whenever devices, the command line, or what is saved or demanded changes: it keys templates

PORT_NAMES = ("hyper.control", "hyper.stats", "hyper.streams", "hyper.log")
# Disks for volumes. With image, writable layer, ports, network, entropy and the shared directory they are the eight
# virtio-mmio devices that a microvm without ACPI has. In the guest they are vdc and vdd.
VOLUME_NODES = ("volume0", "volume1")
VOLUME_DEVICES = ("vdc", "vdd")
# The tag of the directory that is shared by 9p. What QEMU exports is the directory it is started in, which is empty
# until directories of the host are mounted below it (`runtime.vm.sharing`).
SHARED_TAG = "hyper-shared"
# `mmap`: databases map files, everything else goes to the host at once. `client`: the guest's kernel checks rights.
SHARED_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=client"
# Clones put a file of any size behind it; the guest's driver keeps the size that it saw in the template.
_PLACEHOLDER_BYTES = 1 << 40
_TCG_CODE_CACHE_MB = 32
# Emulated, `rep stosb` is a step a byte: a kernel that is told of ERMS takes eight times as long to clear a page.
_TCG_CPU = "max,erms=off"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a guest sees at boot, and so what a template fixes."""

    ram_bytes: int
    vcpus: int
    accel: Literal["tcg", "kvm"]


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A volume's disk, as a descriptor."""

    fd: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class Files:
    """Descriptors that QEMU inherits; -1 is none.

    `image`, `writable`, `volumes` and `log` are none in a template (placeholders). `ram` is the file behind guest
    memory: shared and writable in a template, sealed and copied on write in a clone, none in a cold boot. `kernel` and
    `initrd` are none in a clone, whose memory has them already; `vm_state` is what a clone starts from.
    """

    qmp: int
    qmp_stats: int
    agent: int
    agent_stats: int
    streams: int
    log: int
    console: int
    tap: int
    image: int = -1
    writable: int = -1
    ram: int = -1
    kernel: int = -1
    initrd: int = -1
    vm_state: int = -1
    volumes: tuple[VolumeFile, ...] = ()

    def inherited(self) -> tuple[int, ...]:
        """All descriptors to pass on."""
        volumes = [volume.fd for volume in self.volumes]
        return tuple(fd for fd in (*astuple(self)[:-1], *volumes) if fd >= 0)


Mode = Literal["cold", "template", "clone"]


def arguments(name: str, shape: Shape, files: Files, mode: Mode, kernel: Kernel, command_line: str) -> list[str]:
    """QEMU's arguments, without the program itself."""
    return list(_arguments(name, shape, files, mode, kernel, command_line))


def kernel_command_line(kernel: Kernel, tsc_khz: int, accel: Literal["tcg", "kvm"]) -> str:
    """Arguments of the guest kernel; see `docs/explanation/starting.md` for each one's reason."""
    return " ".join(
        [
            "console=ttyS0",
            "quiet",
            "panic=-1",
            "reboot=t",
            f"tsc_early_khz={tsc_khz}",
            "tsc=reliable",
            "no_timer_check",
            "cgroup_no_v1=all",
            "random.trust_cpu=on",
            "rcupdate.rcu_expedited=1",
            "pci=off",
            *([] if kernel.needs_acpi else ["acpi=off"]),
            # An emulated processor runs none of the guest's code as it is written, so they would hold up nobody.
            *(["mitigations=off"] if accel == "tcg" else []),
        ]
    )


def _arguments(name: str, shape: Shape, files: Files, mode: Mode, kernel: Kernel, command_line: str) -> Iterator[str]:
    yield from ("-name", f"hyper-{name}", "-nodefaults", "-no-user-config", "-no-reboot", "-nographic")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    accel = f"tcg,tb-size={_TCG_CODE_CACHE_MB}" if shape.accel == "tcg" else "kvm"
    yield from ("-accel", accel)
    # ACPI finds the virtio devices for a kernel whose driver is a module.
    acpi = "on" if kernel.needs_acpi else "off"
    yield from ("-machine", f"microvm,acpi={acpi},rtc=on,pit=on,pic=on,isa-serial=on,memory-backend=ram")
    yield from ("-cpu", _TCG_CPU if shape.accel == "tcg" else "max")
    yield from ("-smp", str(shape.vcpus), "-m", f"{shape.ram_bytes // 1024}k")
    yield from ("-object", _memory(shape, files, mode))
    yield from ("-global", "virtio-mmio.force-legacy=false", "-global", "migration.announce-rounds=0")
    if mode == "clone":
        yield from ("-incoming", "defer")
    else:
        yield from ("-kernel", f"/proc/self/fd/{files.kernel}", "-initrd", f"/proc/self/fd/{files.initrd}")
        yield from ("-append", command_line)
    yield from _console(files)
    yield from _monitors(files)
    yield from _ports(files)
    yield from _disk("image", files.image, 3, read_only=True)
    yield from _disk("writable", files.writable, 4, read_only=False)
    for index, node in enumerate(VOLUME_NODES):
        volume = files.volumes[index] if index < len(files.volumes) else VolumeFile(-1, read_only=False)
        yield from _disk(node, volume.fd, 5 + index, read_only=volume.read_only)
    # QEMU 7.2 has no timer left for announcements in a clone, and crashes at the reset that ends it, if it has them.
    device = "virtio-net-device,netdev=net0,guest_announce=off"
    yield from ("-netdev", f"tap,id=net0,fd={files.tap},vhost=off", "-device", device)
    yield from ("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-device,rng=rng0")
    if "9p" not in kernel.lacks:  # QEMU's tables for it take 1 MB
        # The mounts below are of several file systems, whose inode numbers may be the same.
        yield from ("-fsdev", "local,id=shared,path=.,security_model=passthrough,multidevs=remap")
        yield from ("-device", f"virtio-9p-device,fsdev=shared,mount_tag={SHARED_TAG}")


def _memory(shape: Shape, files: Files, mode: Mode) -> str:
    if mode == "cold":
        return f"memory-backend-memfd,id=ram,size={shape.ram_bytes},share=on"
    share = "on" if mode == "template" else "off"
    return f"memory-backend-file,id=ram,size={shape.ram_bytes},mem-path=/proc/self/fd/{files.ram},share={share}"


def _console(files: Files) -> Iterator[str]:
    yield from ("-add-fd", f"fd={files.console},set=1")
    yield from ("-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console")


def _monitors(files: Files) -> Iterator[str]:
    for name, fd in (("qmp", files.qmp), ("qmp-stats", files.qmp_stats)):
        yield from ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off", "-mon", f"chardev={name},mode=control")


def _ports(files: Files) -> Iterator[str]:
    yield from ("-device", "virtio-serial-device,max_ports=8")
    sockets = (("agent", files.agent), ("agent-stats", files.agent_stats), ("streams", files.streams))
    for (name, fd), port in zip(sockets, PORT_NAMES[:3], strict=True):
        yield from ("-chardev", f"socket,id={name},fd={fd},server=on,wait=off")
        yield from ("-device", f"virtserialport,chardev={name},name={port}")
    yield from ("-add-fd", f"fd={files.log},set=2", "-chardev", "file,id=log,path=/dev/fdset/2,append=on")
    yield from ("-device", f"virtserialport,chardev=log,name={PORT_NAMES[3]}")


def placeholder(name: str) -> str:
    """The node that is behind the drive of that name before any file is put there."""
    return f"{name}-file"


def _disk(name: str, fd: int, set_id: int, *, read_only: bool) -> Iterator[str]:
    flag = "on" if read_only else "off"
    if fd < 0:
        file = f"driver=null-co,size={_PLACEHOLDER_BYTES},read-zeroes=on"
    else:
        yield from ("-add-fd", f"fd={fd},set={set_id}")
        file = f"driver=file,filename=/dev/fdset/{set_id},auto-read-only=off,discard=unmap,locking=off"
    yield from ("-blockdev", f"{file},node-name={placeholder(name)},read-only={flag}")
    yield from ("-blockdev", f"driver=raw,node-name={name},file={placeholder(name)},read-only={flag},discard=unmap")
    yield from ("-device", f"virtio-blk-device,drive={name},id={name}")
