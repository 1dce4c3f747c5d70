"""Coming back: adopting the VMs that outlived the daemon, and finishing or undoing what it was in the middle of.

The journal says what was begun. The rules, by kind:

- create: undone (nobody was told of the container)
- start, restart, redeploy: finished (the VM, if one came up half-way, is ended and the start is done anew)
- stop, remove: finished
- none: a VM that runs is adopted; one that ended meanwhile is handled as if its end had just been seen
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from typing import TYPE_CHECKING

from runtime.errors import RuntimeFault
from runtime.vm.agent import Agent
from runtime.vm.process import Process

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.record import Cgroups

log = logging.getLogger(__name__)


async def recover(engine: Engine) -> None:
    """Bring the engine to the state of the world; called once, before the API is served.

    What is to be started again is started in the background: its journal entry stays until it has been.
    """
    operations = {operation.container_id: operation for operation in engine.store.interrupted()}
    for row in engine.store.rows():
        engine.lives.add(engine.container(row.slot, row.spec, row.record))
    await _sweep(engine)
    for container in engine.lives.all():
        operation = operations.get(container.id)
        kind = operation.kind if operation else None
        try:
            await _settle(engine, container, kind)
        except (RuntimeFault, OSError) as err:
            log.error("container %s could not be recovered after %s: %s", container.record.name, kind, err)  # noqa: TRY400 -- no traceback for what a host can do
        if operation is not None:
            engine.store.end(operation)
    await engine.supervisor.publish()


async def _settle(engine: Engine, container: Container, kind: str | None) -> None:
    state = container.state
    if kind is not None:
        log.info("container %s: finishing or undoing the interrupted %s", container.record.name, kind)
    if kind in {"create", "remove"} or state == "removing":
        await _end_vm(engine, container)
        await engine.erase(container)
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
        _adopt(engine, container, process)
        return
    if container.live:
        await _end_vm(engine, container)
    if container.spec.auto_remove and container.state == "exited":
        await engine.erase(container)


def _adopt(engine: Engine, container: Container, process: Process) -> None:
    container.process = process
    container.agent = Agent(container.directory / "agent.sock")
    if container.record.network:
        try:
            engine.ports.reserve(container.id, container.record.network.ports)
        except RuntimeFault as err:
            log.warning("container %s goes on, but its port was taken meanwhile: %s", container.record.name, err)
    engine.supervisor.attend(container)
    log.info("container %s: adopted its VM, pid %d", container.record.name, process.pid)


async def _end_vm(engine: Engine, container: Container) -> None:
    """End whatever is left of the container's VM and bring its record to `exited`."""
    process = _process_of(container)
    if process is not None:
        await process.kill()
    groups = engine.host_cgroups.existing().get(container.id)
    if groups is not None:
        await _empty(engine, groups)
    if container.live:
        await engine.supervisor.after_end(container)


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
    for name, groups in engine.host_cgroups.existing().items():
        if name not in known:
            await _empty(engine, groups)
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
