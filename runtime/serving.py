"""Putting the daemon's parts together, coming back from whatever happened, and serving the API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import pydantic

from runtime import command, consoles, keeping, recovery
from runtime.cgroups import HostCgroups, detect
from runtime.clocks import Clocks
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.errors import RuntimeFault
from runtime.images.store import ImageStore
from runtime.network import links
from runtime.network.ports import PortReservations
from runtime.reserve import Reserve
from runtime.standstill import Standstill
from runtime.startup import Starter
from runtime.store import Store
from runtime.version import VERSION
from runtime.vm import accel, kernel, process, qemu
from runtime.vm.launch import Host
from runtime.vm.pool import Pool
from runtime.vm.template import Templates
from runtime.volumes import Volumes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from runtime.config import Config

log = logging.getLogger("hyperd")

_MANAGER_TIMEOUT_S = 5.0
_POOL_UIDS = 1 << 16  # after those of containers, which are numbered by their addresses


async def serve(config: Config, listener: socket.socket) -> None:
    """Serve until told to end.

    Raises:
        HostUnable: the host lacks something.
    """
    process.without_huge_pages()
    with contextlib.ExitStack() as stack:
        await _serve(config, listener, stack)


async def _serve(config: Config, listener: socket.socket, stack: contextlib.ExitStack) -> None:
    # Beside the rest, which mostly waits for other programs and the disk.
    importing = asyncio.create_task(asyncio.to_thread(_import_server))
    program, qemu_reason = qemu.find(config)
    host_cgroups = HostCgroups(detect(), config.cgroup_parent)
    host_cgroups.claim(stack)
    guest_kernel = await asyncio.to_thread(kernel.find, config)
    qemu_version = await qemu.version(program, config.data_dir / "qemu-version.json", config.uid_base)
    await links.ensure_bridge(config.bridge, config.subnet)
    verdict = await accel.probe(config, program, qemu_version, guest_kernel, config.uid_base, host_cgroups)
    log.info("accelerator: %s (%s); kernel: %s", verdict.accel, verdict.reason, guest_kernel.version)
    host = Host(program, qemu_version, guest_kernel, verdict.tsc_khz)
    templates = Templates(
        config.data_dir / "templates",
        host,
        config.uid_base + 1,
        host_cgroups,
        config.default_disk_bytes,
        images=config.template_images,
    )
    templates.sweep()
    reserve = stack.enter_context(contextlib.closing(Reserve(config.data_dir / "reserve")))
    store = stack.enter_context(contextlib.closing(Store(config.data_dir / "hyper.db", reserve)))
    images = stack.enter_context(
        contextlib.closing(ImageStore(config.data_dir, insecure_registries=config.insecure_registries, reserve=reserve))
    )
    await images.sweep()
    counts = Counts(
        config.state_dir / "runtime.json",
        {"version": VERSION, "accel": verdict.accel},
        lambda: {
            "templates_ready": len(templates.ready()),
            "pool_waiting": pool.waiting,
            "pool_waiting_for_images": pool.waiting_for_images,
            "images": images.count(),
            "containers": len(engine.lives.all()),
            "reserve_missing_bytes": reserve.missing_bytes,
        },
    )
    pool = Pool(
        config.state_dir / "pool",
        config.data_dir / "pool",
        host,
        templates,
        host_cgroups,
        config.uid_base + _POOL_UIDS,
        kernel.find_init(config),
        config.default_disk_bytes,
        depth=config.pool_depth if config.template else 0,
        limit=config.pool_limit,
        memory_bytes=config.pool_memory_bytes,
        max_age_s=config.pool_max_age_s,
    )
    volumes = stack.enter_context(
        contextlib.closing(
            Volumes(
                config.data_dir, config.default_disk_bytes, lambda: engine.lives.all(), (config.state_dir,), reserve
            )
        )
    )
    volumes.sweep()
    starter = Starter(config, host, verdict.accel, templates, pool, host_cgroups, volumes, reserve)
    engine = Engine(config, store, images, starter, host_cgroups, PortReservations(), counts, volumes)
    await recovery.recover(engine)
    default_shape = starter.shape(config.default_memory_bytes, 1)
    if config.template:
        templates.prepare(default_shape)
    pool.open(default_shape)
    about = _about(config, host, qemu_reason, verdict, host_cgroups)
    standstill = Standstill(engine.lives, engine.supervisor, engine.events, reserve, config.data_dir)
    always: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "counting": counts.keep_written,
        "the rotation of logs": engine.rotation.run,
        "the bounds of consoles": functools.partial(consoles.keep_bounded, config.state_dir, config.data_dir),
        "judging what is known to be good": engine.known_good.run,
        "looking for VMs that stand still": standstill.run,
        "keeping clocks": Clocks(engine.lives).run,
    }
    kept = [asyncio.create_task(keeping.keep(what, run)) for what, run in always.items()]
    await importing
    import uvicorn

    from runtime import api

    server = uvicorn.Server(
        uvicorn.Config(
            api.build(engine, about),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
        )
    )
    # The server raises the signal that ended it once more, when it is done; that is then a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What is there by now stays: the collector need not look at it ever again.
    gc.freeze()
    gc.enable()
    log.info("serving on %s", listener.getsockname())
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in kept:
            task.cancel()
        engine.rotation.watch.close()
        await engine.rollouts.close()
        if await _host_goes_down():
            await engine.go_down()
        await pool.close()
        await templates.close()
        counts.write()


async def _host_goes_down() -> bool:
    """Whether the service manager brings the whole host down, and not this daemon alone (systemctl(1))."""
    try:
        asked = await command.run(["systemctl", "is-system-running"], timeout_s=_MANAGER_TIMEOUT_S)
    except (RuntimeFault, TimeoutError):
        return False
    return asked.stdout.strip() == b"stopping"


def _import_server() -> None:
    # fastapi declares models of all of OpenAPI: their validators wait for the first use. Ours do not: those of requests
    # would else be made by the first of each kind.
    defaults = pydantic.BaseModel.model_config
    defaults["defer_build"] = True
    try:
        importlib.import_module("fastapi")
    finally:
        del defaults["defer_build"]
    for name in ("uvicorn", "runtime.api"):
        importlib.import_module(name)


def _about(
    config: Config, host: Host, qemu_reason: str, verdict: accel.Verdict, host_cgroups: HostCgroups
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "api": "v1",
        "pid": os.getpid(),
        "node": config.node,
        "qemu": host.qemu,
        "qemu_reason": qemu_reason,
        "qemu_version": host.qemu_version,
        "kernel": host.kernel.version,
        "kernel_file": str(host.kernel.file),
        "kernel_reason": host.kernel.reason,
        "kernel_lacks": list(host.kernel.lacks),
        "accel": verdict.accel,
        "accel_reason": verdict.reason,
        "cgroups": host_cgroups.layout.kind,
        "bridge": config.bridge,
        "subnet": config.subnet,
        "state_dir": str(config.state_dir),
        "data_dir": str(config.data_dir),
        "templates": config.template,
    }
