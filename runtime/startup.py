"""Starting a container's VM: from its files to a process that runs, each phase timed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import ipaddress
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import cgroups, workload
from runtime.errors import GuestFailed
from runtime.network import links, pins
from runtime.record import Network, Port, Vm
from runtime.vm import kernel, launch, machine, sharing, userns
from runtime.vm.agent import CLOCK_ERROR_NS
from runtime.vm.streams import Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Literal

    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.disks import Mounted
    from runtime.images.image import Image
    from runtime.life import Container
    from runtime.record import Cgroups, StartPath
    from runtime.reserve import Reserve
    from runtime.vm.agent import Agent
    from runtime.vm.launch import Host, Root, Started, Template
    from runtime.vm.pool import Member, Pool
    from runtime.vm.process import Process
    from runtime.vm.template import Templates
    from runtime.volumes import Volumes

# The guest's kernel and agent live beside the container's own memory limit, so that the limit is the container's alone:
# 80 MB for a distribution's kernel, and a 64th of the RAM for its page structures. What is not touched costs nothing.
GUEST_RESERVE_BYTES = 128 * 1024**2
_PAGE_STRUCTURES = 64
# QEMU's own memory: heap, translated code, device buffers. Generous: a guest within its limit must never be killed.
VMM_RESERVE_BYTES = 192 * 1024**2
_RAM_STEP_BYTES = 16 * 1024**2
_IDENTITY_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 60.0
_IDLE_END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """What a start gave."""

    started: Started
    vm: Vm
    network: Network
    groups: Cgroups
    phases: dict[str, float]
    started_at: float


@dataclass(frozen=True, slots=True)
class _Placed:
    """A VM that is up, and what it was made with."""

    started: Started
    order: launch.Order
    network: Network
    groups: Cgroups
    path: StartPath
    reason: str | None
    layer_mounted: Mounted | None = None
    image_ready: bool = False


class Starter:
    """Starts VMs on this host. Holds no state of containers: what it made is in what it returns, or is undone."""

    def __init__(
        self,
        config: Config,
        host: Host,
        accel: Literal["tcg", "kvm"],
        templates: Templates,
        pool: Pool,
        host_cgroups: HostCgroups,
        volumes: Volumes,
        reserve: Reserve,
    ) -> None:
        self._config = config
        self._host = host
        self._accel = accel
        self._templates = templates
        self._pool = pool
        self._host_cgroups = host_cgroups
        self._volumes = volumes
        self._reserve = reserve
        self._subnet = ipaddress.IPv4Network(config.subnet)

    def shape(self, memory_bytes: int, vcpus: int) -> machine.Shape:
        """The VM for a container with this memory limit: its RAM is the limit and the guest's reserve, rounded up."""
        wanted = memory_bytes + memory_bytes // _PAGE_STRUCTURES + GUEST_RESERVE_BYTES
        ram = -(-wanted // _RAM_STEP_BYTES) * _RAM_STEP_BYTES
        return machine.Shape(ram, vcpus, self._accel)

    def network(self, container: Container, ports: tuple[Port, ...]) -> Network:
        """The container's address: that of its slot, after the bridge's own."""
        address = str(self._subnet[2 + container.slot])
        return Network(links.tap_name(container.id), self._config.bridge, address, pins.mac_of(address), ports)

    async def start(self, container: Container, image: Image, ports: tuple[Port, ...]) -> Running:
        """Start the VM and the container's process in it.

        Raises:
            GuestFailed: QEMU or the agent failed; CommandNotFound, CommandNotExecutable: the container's command.
            HostUnable, DiskFull: the host cannot.
            In every case no process and no control group is left.
        """
        self._reserve.demand_room()
        phases: dict[str, float] = {}
        limits = container.record.limits
        if limits.vcpus > 1:
            self._host.kernel.require(kernel.SEVERAL_CPUS, "--cpus above 1", field="cpus")
        volumes = self._volumes.attach(container)
        with contextlib.ExitStack() as opened, self._pool.starting():
            shares = await self._open_host_directories(container, opened)
            placed = await self._place(container, image, ports, volumes, phases)
            phases.update(placed.started.phases)
            agent, process, order = placed.started.agent, placed.started.process, placed.order
            try:
                if placed.path != "pool":
                    with _timed(phases, "network"):
                        await self._introduce(container, placed.network, agent)
                if shares:
                    with _timed(phases, "mounts"):
                        await sharing.attach(process, shares)
                with _timed(phases, "exec"):
                    asked = workload.process(container, image, layer_mounted=placed.layer_mounted)
                    asked["mounts"] = workload.mounts(container.spec, order.volumes)
                    await agent.call("hyper-start", _START_TIMEOUT_S, **asked)
                    self._volumes.attached(container)
                # Only now: a quota would slow the start itself.
                memory = order.shape.ram_bytes + VMM_RESERVE_BYTES
                self._host_cgroups.limit(placed.groups, memory_bytes=memory, cpus=limits.cpu_quota)
            except BaseException:
                await asyncio.shield(process.kill())
                await asyncio.shield(self._host_cgroups.remove(placed.groups))
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
            start_path=placed.path,
            start_path_reason=placed.reason,
            image_ready=placed.image_ready,
            cpu_quota=limits.cpu_quota,
        )
        return Running(placed.started, vm, placed.network, placed.groups, phases, time.time())

    @contextlib.asynccontextmanager
    async def idle(self, container: Container, image: Image) -> AsyncIterator[tuple[Agent, Streams]]:
        """A VM with the files of a container that does not run, and nothing of it running; it ends with the context.

        Its control groups have another name than the container's, so that a daemon that comes back sweeps them.

        Raises:
            GuestFailed, HostUnable, DiskFull: as `start`.
        """
        groups = self._host_cgroups.create(f"files-{container.id}")
        network = self.network(container, ())
        order = self._order(container, image, groups, network, self._uid_of(container), ())
        order = dataclasses.replace(order, bridge=None, log=None, shares=False)
        template, _ = await self._template(order.shape)
        process: Process | None = None
        streams = Streams(order.directory / "streams.sock")
        try:
            started = await launch.start(self._host, order, "clone" if template else "cold", template=template)
            process = started.process
            nothing = {"idle": True, "args": ["idle"], "tty": False, "user": "", "tmpfs": []}
            asked = {**workload.process(container, image, layer_mounted=_mounted(started)), **nothing}
            await started.agent.call("hyper-start", _START_TIMEOUT_S, **asked)
            yield started.agent, streams
            # In order, so that the guest writes back and unmounts.
            await started.agent.call("hyper-signal", signal=9, all=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_END_TIMEOUT_S):
                    await process.ended()
        finally:
            streams.close()
            if process is not None:
                started.agent.close()
                await asyncio.shield(process.kill())
            await asyncio.shield(self._host_cgroups.remove(groups))
            for name in launch.SOCKETS:
                (order.directory / name).unlink(missing_ok=True)

    async def _open_host_directories(self, container: Container, opened: contextlib.ExitStack) -> list[sharing.Share]:
        """What the container has of the host; `opened` closes it."""
        if not container.spec.host_directories:
            return []
        self._host.kernel.require("9p", "a host directory as a volume", field="volumes")
        await asyncio.to_thread(userns.require)
        shares = await asyncio.to_thread(self._volumes.open_host_directories, container)
        for share in shares:
            opened.callback(os.close, share.fd)
        return shares

    def _uid_of(self, container: Container) -> int:
        return self._config.uid_base + 2 + container.slot

    async def _place(
        self,
        container: Container,
        image: Image,
        ports: tuple[Port, ...],
        volumes: tuple[launch.Volume, ...],
        phases: dict[str, float],
    ) -> _Placed:
        """A VM for the container whose agent answers: from the pool, else from a template, else booted.

        The writable layer is made, if there is none: phase `image`.
        """
        network = self.network(container, ports)
        limits = container.record.limits
        root = workload.root(container, image)
        member: Member | None = None
        reason: str | None
        if any(volume.read_only for volume in volumes):
            reason = "a read-only volume: the pool's drives are writable"
        elif container.spec.host_directories:
            reason = "host directories: the pool's VMs have no capability at all"
        else:
            member, reason = self._pool.take(self.shape(limits.memory_bytes, limits.vcpus), root)
        if member is not None:
            network = dataclasses.replace(network, tap=member.tap)
            order = self._order(container, image, member.groups, network, member.uid, volumes)
            try:
                who = functools.partial(self._introduce, container, network)
                started = await self._pool.hand_out(member, order, who)
            except GuestFailed as err:
                reason = f"the pool's VM failed: {err}"
                network = self.network(container, ports)
            else:
                mounted: Mounted | None = "nobarrier" if member.layer_given else None
                ready = member.kind.image is not None
                return _Placed(started, order, network, member.groups, "pool", None, mounted, ready)
        groups = self._host_cgroups.create(container.id)
        uid = self._uid_of(container)
        order = self._order(container, image, groups, network, uid, volumes)
        template, why_cold = await self._template(order.shape, root)
        try:
            started = await launch.start(self._host, order, "clone" if template else "cold", template=template)
        except BaseException:
            await asyncio.shield(self._host_cgroups.remove(groups))
            raise
        if template:
            ready = template.image is not None
            return _Placed(started, order, network, groups, "template", reason, _mounted(started), ready)
        return _Placed(started, order, network, groups, "cold", why_cold)

    async def _template(self, shape: machine.Shape, root: Root | None = None) -> tuple[Template | None, str | None]:
        if not self._config.template:
            return None, "templates are switched off (template = false)"
        own = self._templates.of_image(shape, root) if root else None
        return (own, None) if own else await self._templates.get(shape)

    def _order(
        self,
        container: Container,
        image: Image,
        groups: Cgroups,
        network: Network,
        uid: int,
        volumes: tuple[launch.Volume, ...],
    ) -> launch.Order:
        limits = container.record.limits
        return launch.Order(
            name=container.id,
            directory=container.directory,
            shape=self.shape(limits.memory_bytes, limits.vcpus),
            uid=uid,
            groups=cgroups.directories(groups),
            tap=network.tap,
            bridge=network.bridge,
            address=network.address,
            console=container.data_directory / "console.log",
            log=container.log_path,
            image=image.file,
            writable=workload.writable(container),
            writable_bytes=limits.disk_bytes,
            volumes=volumes,
            shares=bool(container.spec.host_directories),
        )

    async def _introduce(self, container: Container, network: Network, agent: Agent) -> None:
        """Tell a guest who it is, and what time it is."""
        await agent.connect(_IDENTITY_TIMEOUT_S)  # before the clock is looked at
        identity = self._identity(container, network)
        await agent.call("hyper-identity", _IDENTITY_TIMEOUT_S, **identity)
        if time.time_ns() - int(str(identity["time_ns"])) > CLOCK_ERROR_NS:
            await agent.set_clock(_IDENTITY_TIMEOUT_S)

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


def _mounted(started: Started) -> Mounted | None:
    """How a clone has its writable layer mounted, if its template had."""
    return "barrier" if started.layer_mounted else None


@contextlib.contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    phases[name] = phases.get(name, 0.0) + time.monotonic() - began
