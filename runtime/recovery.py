"""Coming back: adopting the VMs that outlived the daemon, and finishing or undoing what it was in the middle of.

The journal says what was begun. The rules, by kind:

- create: undone (nobody was told of the container)
- a change of image: before its switch undone, after it finished (`runtime.changes.rollouts`)
- quarantine: finished; its lifting is brought to what the record says
- start, restart, redeploy: finished (the VM, if one came up half-way, is ended and the start is done anew)
- stop, kill, remove: finished
- pause, unpause, update: the VM is brought to what the record says, which is before or after
- none: a VM that runs is adopted; one that ended meanwhile is handled as if its end had just been seen

A container whose restart policy was about to start it is started. If the host has booted since, policies say what else.

All containers are settled side by side, each under its lock. What takes longer than a moment (a QEMU that does not
answer, one that the kernel does not let go) is left to go on while the API is served, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import quarantine, restarts
from runtime.cgroups import directories
from runtime.errors import GuestFailed, RuntimeFault
from runtime.events import of_container
from runtime.supervisor import SIGNAL_TIMEOUT_S
from runtime.vm.agent import Agent
from runtime.vm.process import Process

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from typing import Any

    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.record import Cgroups
    from runtime.store import Operation

log = logging.getLogger(__name__)

_BOOT_FILE = "boot_id"
_MOST_AT_ONCE = 16
_MOMENT_S = 3.0  # most of what is to be settled takes a few milliseconds

# Names that only we give. In the control group: of a container or a clone of the pool, of a VM for a container's files,
# of a template in the making, of the probe of KVM.
_GROUP = re.compile(r"(?:files-)?[0-9a-f]{64}|template-[0-9a-f]{24}|probe")
_ID = re.compile(r"[0-9a-f]{64}")
_OF_POOL = re.compile(r"\.?[0-9a-f]{64}\..+|\.?rehearsal.*")


async def recover(engine: Engine) -> None:
    """Bring the engine to the state of the world; called once, before the API is served.

    What is to be started again is started in the background: its journal entry stays until it has been.
    """
    # Of several the newest says what to do: it was begun to finish the one before, by a daemon that was killed, too.
    operations: dict[str, list[Operation]] = {}
    for operation in engine.store.interrupted():
        operations.setdefault(operation.container_id, []).append(operation)
    booted = _host_has_booted(engine)
    for row in engine.store.rows():
        engine.lives.add(engine.container(row.slot, row.spec, row.record))
    await _in_a_moment(engine, await _sweep(engine))
    doomed = await engine.rollouts.reopen()
    interrupted: set[tuple[str, str]] = set()
    settling = []
    for container in engine.lives.all():
        begun = operations.get(container.id, [])
        kind = begun[-1].kind if begun else None
        interrupted.update((one.kind, container.record.name) for one in begun)
        kind = "remove" if container.id in doomed else kind
        if _goes_on(container, kind):  # first of all: it has its ports before anything is started
            try:
                await _adopt(engine, container)
            except (RuntimeFault, OSError) as err:
                log.error("container %s goes on, and nobody watches it: %s", container.record.name, err)  # noqa: TRY400 -- no traceback for what a host can do
        settling.append(_settle(engine, container, kind, begun, booted=booted))
    await _in_a_moment(engine, settling)
    engine.in_background(_thaw(engine))
    engine.in_background(_collect(engine))
    if booted:
        (engine.config.state_dir / _BOOT_FILE).write_text(_boot_id())
    await engine.supervisor.publish()
    engine.requests.recover(interrupted)
    engine.rollouts.resume()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


def _host_has_booted(engine: Engine) -> bool:
    """Whether this is the first daemon since the host booted."""
    path = engine.config.state_dir / _BOOT_FILE
    return not path.exists() or path.read_text() != _boot_id()


async def _in_a_moment(engine: Engine, works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it side by side, and wait for it for a moment; what takes longer goes on in the background."""
    tasks = [engine.in_background(work) for work in works]
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=_MOMENT_S)
    for task in done:
        task.result()
    if late:
        log.warning(
            "%d containers or leftovers take longer to be settled; the others need not wait for them", len(late)
        )


def _goes_on(container: Container, kind: str | None) -> bool:
    """Whether its VM is there and stays."""
    again = {"create", "remove", "start", "restart", "redeploy"}
    return kind not in again and container.state in {"running", "paused"} and _process_of(container) is not None


async def _settle(
    engine: Engine, container: Container, kind: str | None, begun: list[Operation], *, booted: bool
) -> None:
    async with container.lock:
        try:
            if kind is not None:
                log.info("container %s: finishing or undoing the interrupted %s", container.record.name, kind)
            if container.process is None:
                await _finish(engine, container, kind, booted=booted)
            elif kind is not None:
                await _accord(engine, container)
        except (RuntimeFault, OSError) as err:
            log.error("container %s could not be recovered after %s: %s", container.record.name, kind, err)  # noqa: TRY400 -- no traceback for what a host can do
        done = kind == "stop" and not container.live
        for operation in begun:
            told = [of_container(container.record, "stop")] if done and operation is begun[-1] else []
            engine.store.end(operation, *told)


async def _finish(engine: Engine, container: Container, kind: str | None, *, booted: bool) -> None:
    """What is to be done of a container whose VM is gone, or is not to stay."""
    for half_made in container.data_directory.glob(".*"):
        await asyncio.to_thread(_remove, half_made)
    if kind in {"create", "remove"} or container.state == "removing":
        await _end_vm(engine, container)
        await _erase(engine, container)
        return
    lifecycle = container.record.lifecycle
    at_boot = booted and restarts.at_boot(container.spec.restart, lifecycle)
    if kind in {"start", "restart", "redeploy"}:
        by_policy = kind == "start" and lifecycle.retries > 0
        await _end_vm(engine, container)
        if kind == "redeploy":
            (container.data_directory / "writable.ext4").unlink(missing_ok=True)
        if container.record.lifecycle.desired == "running":
            engine.start_later(container, retry=by_policy or at_boot)
            return  # else it had come up, and has ended by itself
    if container.live:
        await _end_vm(engine, container, with_host=booted)
    if container.spec.auto_remove and container.state == "exited" and not engine.rollouts.holds(container.id):
        if container.spec.removes_itself:
            await _erase(engine, container)
        else:
            engine.in_background(engine.remove_when_left(container))
    elif container.waits_to_retry:
        engine.retry_later(container)
    elif container.record.quarantine is not None:
        return
    elif at_boot and container.state == "exited":
        engine.start_later(container, retry=True)


async def _adopt(engine: Engine, container: Container) -> None:
    """Take over a VM that goes on; nothing is asked of it."""
    container.process = process = _process_of(container)
    if process is None:
        return
    container.agent = Agent(container.directory / "agent.sock")
    if container.record.network:
        kept = container.record.quarantine.ports if container.record.quarantine else ()
        try:
            engine.ports.reserve(container.id, container.record.network.ports or kept)
        except RuntimeFault as err:
            log.warning("container %s goes on, but its port was taken meanwhile: %s", container.record.name, err)
    engine.supervisor.attend(container, await engine.images.resolve(container.record.image_digest))
    log.info("container %s: adopted its VM, pid %d", container.record.name, process.pid)


async def _collect(engine: Engine) -> None:
    """Remove images that were on their way out, or had no name yet."""
    try:
        for digest in await engine.images.collect(engine.images_in_use):
            log.info("the image %s, which nothing names or needs, is removed", digest)
    except (RuntimeFault, OSError) as err:
        log.warning("images that nothing needs could not be removed: %s", err)


async def _thaw(engine: Engine) -> None:
    """Let disks go on that were held still for a snapshot or a commit; they would by themselves, after minutes."""
    asking = asyncio.Semaphore(_MOST_AT_ONCE)

    async def thaw(agent: Agent) -> None:
        async with asking:
            with contextlib.suppress(GuestFailed):  # it holds none still, mostly
                await agent.call("hyper-thaw", SIGNAL_TIMEOUT_S)

    await asyncio.gather(*(thaw(one.agent) for one in engine.lives.all() if one.agent and one.state == "running"))


async def _accord(engine: Engine, container: Container) -> None:
    """Bring a VM that goes on to what the record says."""
    if container.state == "paused":
        await engine.supervisor.pause(container)
    elif container.record.quarantine is not None:
        await quarantine.hold_still(engine, container)
    else:
        await engine.supervisor.resume(container)
    engine.limit(container)


async def _erase(engine: Engine, container: Container) -> None:
    with engine.operation(container, "remove"):
        await engine.erase(container)


async def _end_vm(engine: Engine, container: Container, *, with_host: bool = False) -> None:
    """End whatever is left of the container's VM and bring its record to `exited`."""
    process = _process_of(container)
    if process is not None:
        await process.kill()
    container.count_host_kills(engine.host_cgroups.oom_kills(container.record.cgroups))
    started_now = engine.host_cgroups.existing().get(container.id)
    for groups in (container.record.cgroups, started_now):
        if groups is not None and directories(groups):
            await _empty(engine, groups)
    if container.live:
        await engine.supervisor.after_end(container, with_host=with_host)


def _process_of(container: Container) -> Process | None:
    vm = container.record.vm
    if vm is None:
        return None
    process = Process(vm.pid, vm.pid_start_ticks)
    return process if process.alive() else None


async def _sweep(engine: Engine) -> list[Coroutine[Any, Any, None]]:
    """Remove what an earlier daemon left and no container owns; returns how the VMs of it are ended.

    Only what is below our own control group and our own directories is looked at, and of that only what has a name
    such as we give: what somebody else has put there stays.
    """
    known = {container.id for container in engine.lives.all()}
    # A VM from the pool keeps the groups that it waited in.
    owned = {path.name for one in engine.lives.all() if one.live for path in directories(one.record.cgroups)}
    ending = [
        _empty(engine, groups)
        for name, groups in engine.host_cgroups.existing().items()
        if name not in known | owned and _GROUP.fullmatch(name)
    ]
    state, data = engine.config.state_dir, engine.config.data_dir
    for parent, ours in (
        (state / "containers", _ID),
        (data / "containers", _ID),
        (state / "pool", _ID),
        (data / "pool", _OF_POOL),
    ):
        for path in parent.iterdir() if parent.is_dir() else ():
            if path.name not in known and ours.fullmatch(path.name):
                log.info("removing %s, which belongs to no container", path)
                await asyncio.to_thread(_remove, path)
    return ending


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


async def _empty(engine: Engine, groups: Cgroups) -> None:
    for pid in engine.host_cgroups.processes(groups):
        process = Process.of(pid)
        if process is not None and pid != os.getpid():
            log.info("ending process %d, left over in %s", pid, groups.v2 or next(iter(groups.v1.values())))
            await process.kill()
    await engine.host_cgroups.remove(groups)
