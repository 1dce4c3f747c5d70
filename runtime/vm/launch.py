"""Starting one VM until its agent answers: cold, as a template, or as a clone of one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import disks
from runtime.errors import GuestFailed
from runtime.network import holding, links
from runtime.vm import hotplug, machine, monitor, process, sharing, timer, userns
from runtime.vm.agent import Agent
from runtime.vm.monitor import Command
from runtime.vm.timer import TimerWrong

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from runtime.vm.kernel import Kernel
    from runtime.vm.machine import Mode, Shape

log = logging.getLogger(__name__)

QEMU_LOG = "qemu.log"
SHARED = "shared"  # the directory that QEMU starts in and exports
SOCKETS = ("qmp.sock", "qmp-stats.sock", "agent.sock", "agent-stats.sock", "streams.sock")
# The drives as a guest mounts them.
IMAGE = {"device": "vda", "fstype": "erofs"}
WRITABLE = {"device": "vdb", "fstype": "ext4"}
COLD_TIMEOUT_S = 60.0
_AHEAD_TIMEOUT_S = 30.0
CLONE_TIMEOUT_S = 10.0
# How many times a guest is booted for its timer, and how far that may be off: a template's is that of all its clones.
_BOOTS: dict[Mode, int] = {"cold": 3, "template": 5, "clone": 1}
_TIMER_TOLERANCE: dict[Mode, float] = {"cold": 0.25, "template": 0.02}


@dataclass(frozen=True, slots=True)
class Host:
    """What is the same for every VM of this host. `tsc_khz` is the host's time-stamp counter."""

    qemu: str
    qemu_version: str
    kernel: Kernel
    tsc_khz: int


@dataclass(frozen=True, slots=True)
class Root:
    """What a start begins with: the image's file, the name or path of the program in it, and the PATH to find it by."""

    image: Path
    program: str
    path: str


@dataclass(frozen=True, slots=True)
class Template:
    """A booted guest to clone: its sealed memory (a descriptor of ours) and the file of its devices' state.

    `layer`: what was on the disk that the guest has mounted as its writable layer; None if it has none mounted.
    `image`: the file of the one that it has mounted as well, and that alone its clones can be started with.
    """

    key: str
    shape: Shape
    ram: int
    state: Path
    layer: disks.Content | None = None
    image: Path | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """The disk of a volume to attach, in the order of the guest's devices."""

    file: Path
    read_only: bool


@dataclass(frozen=True, slots=True)
class Order:
    """One VM to start. `directory` gets its sockets; None for `image` and `writable` are placeholders.

    `writable_bytes`: apparent size of the writable layer that is made, if there is none.
    `bridge` is None for a VM without a network; on one, `address` is the only one that its guest can send from.
    `shares`: directories of the host will be mounted for it.
    """

    name: str
    directory: Path
    shape: Shape
    uid: int
    groups: tuple[Path, ...]
    tap: str
    bridge: str | None
    console: Path
    log: Path | None = None
    image: Path | None = None
    writable: Path | None = None
    writable_bytes: int = 0
    volumes: tuple[Volume, ...] = ()
    shares: bool = False
    address: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A VM whose agent has answered. Phases are in seconds: `vm` (QEMU is up), `agent` (it answered).

    `layer_mounted`: the guest has its writable layer mounted since before the start.
    """

    process: process.Process
    agent: Agent
    phases: dict[str, float]
    layer_mounted: bool = False


async def start(
    host: Host,
    order: Order,
    mode: Mode,
    *,
    template: Template | None = None,
    ram: int = -1,
    timeout_s: float | None = None,
) -> Started:
    """Start QEMU and wait for the agent. `ram` is the memory of a template that is being made; it is emptied first.

    The order's writable layer is made if there is none (phase `image`). What is booted is booted again if its kernel
    measured its timer wrongly, a few times.

    Raises:
        GuestFailed: QEMU ended (its last line is in the message), the agent did not answer in time, or the timer was
            wrong each time; QEMU is gone then.
        HostUnable: a program, tap or bridge is missing, or a user namespace for a VM that shares.
        DiskFull: there is no room for the layer.
    """
    began = time.monotonic()
    order.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounted = await _make_layer(order, template)
    layered = time.monotonic()
    await holding.gone(order.tap)  # a VM before
    for left in reversed(range(_BOOTS[mode])):
        if ram >= 0:
            os.truncate(ram, 0)
            os.truncate(ram, order.shape.ram_bytes)
        try:
            running, agent, vm_up = await _bring_up(host, order, mode, template, ram, timeout_s, mounted=mounted)
            break
        except TimerWrong as err:
            log.warning("VM %s: timer %s, boots left: %d", order.name, err.found, left)
            if not left:
                raise
    phases = {"image": layered - began, "vm": vm_up - layered, "agent": time.monotonic() - vm_up}
    return Started(running, agent, phases, mounted)


async def _bring_up(
    host: Host,
    order: Order,
    mode: Mode,
    template: Template | None,
    ram: int,
    timeout_s: float | None,
    *,
    mounted: bool,
) -> tuple[process.Process, Agent, float]:
    """QEMU, its agent, and when QEMU was up; `mounted`: the writable layer is as the template's guest has it."""
    # A clone whose guest has a file system mounted never meets another one behind that drive.
    later = order.writable if template and template.layer and not mounted else None
    with contextlib.ExitStack() as stack:
        files = _open_files(host, order, mode, template, stack, ram, None if later else order.writable)
        if order.bridge:
            await links.attach_tap(order.tap, order.bridge, order.address)
        command_line = machine.kernel_command_line(host.kernel, host.tsc_khz, order.shape.accel)
        arguments = machine.arguments(order.name, order.shape, files, mode, host.kernel, command_line)
        said = order.directory / QEMU_LOG
        said.write_bytes(b"")
        namespace = -1
        if order.shares:
            namespace = userns.make(order.uid)
            stack.callback(os.close, namespace)
        confinement = process.Confinement(
            order.uid, order.groups, kvm=order.shape.accel == "kvm", user_namespace=namespace
        )
        shared = sharing.prepare(order.directory / SHARED)
        running = process.start(host.qemu, arguments, files.inherited(), confinement, said, shared)
        holding.hold(running.pid, order.tap, files.tap)
        deadline_s = timeout_s or (CLONE_TIMEOUT_S if mode == "clone" else COLD_TIMEOUT_S)
        agent = Agent(order.directory / "agent.sock")
        try:
            if mode == "clone":
                await _unless_ended(running, said, _load_state(order.directory, files.vm_state), deadline_s)
            vm_up = time.monotonic()
            await _unless_ended(running, said, agent.connect(deadline_s), deadline_s)
            if mode in _TIMER_TOLERANCE:
                await _unless_ended(running, said, timer.check(agent, _TIMER_TOLERANCE[mode]), deadline_s)
            if template and template.layer and not mounted:
                await _unless_ended(running, said, _change_layer(order.directory, agent, later), deadline_s)
        except BaseException:
            agent.close()
            await asyncio.shield(running.kill())
            await asyncio.shield(holding.gone(order.tap))
            raise
    return running, agent, vm_up


async def _make_layer(order: Order, template: Template | None) -> bool:
    """Make the writable layer, if there is none. True: it is as the template's guest has it mounted, which may go on.

    Only a file that is made here can be that: nobody has written to it.
    """
    if order.writable is None or order.writable.exists():
        return False
    if template and template.layer and template.layer.size_bytes == order.writable_bytes:
        await disks.write_content(order.writable, template.layer, f"the writable layer {order.writable}")
        return True
    await disks.make_writable(order.writable, order.writable_bytes)
    return False


async def mount_ahead(agent: Agent, layer_options: dict[str, str], root: Root | None) -> None:
    """Let the guest mount its writable layer, and with a root its image over which it lies, and begin its program.

    Raises:
        GuestFailed: it cannot, or does not answer.
    """
    ahead: dict[str, object] = {"writable": WRITABLE | layer_options}
    if root:
        ahead |= {"image": IMAGE, "program": root.program, "path": root.path}
    await agent.call("hyper-layer", _AHEAD_TIMEOUT_S, **ahead)


async def _change_layer(directory: Path, agent: Agent, file: Path | None) -> None:
    """Let the guest of a clone unmount the layer of its template, behind which is nothing; then put the file there."""
    await agent.call("hyper-layer", writable=None)
    if file:
        async with monitor.opened(directory) as qmp:
            await hotplug.Plug().plug(qmp, (hotplug.Disk("writable", file, read_only=False),))


def _open_files(
    host: Host,
    order: Order,
    mode: Mode,
    template: Template | None,
    stack: contextlib.ExitStack,
    ram: int,
    writable: Path | None,
) -> machine.Files:
    """Open all that QEMU gets; the stack closes our own copies once QEMU has its own."""

    def opened(path: Path | None, flags: int) -> int:
        if path is None:
            return -1
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
        return descriptor

    def listening(name: str) -> int:
        return stack.enter_context(process.listen(order.directory, name)).fileno()

    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    tap = links.open_tap(order.tap)
    stack.callback(os.close, tap)
    boots = mode != "clone"
    return machine.Files(
        qmp=listening("qmp.sock"),
        qmp_stats=listening("qmp-stats.sock"),
        agent=listening("agent.sock"),
        agent_stats=listening("agent-stats.sock"),
        streams=listening("streams.sock"),
        # A guest's port is only open while somebody takes what it writes; in a template that is /dev/null.
        log=opened(order.log or Path(os.devnull), appended),
        console=opened(order.console, appended),
        tap=tap,
        image=opened(order.image, os.O_RDONLY),
        writable=opened(writable, os.O_RDWR),
        ram=template.ram if template else ram,
        kernel=opened(host.kernel.file, os.O_RDONLY) if boots else -1,
        initrd=opened(host.kernel.initrd, os.O_RDONLY) if boots else -1,
        vm_state=opened(template.state, os.O_RDONLY) if template else -1,
        volumes=tuple(
            machine.VolumeFile(opened(volume.file, os.O_RDONLY if volume.read_only else os.O_RDWR), volume.read_only)
            for volume in order.volumes
        ),
    )


async def _load_state(directory: Path, descriptor: int) -> None:
    async with monitor.opened(directory) as qmp:
        await qmp.run(IGNORE_SHARED, Command("migrate-incoming", {"uri": f"fd:{descriptor}"}))


# Of the memory nothing is copied. It must be set before a state is read or written.
IGNORE_SHARED = Command(
    "migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
)


async def _unless_ended(running: process.Process, log: Path, work: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    """Do the work, but give up as soon as QEMU ends or the time is over."""
    task = asyncio.ensure_future(work)
    end = asyncio.ensure_future(running.ended())
    try:
        await asyncio.wait({task, end}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        elif end.done():
            raise GuestFailed(f"QEMU ended during the start of the VM: {process.last_line(log)}")
        else:
            raise GuestFailed(f"the VM did not come up within {timeout_s:g} s")
    finally:
        for one in (task, end):
            one.cancel()
        await asyncio.gather(task, end, return_exceptions=True)
