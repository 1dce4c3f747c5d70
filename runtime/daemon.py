"""`hyperd`: puts the parts together, comes back from whatever happened, and serves the API."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import grp
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import psutil
import uvicorn
from pydantic import ValidationError

from runtime import api, recovery
from runtime.cgroups import HostCgroups, detect
from runtime.config import Config
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.errors import HostUnable, InvalidInput, RuntimeFault
from runtime.images.store import ImageStore
from runtime.network import links, nft
from runtime.network.ports import PortReservations
from runtime.startup import Starter
from runtime.store import Store
from runtime.version import VERSION
from runtime.vm import accel, kernel, process, qemu
from runtime.vm.launch import Host
from runtime.vm.pool import Pool
from runtime.vm.template import Templates
from runtime.volumes import Volumes

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("hyperd")

SOCKET = "hyperd.sock"
_GROUP = "hyper"
_POOL_UIDS = 1 << 16  # after those of containers, which are numbered by their addresses
_EXIT_CONFIG = 2


def main() -> None:
    """Run the daemon until SIGTERM or SIGINT; containers go on without it."""
    parser = argparse.ArgumentParser(
        prog="hyperd",
        description="The per-host runtime of Hyperpulse: runs OCI images as QEMU micro-VMs.",
        epilog="Configured by HYPER_* in the environment over /etc/hyper/hyper.toml. Containers outlive the daemon: "
        "it may be stopped, killed and upgraded while they run.",
    )
    parser.add_argument("--version", action="version", version=f"hyperd {VERSION}")
    parser.add_argument("--cleanup", action="store_true", help="remove bridge, rules and control groups, and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages")
    options = parser.parse_args()
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        config = Config()
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        sys.exit(f"hyperd: configuration: {where}: {first['msg']} (HYPER_{where.upper()} or /etc/hyper/hyper.toml)")
    try:
        asyncio.run(_cleanup(config) if options.cleanup else serve(config))
    except RuntimeFault as err:
        print(f"hyperd: {err.message}", file=sys.stderr)  # noqa: T201 -- the one line that its user looks for
        sys.exit(1)
    except KeyboardInterrupt:
        pass


async def serve(config: Config) -> None:
    """Serve until told to end.

    Raises:
        HostUnable: not root, another daemon has the state directory, or the host lacks something.
    """
    if os.geteuid() != 0:
        raise HostUnable("must run as root: it makes network devices and control groups. QEMU itself runs unprivileged")
    process.without_huge_pages()
    with contextlib.ExitStack() as stack:
        _make_directories(config)
        _lock(config.state_dir / "hyperd.lock", stack)
        _lock(config.data_dir / "hyperd.lock", stack)
        await _run(config, stack)


async def _run(config: Config, stack: contextlib.ExitStack) -> None:
    program, qemu_reason = qemu.find(config)
    host_cgroups = HostCgroups(detect(), config.cgroup_parent)
    guest_kernel = await asyncio.to_thread(kernel.find, config)
    qemu_version = await qemu.version(program)
    await links.ensure_bridge(config.bridge, config.subnet)
    verdict = await accel.probe(config, program, qemu_version, guest_kernel, config.uid_base, host_cgroups)
    log.info("accelerator: %s (%s); kernel: %s", verdict.accel, verdict.reason, guest_kernel.version)
    host = Host(program, qemu_version, guest_kernel, verdict.tsc_khz)
    templates = Templates(config.data_dir / "templates", host, config.uid_base + 1, host_cgroups)
    store = stack.enter_context(contextlib.closing(Store(config.data_dir / "hyper.db")))
    images = stack.enter_context(
        contextlib.closing(ImageStore(config.data_dir, insecure_registries=config.insecure_registries))
    )
    await images.sweep()
    counts = Counts(
        config.state_dir / "runtime.json",
        {"version": VERSION, "accel": verdict.accel},
        lambda: {
            "templates_ready": len(templates.ready()),
            "pool_waiting": pool.waiting,
            "images": images.count(),
            "containers": len(engine.lives.all()),
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
            Volumes(config.data_dir, config.default_disk_bytes, lambda: engine.lives.all(), (config.state_dir,))
        )
    )
    volumes.sweep()
    starter = Starter(config, host, verdict.accel, templates, pool, host_cgroups, volumes)
    engine = Engine(config, store, images, starter, host_cgroups, PortReservations(), counts, volumes)
    await recovery.recover(engine)
    default_shape = starter.shape(config.default_memory_bytes, 1)
    if config.template:
        templates.prepare(default_shape)
    pool.open(default_shape)
    about = _about(config, host, qemu_reason, verdict, host_cgroups)
    writing = asyncio.create_task(counts.keep_written())
    rotating = asyncio.create_task(engine.rotation.run())
    judging = asyncio.create_task(engine.known_good.run())
    listener = _listen(config.state_dir / SOCKET)
    server = uvicorn.Server(
        uvicorn.Config(
            api.build(engine, about),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
    )
    # The server raises the signal that ended it once more, when it is done; that is then a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log.info("serving on %s", config.state_dir / SOCKET)
    try:
        await server.serve(sockets=[listener])
    finally:
        writing.cancel()
        rotating.cancel()
        judging.cancel()
        await engine.rollouts.close()
        await pool.close()
        await templates.close()
        counts.write()
        (config.state_dir / SOCKET).unlink(missing_ok=True)


async def _cleanup(config: Config) -> None:
    """Remove what the daemon shares among containers. Refused while one runs, or a daemon does."""
    with contextlib.ExitStack() as stack:
        _make_directories(config)
        _lock(config.state_dir / "hyperd.lock", stack)
        host_cgroups = HostCgroups(detect(), config.cgroup_parent)
        existing = host_cgroups.existing()
        if any(host_cgroups.processes(groups) for groups in existing.values()):
            raise HostUnable("containers are running: remove them first (hyper rm -f)")
        for groups in existing.values():
            await host_cgroups.remove(groups)
        host_cgroups.remove_parent()
        await nft.remove(config.bridge)
        await links.remove_bridge(config.bridge)


def _make_directories(config: Config) -> None:
    try:
        config.state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Disks, images, logs and the database are root's alone: QEMU gets what it needs as descriptors.
        config.data_dir.chmod(0o700)
        for parent in (config.state_dir, config.data_dir):
            (parent / "containers").mkdir(mode=0o711, exist_ok=True)
    except OSError as err:
        raise HostUnable(f"cannot make {err.filename}: {err.strerror}. Set HYPER_STATE_DIR and HYPER_DATA_DIR") from err


def _lock(path: Path, stack: contextlib.ExitStack) -> None:
    """Hold a lock for as long as the process lives: one daemon to a directory.

    Nobody else may open the file: a lock needs no more than that, and would keep the daemon from starting.
    """
    file = stack.enter_context(path.open("w"))
    path.chmod(0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        raise HostUnable(f"another hyperd uses {path.parent}: stop it, or set another directory") from err


def _listen(path: Path) -> socket.socket:
    """The API's socket: for root and, where there is one, the group `hyper`."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o117)
    try:
        listener.bind(str(path))
    except OSError as err:
        listener.close()
        raise InvalidInput(f"cannot listen on {path}: {err}. HYPER_STATE_DIR must be short", field="state_dir") from err
    finally:
        os.umask(previous)
    with contextlib.suppress(KeyError):
        os.chown(path, 0, grp.getgrnam(_GROUP).gr_gid)
    listener.listen(128)
    return listener


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
        "kernel_file": str(host.kernel.vmlinuz),
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
        "cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


if __name__ == "__main__":
    main()
