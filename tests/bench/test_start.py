"""How long a VM takes from the start of QEMU to its agent's first answer: cold, and as a clone of a template."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from runtime import cgroups
from runtime.cgroups import HostCgroups, detect
from runtime.config import Config
from runtime.vm import kernel, launch, machine, template, tsc
from tests import kernels
from tests.bench.measuring import reach

COLD_RUNS = 7
CLONE_RUNS = 20
LEAST_RATIO = 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", kernels.present(), ids=kernels.name)
async def test_a_clone_is_many_times_faster_than_a_cold_boot(path: Path, tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path, kernel=path)
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
        while Path("/sys/class/net", order.tap).exists():  # noqa: ASYNC110 -- nothing there could wake us
            await asyncio.sleep(0.01)  # the kernel takes it away with a lock held that the next start needs
        return sum(started.phases.values())

    try:
        ready = await templates.settled(shape)
        await once("clone", ready)  # the first one reads the state file from disk
        cold, clone = [], []
        for _ in range(COLD_RUNS):  # in turn: a machine that becomes slower does so for both
            cold.append(await once("cold"))
            clone += [await once("clone", ready) for _ in range(-(-CLONE_RUNS // COLD_RUNS))]
    finally:
        await templates.close()
        await groups.remove(inside)
        groups.remove_parent()
    ratio = statistics.median(cold) / statistics.median(clone)
    print(f"\nkernel {found.version}, TCG, 192 MiB, start of QEMU to the agent's first answer, seconds")
    for name, runs in (("cold", cold), ("clone", clone)):
        print(f"{name:>6}  median {statistics.median(runs):.3f}  of {len(runs)}: {' '.join(f'{t:.3f}' for t in runs)}")
    if kernels.name(path) == "ours":  # one that boots faster makes the ratio smaller
        print(f"ratio cold / clone: {ratio:.2f}")
    else:
        reach("ratio cold / clone", ratio, LEAST_RATIO)
