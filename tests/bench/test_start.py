"""How long a VM takes from the start of QEMU to its agent's first answer: cold, and as a clone of a template."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from runtime import cgroups
from runtime.cgroups import HostCgroups, detect
from runtime.config import Config
from runtime.vm import kernel, launch, machine, template, tsc
from tests.host import KERNELS

if TYPE_CHECKING:
    from pathlib import Path

COLD_RUNS = 5
CLONE_RUNS = 20
LEAST_RATIO = 8


@pytest.mark.timeout(300)
async def test_a_clone_is_many_times_faster_than_a_cold_boot(tmp_path: Path) -> None:
    (tmp_path / "kernels").symlink_to(KERNELS)
    config = Config(data_dir=tmp_path)
    found = kernel.find(config)
    host = launch.Host("/usr/bin/qemu-system-x86_64", "bench", found, tsc.measure_khz())
    groups = HostCgroups(detect(), "hyper-bench")
    inside = groups.create("bench")
    shape = machine.Shape(192 * 1024**2, 1, "tcg")
    directory = tmp_path / "vm"
    order = launch.Order(
        "bench", directory, shape, 905_000, cgroups.directories(inside), "hypbench", None, directory / "console.log"
    )
    templates = template.Templates(tmp_path / "templates", host, 905_001, groups)

    async def once(mode: machine.Mode, source: launch.Template | None = None) -> float:
        started = await launch.start(host, order, mode, template=source)
        started.agent.close()
        await started.process.kill()
        return sum(started.phases.values())

    try:
        cold = [await once("cold") for _ in range(COLD_RUNS)]
        ready = await templates.settled(shape)
        await once("clone", ready)  # the first one reads the state file from disk
        clone = [await once("clone", ready) for _ in range(CLONE_RUNS)]
    finally:
        await templates.close()
        await groups.remove(inside)
        groups.remove_parent()
    ratio = statistics.median(cold) / statistics.median(clone)
    print(f"\nkernel {found.version}, TCG, 192 MiB, start of QEMU to the agent's first answer, seconds")
    for name, runs in (("cold", cold), ("clone", clone)):
        print(f"{name:>6}  median {statistics.median(runs):.3f}  of {len(runs)}: {' '.join(f'{t:.3f}' for t in runs)}")
    print(f" ratio  {ratio:.1f} (cold / clone)")
    assert ratio >= LEAST_RATIO
