"""The pool: clones that run and wait, each handed out once.

A member has rehearsed: it has done in its guest what a start does (network, mounts, a small server, a request), and is
idle again. A start then finds the guest's code cached, and under software emulation translated: five times faster.
Members are made one at a time, at the lowest CPU weight, and never while a container is being started.

An image that is started again gets members of its own: its root is mounted in them, and its program has begun once, up
to the first thing that it would do. They are given to no other image, as code of this one has run in them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import os
import secrets
import shutil
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime import cgroups, command, disks, keeping
from runtime.errors import GuestFailed
from runtime.network import links
from runtime.vm import hotplug, launch, machine, monitor
from runtime.vm.agent import Agent
from runtime.vm.demand import Demand, Kind
from runtime.vm.process import uids_in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from pathlib import Path
    from typing import Any

    from runtime.cgroups import HostCgroups
    from runtime.record import Cgroups
    from runtime.vm.launch import Host, Order, Root, Started, Template
    from runtime.vm.machine import Shape
    from runtime.vm.monitor import Monitor
    from runtime.vm.process import Process
    from runtime.vm.template import Templates

log = logging.getLogger(__name__)

REHEARSALS = 2  # the second one still finds code that the first did not reach
_REHEARSAL_TIMEOUT_S = 30.0
_POLL_S = 0.01
_QUIET_S = 0.2  # after a start; the next one often follows
_PUT_OFF_S = 5.0  # a size of which none could be made; twice as long each time, up to
_PUT_OFF_MOST_S = 60.0
_LOOK_S = 15.0  # members get too old, and too many, while nothing happens
_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nnogroup:x:65534:\n"
_ROOTS_REMEMBERED = 256
_DISPLACED_S = 30.0
# Guests' addresses in a rehearsal are never on a bridge (RFC 5737, TEST-NET-1).
_REHEARSAL_NETWORK = {
    "interface": "eth0",
    "mac": "52:54:c0:00:02:02",
    "address": "192.0.2.2",
    "prefix": 24,
    "gateway": "192.0.2.1",
    "mtu": 1500,
}


@dataclass(eq=False, slots=True)
class Member:
    """A clone that waits. Once handed out it is the container's VM, under its own id as name of group and tap.

    Its writable layer is mounted already, from the file `layer`, and if it is for an image that as well.
    """

    id: str
    directory: Path
    console: Path
    log: Path
    layer: Path
    kind: Kind
    uid: int
    groups: Cgroups
    tap: str
    process: Process
    made_at: float
    monitor: Monitor
    memory_bytes: int = 0
    layer_given: bool = False
    plug: hotplug.Plug = field(default_factory=hotplug.Plug)


class Pool:
    """Members by kind: `depth` of each in use, more if more are asked for, up to `limit` and `memory_bytes` in all."""

    def __init__(
        self,
        state: Path,
        data: Path,
        host: Host,
        templates: Templates,
        host_cgroups: HostCgroups,
        first_uid: int,
        init: Path,
        disk_bytes: int,
        *,
        depth: int,
        limit: int,
        memory_bytes: int,
        max_age_s: float,
    ) -> None:
        self._state = state
        self._data = data
        self._host = host
        self._templates = templates
        self._host_cgroups = host_cgroups
        self._init = init
        self._disk_bytes = disk_bytes
        self._first_uid = first_uid
        self._depth = depth
        self._limit = limit
        self._memory_bytes = memory_bytes
        self._max_age_s = max_age_s
        self._waiting: dict[Kind, deque[Member]] = {}
        self._roots: dict[Path, Root] = {}  # by image, what was started of it last
        self._demand = Demand(depth)
        self._put_off: dict[Kind, tuple[float, float]] = {}  # sizes of which none could be made: until when, how long
        self._largest_bytes = 0  # of the members so far: what the next one may take
        self._starting = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many members can be handed out now."""
        return sum(map(len, self._waiting.values()))

    @property
    def waiting_for_images(self) -> int:
        """How many of them are for one image only."""
        return sum(len(waiting) for kind, waiting in self._waiting.items() if kind.image)

    def open(self, *shapes: Shape) -> None:
        """Begin to fill, for these shapes first."""
        for shape in shapes:
            self._demand.keep(Kind(shape))
        if self._depth:
            self._task = asyncio.create_task(keeping.keep("the pool", self._keep_full), name="pool")

    def take(self, shape: Shape, root: Root) -> tuple[Member | None, str | None]:
        """A member of the shape, for this image if there is one, or None and the reason (none if there is no pool).

        It will not be given again.
        """
        if not self._depth:
            return None, None
        kind = Kind(shape, root.image)
        self._roots.pop(root.image, None)
        self._roots[root.image] = root
        if len(self._roots) > _ROOTS_REMEMBERED:
            self._roots.pop(next(iter(self._roots)))
        self._demand.ask(kind, time.monotonic())
        self._changed.set()
        for waiting in (self._waiting.get(one, deque()) for one in (kind, Kind(shape))):
            while waiting:
                member = waiting.popleft()
                if member.process.alive() and time.monotonic() - member.made_at < self._max_age_s:
                    return member, None
                asyncio.ensure_future(self._discard(member))  # noqa: RUF006 -- it holds itself until it is done
        return None, "the pool is empty"

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While a container is being started, no member is made."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._changed.set()

    async def hand_out(
        self, member: Member, order: Order, introduce: Callable[[Agent], Coroutine[Any, Any, None]]
    ) -> Started:
        """Make the member the VM of the order: its sockets, disks, log and network.

        If the container has no writable layer yet, it gets the member's, which is mounted (`layer_given`), or one of
        another size. `introduce` tells its agent who it is. QEMU takes the disks at the same time, and neither needs
        the other.

        Raises:
            GuestFailed: QEMU or the agent refused or is gone; the member has been discarded.
            HostUnable, DiskFull: the bridge is gone, or there is no room for the layer; same.
        """
        began = time.monotonic()
        agent = Agent(order.directory / "agent.sock")
        introduced: asyncio.Future[None] | None = None
        try:
            if order.writable and not order.writable.exists():
                member.layer_given = order.writable_bytes == self._disk_bytes
                if member.layer_given:
                    member.layer.rename(order.writable)
                else:
                    await disks.make_writable(order.writable, order.writable_bytes)
            layered = time.monotonic()
            order.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # An empty directory that a VM before has left is replaced; one with something in it must go first.
            shutil.rmtree(order.directory / launch.SHARED, ignore_errors=True)
            for name in (*launch.SOCKETS, launch.QEMU_LOG, launch.SHARED):
                (member.directory / name).rename(order.directory / name)
            member.console.replace(order.console)
            shutil.rmtree(member.directory, ignore_errors=True)
            self._host_cgroups.weigh(member.groups, cgroups.NORMAL_WEIGHT)
            if order.bridge:
                await links.attach_tap(member.tap, order.bridge, order.address)
            log_to_plug = order.log
            if order.log and not order.log.exists():
                member.log.rename(order.log)
                log_to_plug = None
            introduced = asyncio.ensure_future(introduce(agent))
            files = {disk.node: disk for disk in disks_of(order)}
            writable = files.pop("writable", None)
            if member.kind.image:
                files.pop("image")  # it is there
            await member.plug.plug(member.monitor, files.values(), log_to_plug)
            plugged = time.monotonic()
            await introduced
            if writable and not member.layer_given:
                await agent.call("hyper-layer", writable=None)
                await member.plug.plug(member.monitor, (writable,))
            for file in (member.log, member.layer):
                file.unlink(missing_ok=True)
            member.monitor.close()
        except BaseException as err:
            if introduced is not None:
                introduced.cancel()
                await asyncio.gather(introduced, return_exceptions=True)
            agent.close()
            await asyncio.shield(self._discard(member))
            if isinstance(err, OSError):
                raise GuestFailed(f"the VM from the pool is unusable: {err}") from err
            raise
        phases = {"image": layered - began, "vm": plugged - layered, "network": time.monotonic() - plugged}
        return launch.Started(member.process, agent, phases)

    async def close(self) -> None:
        """End every member that waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._waiting.values():
            while waiting:
                await self._discard(waiting.pop())

    async def _keep_full(self) -> None:
        rehearsal = await self._rehearsal_image()
        while True:
            self._changed.clear()
            kind = self._next()
            if kind is None or self._starting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
                    await asyncio.sleep(_QUIET_S)
                continue
            try:
                template = await self._templates.settled(kind.shape)
                member = await self._make(template, rehearsal, self._roots[kind.image] if kind.image else None)
            except Exception as err:  # noqa: BLE001 -- told; no reason to let the other kinds wait
                if kind.image:
                    self._demand.forget(kind)
                else:
                    _, before_s = self._put_off.get(kind, (0.0, 0.0))
                    pause_s = min(2 * before_s, _PUT_OFF_MOST_S) or _PUT_OFF_S
                    self._put_off[kind] = time.monotonic() + pause_s, pause_s
                what = kind.image.name if kind.image else f"{kind.shape.ram_bytes >> 20} MiB"
                keeping.tell(f"the pool's member for {what}", err)
            else:
                self._put_off.pop(kind, None)
                self._waiting.setdefault(kind, deque()).append(member)

    def _next(self) -> Kind | None:
        """The kind that lacks members most. Those that are too old, more than are wanted by now, or dead, are ended.

        Images have at most half of the pool: one that is new finds a member as well. There one that was started later
        displaces one that nobody has started for a while.
        """
        now = time.monotonic()
        lacking: dict[Kind, int] = {}
        for kind in {*self._waiting, *self._demand.kinds()}:
            waiting, depth = self._waiting.setdefault(kind, deque()), self._demand.depth(kind, now)
            if kind.image and not (kind.image in self._roots and kind.image.exists()):
                depth = 0
            for dead in [one for one in waiting if not one.process.alive()]:
                waiting.remove(dead)
                asyncio.ensure_future(self._discard(dead))  # noqa: RUF006 -- as in `take`
            while waiting and (len(waiting) > depth or now - waiting[0].made_at > self._max_age_s):
                asyncio.ensure_future(self._discard(waiting.popleft()))  # noqa: RUF006 -- as in `take`
            if depth > len(waiting) and self._put_off.get(kind, (0.0, 0.0))[0] <= now:
                lacking[kind] = depth - len(waiting)
            elif not depth:
                del self._waiting[kind]
        members = [member for waiting in self._waiting.values() for member in waiting]
        taken = sum(member.memory_bytes for member in members)
        if len(members) >= self._limit or taken + self._largest_bytes > self._memory_bytes:
            return None
        if 2 * self.waiting_for_images >= self._limit:
            self._displace(kind for kind in lacking if kind.image and not self._waiting[kind])
            lacking = {kind: number for kind, number in lacking.items() if kind.image is None}
        return max(lacking, key=lambda kind: (lacking[kind], kind.image is None), default=None)

    def _displace(self, lacking: Iterable[Kind]) -> None:
        """End a member for an image, if it keeps one that is started more from having any."""
        last = self._demand.last_asked
        wanted = max(lacking, key=last, default=None)
        longest = min((kind for kind, waiting in self._waiting.items() if kind.image and waiting), key=last)
        if wanted is not None and last(wanted) - last(longest) > _DISPLACED_S:
            asyncio.ensure_future(self._discard(self._waiting[longest].popleft()))  # noqa: RUF006 -- as in `take`
            self._changed.set()

    async def _make(self, template: Template, rehearsal: Path, root: Root | None) -> Member:
        id_ = secrets.token_hex(32)
        directory, uid = self._state / id_, await self._free_uid()
        console, output, scratch, layer = (self._data / f"{id_}.{kind}" for kind in ("console", "log", "ext4", "layer"))
        groups = self._host_cgroups.create(id_)
        process: Process | None = None
        qmp: Monitor | None = None
        try:
            self._host_cgroups.weigh(groups, cgroups.LEAST_WEIGHT)
            tap = links.tap_name(id_)
            inside = cgroups.directories(groups)
            order = launch.Order(id_, directory, template.shape, uid, inside, tap, None, console, output)
            started = await launch.start(self._host, order, "clone", template=template)
            process = started.process
            made_at = time.monotonic()
            qmp = await monitor.connect(directory)
            kind = Kind(template.shape, root.image if root else None)
            member = Member(id_, directory, console, output, layer, kind, uid, groups, tap, process, made_at, qmp)
            await disks.make_writable(scratch, self._disk_bytes)
            image = hotplug.Disk("image", rehearsal, read_only=True)
            await member.plug.plug(qmp, (image, hotplug.Disk("writable", scratch, read_only=False)))
            async with asyncio.timeout(_REHEARSAL_TIMEOUT_S):
                for _ in range(REHEARSALS):
                    await _rehearse(started.agent, disks.mount_options(scratch))
            await member.plug.unplug(qmp)
            await disks.make_writable(layer, self._disk_bytes)
            files = [hotplug.Disk("writable", layer, read_only=False)]
            if root:
                files.append(hotplug.Disk("image", root.image, read_only=True))
            await member.plug.plug(qmp, files)
            await launch.mount_ahead(started.agent, disks.mount_options(layer, keep=False), root)
            os.truncate(output, 0)  # of what the rehearsals said
            started.agent.close()
            member.memory_bytes = await asyncio.to_thread(process.memory_bytes)
            self._largest_bytes = max(self._largest_bytes, member.memory_bytes)
        except BaseException as err:
            if qmp is not None:
                qmp.close()
            if process is not None:
                await asyncio.shield(process.kill())
            await asyncio.shield(self._clear(id_, directory, (console, output, layer), groups))
            if isinstance(err, TimeoutError):
                raise GuestFailed(f"a clone did not finish its rehearsal: {err}") from err
            raise
        finally:
            scratch.unlink(missing_ok=True)
        return member

    async def _discard(self, member: Member) -> None:
        member.monitor.close()
        await member.process.kill()
        files = (member.console, member.log, member.layer)
        await self._clear(member.id, member.directory, files, member.groups)

    async def _clear(self, id_: str, directory: Path, files: tuple[Path, ...], groups: Cgroups) -> None:
        await self._host_cgroups.remove(groups)
        shutil.rmtree(directory, ignore_errors=True)
        for file in files:
            file.unlink(missing_ok=True)

    async def _free_uid(self) -> int:
        """The first uid that no VM has: of members, of those that were handed out, and of what a daemon before left."""
        used = await asyncio.to_thread(uids_in_use)
        return next(uid for uid in itertools.count(self._first_uid) if uid not in used)

    async def _rehearsal_image(self) -> Path:
        """The image that members rehearse with: the guest init, which knows how."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        image, root = self._data / "rehearsal.erofs", self._data / "rehearsal"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("tmp", "etc", "usr/bin"):
            (root / name).mkdir(parents=True)
        (root / "bin").symlink_to("usr/bin")
        shutil.copy2(self._init, root / "usr/bin/init")
        for name, content in (("passwd", _USERS), ("group", _GROUPS), ("hosts", ""), ("resolv.conf", "")):
            (root / "etc" / name).write_text(content)
        made = await command.run(["mkfs.erofs", "-Enoinline_data", str(image), str(root)], timeout_s=30)
        shutil.rmtree(root, ignore_errors=True)
        if made.returncode != 0:
            raise GuestFailed(f"the rehearsal's image cannot be made: {made.last_line}")
        return image


def disks_of(order: Order) -> tuple[hotplug.Disk, ...]:
    """The files of an order, by the drives that they belong behind."""
    found = []
    if order.image:
        found.append(hotplug.Disk("image", order.image, read_only=True))
    if order.writable:
        found.append(hotplug.Disk("writable", order.writable, read_only=False))
    for node, volume in zip(machine.VOLUME_NODES, order.volumes, strict=False):
        found.append(hotplug.Disk(node, volume.file, read_only=volume.read_only))
    return tuple(found)


async def _rehearse(agent: Agent, mount_options: dict[str, str]) -> None:
    identity: dict[str, Any] = {
        "time_ns": time.time_ns(),
        "entropy": base64.b64encode(os.urandom(64)).decode(),
        "machine_id": "0" * 32,
        "hostname": "rehearsal",
        "network": _REHEARSAL_NETWORK,
        "dns": [_REHEARSAL_NETWORK["gateway"]],
        "search": [],
        "hosts": [["127.0.0.1", "localhost"], [_REHEARSAL_NETWORK["address"], "rehearsal"]],
    }
    await agent.call("hyper-identity", **identity)
    await agent.call(
        "hyper-start",
        rehearse=True,
        root={
            "image": launch.IMAGE,
            "writable": launch.WRITABLE | mount_options,
            "read_only": False,
        },
        tmpfs=[],
        args=["/bin/init", "rehearse"],
        env=["PATH=/usr/bin:/bin", "HOSTNAME=rehearsal"],
        cwd="/",
        user="",
        tty=False,
        stdin=False,
        stop_signal="SIGTERM",
        cgroup={"memory_max": 64 * 1024**2, "memory_swap_max": 0, "cpu_quota_us": None, "cpu_period_us": 100000},
    )
    while (await agent.call("hyper-status")).get("state") != "idle":  # noqa: ASYNC110 -- nothing there could wake us
        await asyncio.sleep(_POLL_S)
