"""The daemons do their work with no more than their systemd units leave them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host import Host, running_host, wait_for
from tests.units import UNITS, confined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images


class ConfinedHost(Host):
    """Both daemons under the settings of their units."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.hyperd.argv = confined(UNITS / "hyperd.service", self.hyperd.argv)
        self.hyper_exporter.argv = confined(UNITS / "hyper-exporter.service", self.hyper_exporter.argv)


@pytest.fixture(scope="module")
def confined_host(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, kind=ConfinedHost) as one:
        one.start_exporter()
        yield one


def capabilities(pid: int) -> dict[str, int]:
    """proc(5), status: the sets as numbers."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def test_a_container_lives_its_life(confined_host: Host, images: Images) -> None:
    assert capabilities(confined_host.hyperd.pid)["CapEff"] == capabilities(confined_host.hyperd.pid)["CapBnd"]
    assert 0 < capabilities(confined_host.hyperd.pid)["CapEff"] < capabilities(os.getpid())["CapEff"]
    confined_host.run("--name", "one", "-p", "80", "-v", "kept:/kept", images.busybox, "sleep", "1000")
    assert confined_host.hyper("exec", "one", "sh", "-c", "echo said >/kept/file; cat /kept/file").stdout == "said\n"
    confined_host.hyper("pause", "one")
    confined_host.hyper("unpause", "one")
    confined_host.hyper("stop", "-t", "1", "one")
    confined_host.hyper("start", "one")
    assert confined_host.hyper("exec", "one", "cat", "/kept/file").stdout == "said\n"


def test_a_vm_outlives_the_daemon(confined_host: Host, images: Images) -> None:
    confined_host.run("--name", "two", images.busybox, "sleep", "1000")
    pid = confined_host.inspect("two")["vm"]["pid"]
    assert confined_host.hyperd.stop() == 0
    confined_host.start()
    assert confined_host.inspect("two")["vm"]["pid"] == pid
    assert confined_host.hyper("exec", "two", "echo", "here").stdout == "here\n"


def test_the_exporter_sees_what_root_sees(confined_host: Host, images: Images) -> None:
    confined_host.run("--name", "three", "--label", "hyper.metrics.tier=deep", images.busybox, "sleep", "1000")

    def series(text: str) -> set[str]:
        return {
            line.split("{")[0] for line in text.splitlines() if 'name="three"' in line or 'container="three"' in line
        }

    def seen() -> set[str]:
        found = series(confined_host.metrics())
        return found if {"container_memory_working_set_bytes", "microvm_host_memory_bytes"} <= found else set()

    as_the_unit = wait_for(seen, "the exporter has seen three", 20)
    effective = capabilities(confined_host.hyper_exporter.pid)["CapEff"]
    assert effective == 1 << 1 | 1 << 19  # linux/capability.h: CAP_DAC_OVERRIDE, CAP_SYS_PTRACE
    assert confined_host.hyper_exporter.stop() == 0  # a socket of a VM serves one client
    env = {**os.environ, **confined_host.env}
    argv = [confined_host.hyper_exporter.argv[-1], "--once"]
    done = subprocess.run(argv, env=env, check=True, capture_output=True, text=True)
    assert "container_memory_working_set_bytes" in series(done.stdout)
    missing = series(done.stdout) - as_the_unit
    assert {name for name in missing if "latency" not in name} == set()  # that is there once there was traffic
