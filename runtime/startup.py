"""Starting a container's VM: from its files to a process that runs, each phase timed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import cgroups, disks
from runtime.network import links
from runtime.record import Network, Port, Vm
from runtime.vm import launch, machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.images.image import Image
    from runtime.life import Container
    from runtime.record import Cgroups, StartPath
    from runtime.spec import Spec
    from runtime.vm.launch import Host, Started, Template
    from runtime.vm.process import Process
    from runtime.vm.template import Templates

# The guest's kernel and agent live beside the container's own memory limit, so that the limit is the container's alone:
# 80 MB for a distribution's kernel, and a 64th of the RAM for its page structures. What is not touched costs nothing.
GUEST_RESERVE_BYTES = 128 * 1024**2
_PAGE_STRUCTURES = 64
# QEMU's own memory: heap, translated code, device buffers. Generous: a guest within its limit must never be killed.
VMM_RESERVE_BYTES = 192 * 1024**2
_RAM_STEP_BYTES = 16 * 1024**2
_IDENTITY_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Running:
    """What a start gave."""

    started: Started
    vm: Vm
    network: Network
    groups: Cgroups
    phases: dict[str, float]
    started_at: float


class Starter:
    """Starts VMs on this host. Holds no state of containers: what it made is in what it returns, or is undone."""

    def __init__(
        self,
        config: Config,
        host: Host,
        accel: Literal["tcg", "kvm"],
        templates: Templates,
        host_cgroups: HostCgroups,
    ) -> None:
        self._config = config
        self._host = host
        self._accel = accel
        self._templates = templates
        self._host_cgroups = host_cgroups
        self._subnet = ipaddress.IPv4Network(config.subnet)

    def shape(self, memory_bytes: int, vcpus: int) -> machine.Shape:
        """The VM for a container with this memory limit: its RAM is the limit and the guest's reserve, rounded up."""
        wanted = memory_bytes + memory_bytes // _PAGE_STRUCTURES + GUEST_RESERVE_BYTES
        ram = -(-wanted // _RAM_STEP_BYTES) * _RAM_STEP_BYTES
        return machine.Shape(ram, vcpus, self._accel)

    def network(self, container: Container, ports: tuple[Port, ...]) -> Network:
        """The container's address: that of its slot, after the bridge's own."""
        address = str(self._subnet[2 + container.slot])
        return Network(links.tap_name(container.id), self._config.bridge, address, links.mac_of(address), ports)

    async def start(self, container: Container, image: Image, ports: tuple[Port, ...]) -> Running:
        """Start the VM and the container's process in it.

        Raises:
            GuestFailed: QEMU or the agent failed; CommandNotFound, CommandNotExecutable: the container's command.
            HostUnable, DiskFull: the host cannot.
            In every case no process and no control group is left.
        """
        phases: dict[str, float] = {}
        groups = self._host_cgroups.create(container.id)
        process: Process | None = None
        try:
            with _timed(phases, "image"):
                writable = container.data_directory / "writable.ext4"
                if not writable.exists():
                    await disks.make_writable(writable, container.record.limits.disk_bytes)
            network = self.network(container, ports)
            order = self._order(container, image, writable, groups, network)
            template, path, reason = self._path(order.shape)
            mode: machine.Mode = "clone" if template else "cold"
            started = await launch.start(self._host, order, mode, template=template)
            process = started.process
            phases.update(started.phases)
            limits = container.record.limits
            with _timed(phases, "network"):
                await started.agent.call("hyper-identity", _IDENTITY_TIMEOUT_S, **self._identity(container, network))
            with _timed(phases, "exec"):
                await started.agent.call("hyper-start", _START_TIMEOUT_S, **_process(container, image))
            # Only now: a quota would slow the start itself.
            memory = order.shape.ram_bytes + VMM_RESERVE_BYTES
            self._host_cgroups.limit(groups, memory_bytes=memory, cpus=limits.cpu_quota)
        except BaseException:
            if process is not None:
                await asyncio.shield(process.kill())
            await asyncio.shield(self._host_cgroups.remove(groups))
            raise
        vm = Vm(
            pid=process.pid,
            pid_start_ticks=process.start_ticks,
            ram_bytes=order.shape.ram_bytes,
            vcpus=order.shape.vcpus,
            accel=self._accel,
            machine="microvm",
            uid=order.uid,
            kernel=self._host.kernel.version,
            start_path=path,
            start_path_reason=reason,
            cpu_quota=limits.cpu_quota,
        )
        return Running(started, vm, network, groups, phases, time.time())

    def _path(self, shape: machine.Shape) -> tuple[Template | None, StartPath, str | None]:
        if not self._config.template:
            return None, "cold", "templates are switched off (template = false)"
        template, reason = self._templates.get(shape)
        return (template, "template", None) if template else (None, "cold", reason)

    def _order(
        self, container: Container, image: Image, writable: Path, groups: Cgroups, network: Network
    ) -> launch.Order:
        limits = container.record.limits
        return launch.Order(
            name=container.id,
            directory=container.directory,
            shape=self.shape(limits.memory_bytes, limits.vcpus),
            uid=self._config.uid_base + 2 + container.slot,
            groups=cgroups.directories(groups),
            tap=network.tap,
            bridge=network.bridge,
            console=container.data_directory / "console.log",
            log=container.log_path,
            image=image.file,
            writable=writable,
        )

    def _identity(self, container: Container, network: Network) -> dict[str, object]:
        hostname = container.spec.hostname or container.id[:12]
        return {
            "time_ns": time.time_ns(),
            "entropy": base64.b64encode(os.urandom(256)).decode(),
            "machine_id": container.id[:32],
            "hostname": hostname,
            "network": {
                "interface": container.record.guest.interface,
                "mac": network.mac,
                "address": network.address,
                "prefix": self._subnet.prefixlen,
                "gateway": str(self._subnet[1]),
                "mtu": 1500,
            },
            "dns": name_servers(self._config.dns),
            "search": [],
            "hosts": [["127.0.0.1", "localhost"], ["::1", "localhost"], [network.address, hostname]],
        }


def name_servers(configured: list[str], resolv_conf: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Name servers for containers: the configured, else the host's that a guest can reach.

    A resolver on the host's loopback is of no use to a guest; systemd-resolved keeps its upstream servers in a file.
    """
    if configured:
        return configured
    upstream = Path("/run/systemd/resolve/resolv.conf")
    for path in (resolv_conf, upstream):
        with contextlib.suppress(OSError):
            words = [line.split() for line in path.read_text().splitlines()]
            servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
            usable = [server for server in servers if _reachable(server)]
            if usable:
                return usable[:3]
    return []


def _reachable(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback


def arguments(spec: Spec, image: Image) -> list[str]:
    """The container's command line, by Docker's rules: an entrypoint of the caller's drops the image's Cmd."""
    if spec.entrypoint is not None:
        return [*spec.entrypoint, *(spec.args or ())]
    return [*image.config.entrypoint, *(spec.args or image.config.cmd)]


def environment(spec: Spec, image: Image, hostname: str) -> list[str]:
    """The image's environment under the caller's; PATH and HOSTNAME are always set."""
    merged: dict[str, str] = {}
    for entry in (_DEFAULT_PATH, f"HOSTNAME={hostname}", *image.config.env, *spec.env):
        name, _, value = entry.partition("=")
        merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def _process(container: Container, image: Image) -> dict[str, object]:
    spec, guest, limits = container.spec, container.record.guest, container.record.limits
    writable = {"device": guest.writable_device, "fstype": "ext4", "options": "discard"}
    return {
        "root": {
            "image": {"device": guest.image_device, "fstype": "erofs"},
            "writable": writable if guest.writable_device else None,
            "read_only": spec.read_only,
        },
        "tmpfs": [one.model_dump() for one in spec.tmpfs],
        "args": arguments(spec, image),
        "env": environment(spec, image, spec.hostname or container.id[:12]),
        "cwd": spec.cwd or image.config.working_dir or "/",
        "user": spec.user if spec.user is not None else image.config.user,
        "tty": spec.tty,
        "stdin": spec.stdin,
        "stop_signal": spec.stop_signal or image.config.stop_signal or "SIGTERM",
        "cgroup": {
            "memory_max": limits.memory_bytes,
            "memory_swap_max": 0,
            "cpu_quota_us": None if limits.cpu_quota is None else int(limits.cpu_quota * cgroups.CPU_PERIOD_US),
            "cpu_period_us": cgroups.CPU_PERIOD_US,
            "cpu_weight": None,
            "pids_max": None,
        },
    }


@contextlib.contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    phases[name] = time.monotonic() - began
