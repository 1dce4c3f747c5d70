"""Leave nothing behind: containers, their VMs, the bridge, the rules, the control groups."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx

from runtime import record
from scripts.stack.service import POLL_S, start_ticks
from scripts.stack.settings import Settings, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator

API_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0


def api(settings: Settings) -> httpx.Client:
    """A client of hyperd's API."""
    transport = httpx.HTTPTransport(uds=str(settings.hyperd_socket))
    return httpx.Client(transport=transport, base_url="http://hyperd/v1", timeout=API_TIMEOUT_S, trust_env=False)


def clear_containers(settings: Settings, names: tuple[str, ...]) -> list[str]:
    """Remove the containers `names`, stop all others (they keep their writable layer). Returns what was done.

    Raises:
        StackError: hyperd refused, or did not answer.
    """
    done = []
    try:
        with api(settings) as client:
            for container in client.get("/containers", params={"all": "true"}).raise_for_status().json():
                name, ref = container["name"], container["id"]
                if name in names:
                    client.delete(f"/containers/{ref}", params={"force": "true"}).raise_for_status()
                    done.append(f"removed container {name}")
                elif container["state"] in {"starting", "running", "stopping"}:
                    client.post(f"/containers/{ref}/stop", json={}).raise_for_status()
                    done.append(f"stopped container {name}")
    except httpx.HTTPError as err:
        raise StackError(f"hyperd did not end the containers: {err}") from err
    return done


def kill_orphans(settings: Settings) -> list[str]:
    """End VMs that the state directory still names: hyperd was not there to do it."""
    done = []
    for name, vm in _live_vms(settings):
        os.kill(vm.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while start_ticks(vm.pid) == vm.pid_start_ticks:
            if time.monotonic() > deadline:
                raise StackError(f"the VM of {name} (process {vm.pid}) does not end")
            time.sleep(POLL_S)
        done.append(f"killed the VM of {name}")
    return done


def clear_host(program: str) -> None:
    """Have hyperd remove what containers share: bridge, rules, control groups.

    Raises:
        StackError: it refused.
    """
    done = subprocess.run([program, "--cleanup"], capture_output=True, text=True, check=False, timeout=API_TIMEOUT_S)
    if done.returncode != 0:
        raise StackError(f"hyperd --cleanup: {done.stderr.strip()}")


def _live_vms(settings: Settings) -> Iterator[tuple[str, Any]]:
    for directory in sorted(settings.config.state_dir.glob("containers/*")):
        try:
            entry = record.read(directory)
        except (OSError, record.RecordError):
            continue  # removed in between, or not ours to judge
        if entry.vm is not None and start_ticks(entry.vm.pid) == entry.vm.pid_start_ticks:
            yield entry.name, entry.vm
