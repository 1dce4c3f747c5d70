"""`hyperd`: takes its directories and opens its socket, then imports what serves it.

The order is that of a restart: who calls while the daemon comes back waits for it, and is not turned away.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import grp
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from runtime.errors import HostUnable, InvalidInput, RuntimeFault
from runtime.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.config import Config

SOCKET = "hyperd.sock"
_GROUP = "hyper"


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
    # Next to nothing becomes garbage until the API is served; looking for it takes an eighth of the time until then.
    gc.disable()
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    _spare_pydantic()
    try:
        config = _configuration()
        if options.cleanup:
            asyncio.run(_cleanup(config))
        else:
            _run(config)
    except RuntimeFault as err:
        print(f"hyperd: {err.message}", file=sys.stderr)  # noqa: T201 -- the one line that its user looks for
        sys.exit(1)
    except KeyboardInterrupt:
        pass


def _spare_pydantic() -> None:
    """Have it and fastapi leave out what nobody here needs; see also `runtime.serving`."""
    # It reads what every installed package says of itself, in search of plugins.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    # fastapi imports this to see that no parameter is a model of pydantic 1; by None Python knows that it is not there.
    sys.modules["pydantic.v1"] = None  # type: ignore[assignment]  # as the import system's reference has it


def _configuration() -> Config:
    from pydantic import ValidationError

    from runtime.config import Config

    try:
        return Config()
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        sys.exit(f"hyperd: configuration: {where}: {first['msg']} (HYPER_{where.upper()} or /etc/hyper/hyper.toml)")


def _run(config: Config) -> None:
    """Serve until told to end.

    Raises:
        HostUnable: not root, another daemon has the state directory, or the host lacks something.
    """
    if os.geteuid() != 0:
        raise HostUnable("must run as root: it makes network devices and control groups. QEMU itself runs unprivileged")
    with contextlib.ExitStack() as stack:
        _make_directories(config)
        _lock(config.state_dir / "hyperd.lock", stack)
        _lock(config.data_dir / "hyperd.lock", stack)
        listener = _listen(config.state_dir / SOCKET, stack)
        from runtime import serving  # here: before the socket is open, who calls is turned away

        asyncio.run(serving.serve(config, listener))


async def _cleanup(config: Config) -> None:
    """Remove what the daemon shares among containers. Refused while one runs, or a daemon does."""
    from runtime.cgroups import HostCgroups, detect
    from runtime.network import links, nft

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


def _listen(path: Path, stack: contextlib.ExitStack) -> socket.socket:
    """The API's socket, for root and, where there is one, the group `hyper`; it goes with `stack`."""
    path.unlink(missing_ok=True)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    previous = os.umask(0o117)
    try:
        listener.bind(str(path))
    except OSError as err:
        raise InvalidInput(f"cannot listen on {path}: {err}. HYPER_STATE_DIR must be short", field="state_dir") from err
    finally:
        os.umask(previous)
    stack.callback(path.unlink, missing_ok=True)
    with contextlib.suppress(KeyError):
        os.chown(path, 0, grp.getgrnam(_GROUP).gr_gid)
    listener.listen(128)
    return listener


if __name__ == "__main__":
    main()
