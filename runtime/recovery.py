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
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import quarantine, restarts
from runtime.cgroups import directories
from runtime.errors import RuntimeFault
from runtime.events import of_container
from runtime.vm.agent import Agent
from runtime.vm.process import Process

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.record import Cgroups

log = logging.getLogger(__name__)

_BOOT_FILE = "boot_id"


async def recover(engine: Engine) -> None:
    """Bring the engine to the state of the world; called once, before the API is served.

    What is to be started again is started in the background: its journal entry stays until it has been.
    """
    operations = {operation.container_id: operation for operation in engine.store.interrupted()}
    booted = _host_has_booted(engine)
    for row in engine.store.rows():
        engine.lives.add(engine.container(row.slot, row.spec, row.record))
    await _sweep(engine)
    doomed = engine.rollouts.reopen()
    interrupted = set()
    for container in engine.lives.all():
        operation = operations.get(container.id)
        kind = operation.kind if operation else None
        interrupted.add((kind or "", container.record.name))
        kind = "remove" if container.id in doomed else kind
        try:
            await _settle(engine, container, kind, booted=booted)
        except (RuntimeFault, OSError) as err:
            log.error("container %s could not be recovered after %s: %s", container.record.name, kind, err)  # noqa: TRY400 -- no traceback for what a host can do
        if operation is not None:
            done = kind == "stop" and not container.live
            engine.store.end(operation, *([of_container(container.record, "stop")] if done else []))
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


async def _settle(engine: Engine, container: Container, kind: str | None, *, booted: bool) -> None:
    state = container.state
    if kind is not None:
        log.info("container %s: finishing or undoing the interrupted %s", container.record.name, kind)
    if kind in {"create", "remove"} or state == "removing":
        await _end_vm(engine, container)
        await _erase(engine, container)
        return
    if kind in {"start", "restart", "redeploy"}:
        await _end_vm(engine, container)
        if kind == "redeploy":
            (container.data_directory / "writable.ext4").unlink(missing_ok=True)
        if container.record.lifecycle.desired == "running":
            engine.start_later(container)
        return
    process = _process_of(container)
    if process is not None and state in {"running", "paused"}:
        await _adopt(engine, container, process, kind)
        return
    if container.live:
        await _end_vm(engine, container, with_host=booted)
    if container.spec.auto_remove and container.state == "exited" and not engine.rollouts.holds(container.id):
        await _erase(engine, container)
    elif container.waits_to_retry:
        engine.retry_later(container)
    elif container.record.quarantine is not None:
        return
    elif (
        booted and container.state == "exited" and restarts.at_boot(container.spec.restart, container.record.lifecycle)
    ):
        engine.start_later(container, retry=True)


async def _adopt(engine: Engine, container: Container, process: Process, kind: str | None) -> None:
    container.process = process
    container.agent = Agent(container.directory / "agent.sock")
    if container.record.network:
        kept = container.record.quarantine.ports if container.record.quarantine else ()
        try:
            engine.ports.reserve(container.id, container.record.network.ports or kept)
        except RuntimeFault as err:
            log.warning("container %s goes on, but its port was taken meanwhile: %s", container.record.name, err)
    engine.supervisor.attend(container, await engine.images.resolve(container.record.image_digest))
    log.info("container %s: adopted its VM, pid %d", container.record.name, process.pid)
    if kind is None:
        return
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


async def _sweep(engine: Engine) -> None:
    """End and remove what an earlier daemon left and no container owns.

    Only what is below our own control group and our own directories is looked at.
    """
    known = {container.id for container in engine.lives.all()}
    # A VM from the pool keeps the groups that it waited in.
    owned = {path.name for one in engine.lives.all() if one.live for path in directories(one.record.cgroups)}
    for name, groups in engine.host_cgroups.existing().items():
        if name not in known | owned:
            await _empty(engine, groups)
    for parent in (engine.config.state_dir / "pool", engine.config.data_dir / "pool"):
        await asyncio.to_thread(shutil.rmtree, parent, ignore_errors=True)
    for parent in (engine.config.state_dir / "containers", engine.config.data_dir / "containers"):
        for directory in parent.iterdir() if parent.is_dir() else ():
            if directory.name not in known:
                log.info("removing %s, which belongs to no container", directory)
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    templates = engine.config.data_dir / "templates"
    for directory in templates.glob(".*") if templates.is_dir() else ():
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _empty(engine: Engine, groups: Cgroups) -> None:
    for pid in engine.host_cgroups.processes(groups):
        process = Process.of(pid)
        if process is not None and pid != os.getpid():
            log.info("ending process %d, left over in %s", pid, groups.v2 or next(iter(groups.v1.values())))
            await process.kill()
    await engine.host_cgroups.remove(groups)
