"""How much faster a VM boots with the kernel of `make kernel` than with the distribution's, and how fast it clones."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from runtime import cgroups
from runtime.cgroups import HostCgroups, detect
from runtime.config import Config
from runtime.vm import kernel, launch, machine, template, tsc
from tests import kernels

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

COLD_RUNS = 7
CLONE_RUNS = 20
RATIO_TO_REACH = 0.4
SHAPE = machine.Shape(192 * 1024**2, 1, "tcg")

Runs = dict[str, list[float]]


async def _with_kernel(
    path: Path, directory: Path, groups: HostCgroups, measure: Callable[[_Bench], Awaitable[None]]
) -> None:
    """Call `measure` with what boots this kernel; nothing is left after it."""
    directory.mkdir(exist_ok=True)
    found = kernel.find(Config(data_dir=directory, kernel=path))
    inside = groups.create("bench")
    try:
        host = launch.Host("/usr/bin/qemu-system-x86_64", "bench", found, tsc.measure_khz())
        console = directory / "console.log"
        order = launch.Order(
            "bench", directory / "vm", SHAPE, 905_000, cgroups.directories(inside), "hypkernels", None, console
        )
        await measure(_Bench(kernels.name(path), host, order))
    finally:
        await groups.remove(inside)


class _Bench:
    """Starts VMs with one kernel."""

    def __init__(self, name: str, host: launch.Host, order: launch.Order) -> None:
        self.name = name
        self.host = host
        self.order = order

    async def once(self, mode: machine.Mode, source: launch.Template | None = None) -> float:
        """Seconds from the start of QEMU to the agent's first answer."""
        started = await launch.start(self.host, self.order, mode, template=source)
        started.agent.close()
        await started.process.kill()
        return sum(started.phases.values())


@pytest.mark.timeout(300)
async def test_our_kernel_boots_in_a_fraction_of_the_time(tmp_path: Path) -> None:
    groups = HostCgroups(detect(), "hyper-bench")
    paths = kernels.present()
    cold: Runs = {kernels.name(path): [] for path in paths}
    clone: Runs = {name: [] for name in cold}

    async def boots(bench: _Bench) -> None:
        cold[bench.name].append(await bench.once("cold"))

    async def clones(bench: _Bench) -> None:
        templates = template.Templates(tmp_path / bench.name / "templates", bench.host, 905_001, groups)
        try:
            ready = await templates.settled(SHAPE)
            await bench.once("clone", ready)  # the first one reads the state file from disk
            clone[bench.name] += [await bench.once("clone", ready) for _ in range(CLONE_RUNS)]
        finally:
            await templates.close()

    try:
        for _ in range(COLD_RUNS):  # in turns: what else the machine does falls on both
            for path in paths:
                await _with_kernel(path, tmp_path / kernels.name(path), groups, boots)
        for path in paths:
            await _with_kernel(path, tmp_path / kernels.name(path), groups, clones)
    finally:
        groups.remove_parent()
    print("\nTCG, 192 MiB, 1 CPU, start of QEMU to the agent's first answer, seconds")
    for path in paths:
        print(f"{kernels.name(path):>13}  {path.parent.name}, vmlinuz of {path.stat().st_size / 1e6:.1f} MB")
    for what, runs in (("cold", cold), ("clone", clone)):
        for name, seconds in runs.items():
            all_of_them = " ".join(f"{one:.3f}" for one in seconds)
            print(f"{name:>13}  {what:>5}  median {statistics.median(seconds):.3f}  of {len(seconds)}: {all_of_them}")
    if len(paths) < 2:
        print("no ratio: one kernel only; 'make kernel' builds ours")
        return
    ratio = statistics.median(cold["ours"]) / statistics.median(cold["distribution"])
    print(f"        ratio  {ratio:.2f} (cold, ours / distribution); to reach: {RATIO_TO_REACH}")
    assert ratio < 1, "it is built to be faster"
