"""A guest that is none of ours: Debian's kernel, a shell script for init, and Debian's own qemu-ga on a virtio port."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtime.vm import initrd
from tests.contract import agent_vm

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGE = "qemu-guest-agent"
PORT = "org.qemu.guest_agent.0"
DISK_BYTES = 64 << 20
INIT = """#!/bin/busybox sh
export PATH=/bin:/usr/sbin
busybox mount -t proc proc /proc; busybox mount -t sysfs sys /sys; busybox mount -t devtmpfs dev /dev
[ ! -f /modules/order ] || while read -r name; do busybox insmod "/modules/$name"; done </modules/order
busybox mount -t ext4 /dev/vdb /root || exec busybox poweroff -f
for place in proc sys dev; do busybox mount --move "/$place" "/root/$place"; done
exec busybox switch_root /root /sbin/init
"""
# Without udev there is no /dev/virtio-ports.
SECOND_INIT = f"""#!/bin/busybox sh
export PATH=/bin:/usr/sbin
busybox ip address add 10.0.2.15/24 dev eth0; busybox ip link set eth0 up
busybox ping -c 1 10.0.2.2 >/dev/null
port=$(busybox grep -l {PORT} /sys/class/virtio-ports/*/name)
exec qemu-ga -m virtio-serial -p "/dev/$(busybox basename "${{port%/name}}")" -t /run
"""


def package(place: Path) -> Path:
    """The files of the package, with the host's apt sources; fetched, and not installed: it has a service."""
    place.mkdir()
    lists = f"Dir::State::lists={place}/lists"
    fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
    if subprocess.run(fetch, cwd=place, capture_output=True, check=False, timeout=120).returncode != 0:
        # No lists, or old ones.
        subprocess.run(["apt-get", "-q", "-o", lists, "update"], check=True, capture_output=True, timeout=120)
        subprocess.run([*fetch, "-o", lists], cwd=place, check=True, capture_output=True, timeout=120)
    (archive,) = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, place / "root"], check=True, timeout=60)
    return place / "root"


def _libraries(program: Path) -> Iterable[Path]:
    """What a program is linked with, of the host's, which QEMU itself has need of."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True, timeout=60).stdout
    assert "not found" not in listed, listed
    return [Path(word) for line in listed.splitlines() for word in line.split() if word.startswith("/")]


class StockVm:
    """One VM in an empty directory, where its sockets have the names that a record says; `with` ends it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        vmlinuz, modules = agent_vm.kernel()
        self._make_disk()
        self._make_initrd(modules)
        (place / "image").touch()
        os.truncate(place / "image", 1 << 20)
        arguments = ["qemu-system-x86_64", "-M", f"microvm,acpi={'on' if modules else 'off'}", "-accel", "tcg"]
        arguments += ["-m", "128", "-kernel", str(vmlinuz), "-initrd", "initrd", "-nodefaults", "-no-user-config"]
        arguments += ["-append", f"console=ttyS0 quiet panic=-1 {agent_vm.clock()}", "-no-reboot", "-display", "none"]
        arguments += ["-serial", "file:console.log", "-device", "virtio-serial-device"]
        arguments += ["-chardev", "socket,id=agent,path=agent-stats.sock,server=on,wait=off"]
        arguments += ["-device", f"virtserialport,chardev=agent,name={PORT}"]
        arguments += ["-qmp", "unix:qmp-stats.sock,server=on,wait=off"]
        for name in ("image", "writable"):
            arguments += ["-blockdev", f"driver=raw,node-name={name},file.driver=file,file.filename={name}"]
            arguments += ["-device", f"virtio-blk-device,drive={name}"]
        arguments += ["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,netdev=net"]
        self.began = time.monotonic()
        self.process = subprocess.Popen(arguments, cwd=place)

    def _make_disk(self) -> None:
        root = self.place / "root"
        for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
        (root / "sbin/init").write_text(SECOND_INIT)
        (root / "sbin/init").chmod(0o755)
        program = package(self.place / "package") / "usr/sbin/qemu-ga"
        for file in (*_libraries(program), program):
            inside = root / ("usr/sbin/qemu-ga" if file == program else str(file).lstrip("/"))
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, inside)
        disk = self.place / "writable"
        make = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), f"{DISK_BYTES >> 10}k"]
        subprocess.run(make, check=True, capture_output=True, timeout=60)

    def _make_initrd(self, modules: Path | None) -> None:
        """Ours, with a script for init; the kernel unpacks what is behind it, too: busybox."""
        first, more = self.place / "init", self.place / "more"
        first.write_text(INIT)
        made = initrd.build(first, modules, self.place / "initrd")
        assert modules is None or "virtio_console" in (*made.modules, *made.builtin), made
        (more / "bin").mkdir(parents=True)
        (more / "root").mkdir()
        shutil.copy(shutil.which("busybox") or "", more / "bin/busybox")
        pack = ["busybox", "cpio", "-o", "-H", "newc"]
        names = b"bin\nbin/busybox\nroot\n"
        packed = subprocess.run(pack, cwd=more, input=names, check=True, capture_output=True, timeout=60).stdout
        with (self.place / "initrd").open("ab") as file:
            file.write(packed)

    def console(self) -> str:
        """What the guest printed."""
        path = self.place / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
