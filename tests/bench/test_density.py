"""Many containers on one host: how fast a hundred are started, what each costs in memory, and idle in CPU time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from collector.sources.process import parse_smaps, parse_stat
from runtime import cgroups, command
from runtime.cgroups import HostCgroups, detect
from runtime.client import Client
from runtime.config import Config
from runtime.errors import GuestFailed
from runtime.network import links
from runtime.vm import kernel, launch, machine, monitor, process, qemu, tsc
from runtime.vm.template import Templates
from tests.bench.measuring import goal
from tests.host import KERNELS, Host, running_host

if TYPE_CHECKING:
    from tests.e2e.conftest import Images

CONTAINERS = int(os.environ.get("HYPER_BENCH_CONTAINERS", "100"))
AT_ONCE = 4  # commands under way: two for each processor of a small host
IDLE_CLONES = 20
IDLE_S = 20.0
FIRST_UID = 905_100
MIB = 1024**2
VMM_TO_REACH_MIB = {"the distribution's QEMU": 18, "QEMU of 'make qemu'": 12}


def running(host: Host) -> list[dict[str, Any]]:
    """All containers of the host, through the API: a hundred CLI starts would be the larger part of it."""
    client = Client(str(host.state_dir / "hyperd.sock"), timeout_s=60)
    return [client.container(one["id"]) for one in client.containers()]


def vmm_bytes(one: dict[str, Any]) -> int:
    """PSS of a QEMU without the mapping of its guest's RAM."""
    found = parse_smaps(Path(f"/proc/{one['vm']['pid']}/smaps").read_bytes(), one["vm"]["ram_bytes"])
    assert found.vmm is not None, "the mapping of the guest's RAM is there"
    return found.vmm


def pieces(pid: int, ram_bytes: int) -> dict[str, float]:
    """What the PSS beside guest RAM consists of, MiB by kind."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    found: dict[str, float] = {}
    heads = list(re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+) *(.*)$", text, re.MULTILINE))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : following.start() if following else len(text)]
        pss = int(next(re.finditer(r"^Pss: +(\d+)", body, re.MULTILINE))[1])
        start, end, mode, _, name = head.groups()
        if int(end, 16) - int(start, 16) >= ram_bytes // 2 and ("memfd" in name or "ram" in name):
            continue
        if name == "[heap]":
            kind = "heap"
        elif "x" in mode:
            kind = "translated code" if not name else "program text"
        elif name.startswith("/"):
            kind = "relocated data" if "w" in mode else "program data"
        else:
            kind = "anonymous"
        found[kind] = found.get(kind, 0) + pss / 1024
    return found


def cpu_s(containers: list[dict[str, Any]]) -> float:
    """CPU seconds that all QEMUs have used."""
    return sum(parse_stat(Path(f"/proc/{one['vm']['pid']}/stat").read_bytes()).cpu_s for one in containers)


@pytest.mark.timeout(900)
def test_a_hundred_containers(images: Images) -> None:
    with running_host(images.busybox, pool_depth=2) as host, ThreadPoolExecutor(AT_ONCE) as workers:

        def start(number: int) -> float:
            began = time.monotonic()
            host.hyper("run", "-d", "--name", f"many{number}", images.busybox, "sleep", "86400")
            return time.monotonic() - began

        began = time.monotonic()
        times = sorted(workers.map(start, range(CONTAINERS)))
        whole = time.monotonic() - began
        found = running(host)
        assert len(found) == CONTAINERS
        paths = [one["vm"]["start_path"] for one in found]
        silent = [
            one["name"] for one in found if one["vm"]["start_path"] != "pool" and not one["vm"]["start_path_reason"]
        ]
        assert not silent, "who did not come from the pool says why"
        assert "cold" not in paths
        echoes = workers.map(
            lambda one: host.hyper("exec", one["name"], "echo", one["name"]).stdout == f"{one['name']}\n", found
        )
        assert all(echoes), "all answer"
        print(f"\n{CONTAINERS} containers, {AT_ONCE} commands at a time, {found[0]['vm']['accel']}")
        print(f"  start: {CONTAINERS / whole:.1f}/s, p50 {statistics.median(times) * 1000:.0f} ms,", end=" ")
        print(f"p99 {times[int(len(times) * 0.99) - 1] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms")
        print(f"  paths: {', '.join(f'{path} {paths.count(path)}' for path in sorted(set(paths)))}")
        report_memory(found)
        before, since = cpu_s(found), time.monotonic()
        time.sleep(IDLE_S)  # idle is what is measured
        used = (cpu_s(found) - before) / (time.monotonic() - since)
        print(f"  idle CPU: {used * 100:.1f} % of one processor for all, {used * 100 / CONTAINERS:.3f} % each")
        client = Client(str(host.state_dir / "hyperd.sock"), timeout_s=120)
        list(workers.map(lambda one: client.remove(one["id"], force=True), found))


def report_memory(found: list[dict[str, Any]]) -> None:
    """Print what all of them weigh together, the template's pages once."""
    total = sum(
        int(re.findall(r"^Pss: +(\d+)", Path(f"/proc/{one['vm']['pid']}/smaps_rollup").read_text(), re.MULTILINE)[0])
        for one in found
    )
    print(f"  memory: {total / 1024:.0f} MiB PSS in all, {total / 1024 / len(found):.1f} MiB each with its guest's RAM")


@pytest.mark.timeout(600)
def test_memory_beside_guest_ram(images: Images, tmp_path: Path) -> None:
    for name, program in qemus().items():
        measure_memory(name, program, images.busybox, tmp_path / Path(program).parent.parent.name)


def qemus() -> dict[str, str]:
    """The programs to measure: the distribution's, and the one that was built, if it was."""
    theirs, ours = VMM_TO_REACH_MIB
    found = {theirs: command.find(qemu.PROGRAM)}
    built, _ = qemu.find(Config())
    if built in found.values():
        print("\nno figures of a QEMU of our own: 'make qemu' builds it")
        return found
    return {**found, ours: built}


def measure_memory(name: str, program: str, image: str, place: Path) -> None:
    """Print what clones weigh beside their guests' RAM with this QEMU: idle ones, and such as run a container."""
    process.without_huge_pages()  # as hyperd does
    idle, parts, starts_ms = asyncio.run(idle_clones(program, place))
    print(f"\nmemory beside guest RAM, PSS, {IDLE_CLONES} idle clones, tcg, {name}")
    goal("  median, MiB", statistics.median(idle), VMM_TO_REACH_MIB[name])
    print("  of that: " + ", ".join(f"{kind} {mib:.1f}" for kind, mib in sorted(parts.items(), key=lambda p: -p[1])))
    print(f"  from a template to its agent: median {statistics.median(starts_ms):.0f} ms")
    with running_host(image, pool_depth=0, qemu=program) as host:
        for number in range(IDLE_CLONES):
            host.run("--name", f"idle{number}", image, "sleep", "86400")
        found = running(host)
        assert {one["vm"]["start_path"] for one in found} == {"template"}
        each = [vmm_bytes(one) / MIB for one in found]
        print(f"  with a container that sleeps: median {statistics.median(each):.1f} MiB")
    for accel in ("tcg", "kvm"):
        print(f"  a VM that does not run yet, {accel}: {not_running(program, accel, place / accel)}")


async def idle_clones(program: str, place: Path) -> tuple[list[float], dict[str, float], list[float]]:
    """MiB beside guest RAM of clones whose agent has answered, the pieces of the first, and ms to that answer."""
    place.mkdir(parents=True)
    config = Config(data_dir=place)
    (place / "kernels").symlink_to(KERNELS)
    version = await qemu.version(program, place / "version.json", FIRST_UID)
    host = launch.Host(program, version, kernel.find(config), tsc.measure_khz())
    groups = HostCgroups(detect(), "hyper-bench")
    inside = groups.create("bench")
    shape = machine.Shape(192 * MIB, 1, "tcg")
    templates = Templates(place / "templates", host, FIRST_UID, groups)
    clones: list[launch.Started] = []
    try:
        ready = await templates.settled(shape)
        for number in range(IDLE_CLONES):
            order = launch.Order(
                f"bench{number}", place / f"vm{number}", shape, FIRST_UID + 1 + number, cgroups.directories(inside),
                links.tap_name(secrets.token_hex(8)), None, place / f"console{number}",
            )  # fmt: skip
            clones.append(await launch.start(host, order, "clone", template=ready))
        await asyncio.sleep(1)  # what they do of themselves, they have done
        pids = [clone.process.pid for clone in clones]
        found = [vmm_bytes({"vm": {"pid": pid, "ram_bytes": shape.ram_bytes}}) / MIB for pid in pids]
        parts = pieces(pids[0], shape.ram_bytes)
        assert sum(parts.values()) == pytest.approx(found[0], rel=0.1), "the pieces are the whole"
    finally:
        for clone in clones:
            clone.agent.close()
            await clone.process.kill()
        await templates.close()
        await groups.remove(inside)
        groups.remove_parent()
    return found, parts, [sum(clone.phases.values()) * 1000 for clone in clones]


def not_running(program: str, accel: str, directory: Path) -> str:
    """PSS beside guest RAM of a VM that was created and not started, with this accelerator."""
    directory.mkdir()
    (directory / "kernels").symlink_to(KERNELS)
    config = Config(data_dir=directory)
    found = kernel.find(config)
    shape = machine.Shape(256 * MIB, 1, "kvm" if accel == "kvm" else "tcg")
    host = launch.Host(program, "bench", found, tsc.measure_khz())
    order = launch.Order("bench", directory / "vm", shape, os.getuid(), (), "hypbench", None, directory / "console.log")
    return asyncio.run(_created(host, order))


async def _created(host: launch.Host, order: launch.Order) -> str:
    order.directory.mkdir()
    with contextlib.ExitStack() as stack:
        files = launch._open_files(host, order, "cold", None, stack, -1, None)
        arguments = machine.arguments(
            order.name,
            order.shape,
            files,
            "cold",
            host.kernel,
            machine.kernel_command_line(host.kernel, host.tsc_khz, order.shape.accel),
        )
        log = order.directory / launch.QEMU_LOG
        confinement = process.Confinement(order.uid, order.groups, kvm=order.shape.accel == "kvm")
        one = process.start(host.qemu, [*arguments, "-S"], files.inherited(), confinement, log, order.directory)
    try:
        try:
            async with asyncio.timeout(20):
                async with monitor.opened(order.directory) as qmp:
                    await qmp.execute("query-status")
        except (GuestFailed, TimeoutError):
            return f"not to be had here ({process.last_line(log)})"
        found = parse_smaps(Path(f"/proc/{one.pid}/smaps").read_bytes(), order.shape.ram_bytes)
        return f"{(found.vmm or 0) / MIB:.1f} MiB"
    finally:
        await one.kill()
