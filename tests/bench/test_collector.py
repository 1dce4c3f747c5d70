"""What collection costs: the real exporter over 10, 100 and 1000 fake micro-VMs, and with ten of them stopped.

What stopped ones cost is a few percent, and so is what each costs more among many; but the cost of the same work moves
by thirty from second to second, with whatever else the machine does. From one tenth of a second to the next it hardly
does: so two exporters take turns in the order A B B A, and figures beside one another are pairs. To see what stopped
ones cost, each has five hundred VMs, five of one's are stopped, and after half of the pairs the two change places.

The VMs are those of `tests/fakevm/fleet.py`: files, QMP and agent sockets, served by one other process, and held
against a real QEMU and the real agent in `tests/contract`. Costs are printed beside their goals; that the numbers
are right is asserted.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.measuring import change_percent, goal
from tests.bench.stepping import stepper
from tests.fakevm.fleet import WORK_USEC, container_id, cpu_ns, cpu_usec, fleet, memory_bytes
from tests.fakevm.process import exporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.stepping import Stepper
    from tests.fakevm.fleet import Fleet
    from tests.fakevm.process import Exporter

ROUNDS = int(os.environ.get("HYPER_BENCH_ROUNDS", "5"))
SCRAPES = 20
STOPPED = 10
PAIRS = int(os.environ.get("HYPER_BENCH_PAIRS", "80"))
FEW, FEW_STOPPED = 500, 5  # one of a hundred, as ten of a thousand
TURNS = int(os.environ.get("HYPER_BENCH_TURNS", "60"))
FLAT_DEADLINE_S = 5.0
DEADLINE_S = 0.5
SETTLING_ROUNDS = 6
PEAK_ROUNDS = 4  # times three
INTERVAL_S = {10: 0.5, 100: 1.0, 1000: 2.5}
GOAL_MS, TARGET_MS = 1.0, 0.5
SCRAPE_MS, SCRAPE_CPU_MS = 250.0, 100.0
RESIDENT_MB = 150.0
CHANGE_PERCENT = 5.0
MORE_PERCENT = 10.0
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
GZIP = {"Accept-Encoding": "gzip"}


@dataclass(frozen=True)
class Scrape:
    """Medians of some scrapes of all series."""

    wall_ms: float
    most_ms: float
    cpu_ms: float
    megabytes: float


@dataclass(frozen=True)
class Cost:
    """What the exporter costs over one number of VMs; `sample_ms` and `least_ms`: median and least of the rounds."""

    sample_ms: float
    least_ms: float
    text: Scrape
    openmetrics: Scrape
    gzip: Scrape
    during_ms: float
    resident_mb: float


async def scrapes(process: Exporter, headers: dict[str, str] | None = None) -> Scrape:
    """Scrapes as they come; one that meets a round waits for its turn in the one loop, and counts the round's CPU."""
    wall, cpu, size = [], [], 0
    for _ in range(SCRAPES):
        before, began = cpu_ns(process.process.pid), time.perf_counter()
        size = len((await process.get("/metrics", headers))[1])
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append((cpu_ns(process.process.pid) - before) / 1e6)
    return Scrape(statistics.median(wall), max(wall), statistics.median(cpu), size / 1e6)


async def during_rounds(process: Exporter, vms: Fleet) -> float:
    """Longest of some scrapes that begin while a round goes on, in milliseconds."""
    found = []
    for _ in range(3):
        await vms.next_round()
        began = time.perf_counter()
        await process.get("/metrics")
        found.append(1e3 * (time.perf_counter() - began))
    return max(found)


def resident_mb(pid: int) -> float:
    """The most that was resident since the start, or since it was set back."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")) * 1024 / 1e6


async def measure(process: Exporter, vms: Fleet) -> Cost:
    # From one read of the same VM to the next: a full sample, and its lines in the exposition.
    rounds = [1e3 * cpu_s / vms.count for cpu_s in await vms.rounds(process.process.pid, ROUNDS)]
    return Cost(
        statistics.median(rounds),
        min(rounds),
        await scrapes(process),
        await scrapes(process, OPENMETRICS),
        await scrapes(process, GZIP),
        await during_rounds(process, vms),
        await asyncio.to_thread(resident_mb, process.process.pid),
    )


def by_container(text: str, name: str, labels: str = "") -> dict[str, float]:
    """Values of one series of each container."""
    pattern = rf'^{name}{{id="([0-9a-f]{{64}})",[^}}]*{labels}}} (\S+)$'
    return {found[1]: float(found[2]) for found in re.finditer(pattern, text, re.MULTILINE)}


def check(text: str, count: int, stopped: Sequence[str] = ()) -> dict[str, float]:
    """All are there with values of their own, and only those that stopped are down.

    Returns CPU seconds by container.
    """
    ids = [container_id(number) for number in range(count)]
    for source in ("host", "vmm", "guest"):
        up = by_container(text, "microvm_source_up", f'source="{source}"')
        assert up == {one: float(source == "host" or one not in stopped) for one in ids}
    memory = by_container(text, "container_memory_usage_bytes")
    assert memory == {one: memory_bytes(number) for number, one in enumerate(ids) if one not in stopped}
    used = by_container(text, "container_cpu_usage_seconds_total", 'cpu="total"')
    assert used.keys() == memory.keys()
    for seconds in used.values():
        worked_usec = round(seconds * 1e6) - cpu_usec(0)
        assert worked_usec > 0
        assert worked_usec % WORK_USEC == 0
    assert by_container(text, "microvm_host_memory_bytes", 'part="vmm"').keys() == set(ids)
    assert by_container(text, "microvm_host_cpu_seconds_total", 'part="main"').keys() == set(ids)
    assert len(by_container(text, "container_last_seen")) == count
    return used


async def settled(process: Exporter, stopped: Sequence[str] = ()) -> str:
    """The exposition once those that stopped are down and stale, and all others are up."""
    deadline = time.monotonic() + 90
    while True:
        text = await process.metrics()
        down = {one for one, up in by_container(text, "microvm_source_up", 'source="guest"').items() if not up}
        stale = not set(stopped) & by_container(text, "container_memory_usage_bytes").keys()
        if down == set(stopped) and stale and by_container(text, "microvm_overhead_memory_bytes"):
            return text
        assert time.monotonic() < deadline, f"{len(down)} are down, not {len(stopped)}"
        await asyncio.sleep(0.1)


@dataclass
class Period:
    """Pairs of figures (without, with some stopped): CPU of a round, CPU and wall time of a scrape, in ms."""

    rounds: list[tuple[float, float]]
    scrapes_cpu: list[tuple[float, float]]
    scrapes: list[tuple[float, float]]
    left_out: int = 0


async def period(well: Stepper, stopped: Stepper) -> Period:
    """Figures of both in turn. A pair in which others missed the deadline as well is left out."""
    found = Period([], [], [])
    for number in range(PAIRS):
        order = (well, stopped) if number % 2 == 0 else (stopped, well)
        rounds = {one: await one.ask("round") for one in order}
        scrapes = [{one: await one.ask("scrape") for one in order} for order in (order, order[::-1], order)]
        if (rounds[well][1], rounds[stopped][1]) != (0, FEW_STOPPED):
            found.left_out += 1
            continue
        found.rounds.append((rounds[well][0] / 1e6, rounds[stopped][0] / 1e6))
        found.scrapes_cpu += [(one[well][0] / 1e6, one[stopped][0] / 1e6) for one in scrapes]
        found.scrapes += [(one[well][1] / 1e6, one[stopped][1] / 1e6) for one in scrapes]
    return found


async def compared(directory: Path) -> tuple[Period, Period]:
    """Two exporters in turn; some of the second one's VMs are stopped first, then some of the first one's."""
    async with AsyncExitStack() as stack:
        sides = []
        for name in ("one", "other"):
            vms = await stack.enter_async_context(fleet(directory / name, FEW))
            sides.append((await stack.enter_async_context(stepper(vms.state_dir, vms.root, DEADLINE_S)), vms))
        periods = []
        for (well, going), (stopped, stopping) in (sides, sides[::-1]):
            await going.ask("go")
            await stopping.ask(f"stop {FEW_STOPPED}")
            for _ in range(SETTLING_ROUNDS):
                await asyncio.gather(well.ask("round"), stopped.ask("round"))
            periods.append(await period(well, stopped))
    return periods[0], periods[1]


async def peak_mb(process: Exporter, vms: Fleet) -> float:
    """The most that is resident while it samples and is scraped, in MB."""
    await asyncio.to_thread(Path(f"/proc/{process.process.pid}/clear_refs").write_text, "5", "ascii")
    for _ in range(PEAK_ROUNDS):
        await during_rounds(process, vms)
    return await asyncio.to_thread(resident_mb, process.process.pid)


async def with_some_stopped(process: Exporter, vms: Fleet) -> float:
    """By how many percent the most that is resident grows when some stop; only they are down, and all come back."""
    stopped = [container_id(number) for number in range(STOPPED)]
    before_mb = await peak_mb(process, vms)
    await vms.ask(f"stop {STOPPED}")
    check(await settled(process, stopped), vms.count, stopped)
    stopped_mb = await peak_mb(process, vms)
    await vms.ask("go")
    check(await settled(process), vms.count)
    after_mb = await peak_mb(process, vms)
    print(f"most resident in {3 * PEAK_ROUNDS} rounds, MB: {before_mb:.1f}, {stopped_mb:.1f} stopped, {after_mb:.1f}")
    return 100 * (stopped_mb / before_mb - 1)


async def over(directory: Path, count: int) -> Cost:
    """Costs over `count` VMs."""
    async with (
        fleet(directory, count) as vms,
        exporter(vms.state_dir, "--root", str(vms.root), interval_s=INTERVAL_S[count]) as process,
    ):
        before = check(await settled(process), count)
        cost = await measure(process, vms)
        text = await process.metrics()
        after = check(text, count)
        assert all(after[one] > before[one] for one in before), "every container worked, and it was seen"
        series = sum(1 for line in text.splitlines() if not line.startswith("#"))
        fds = len(await asyncio.to_thread(os.listdir, f"/proc/{process.process.pid}/fd"))
        show(count, series, fds, cost)
        if count == max(INTERVAL_S):
            grown = await with_some_stopped(process, vms)
            goal(f"resident memory with {STOPPED} of {count} stopped, grows by %", grown, CHANGE_PERCENT)
        assert await process.end() == 0
        assert not [line for line in process.log if "defect" in line]
    return cost


def show(count: int, series: int, fds: int, cost: Cost) -> None:
    print(
        f"{count:>5} VMs, {series} series, {fds} descriptors: sample {cost.sample_ms:.3f} ms CPU a container, "
        f"at least {cost.least_ms:.3f}; resident {cost.resident_mb:.0f} MB at most"
    )
    for name, one in (("text", cost.text), ("OpenMetrics", cost.openmetrics), ("text, gzip", cost.gzip)):
        print(
            f"      {name:>12}  median {one.wall_ms:7.1f} ms  max {one.most_ms:7.1f}  CPU {one.cpu_ms:7.1f} ms"
            f"  {one.megabytes:6.2f} MB"
        )
    print(f"      begun while a round goes on: at most {cost.during_ms:.1f} ms")


@pytest.mark.timeout(600)
async def test_cost_of_collection(tmp_path: Path) -> None:
    print(f"\n{ROUNDS} rounds, {SCRAPES} scrapes each; CPU from the scheduler's own count")
    costs = {count: await over(tmp_path / str(count), count) for count in INTERVAL_S}
    most = costs[max(costs)]
    goal("CPU ms per container and sample", most.sample_ms, GOAL_MS)
    goal("the same beside its target", most.sample_ms, TARGET_MS)
    for name, one in (("text", most.text), ("OpenMetrics", most.openmetrics)):
        goal(f"scrape of all, {name}, ms", one.wall_ms, SCRAPE_MS)
        goal(f"scrape of all, {name}, CPU ms", one.cpu_ms, SCRAPE_CPU_MS)
    goal("resident memory, MB", most.resident_mb, RESIDENT_MB)


@pytest.mark.timeout(600)
async def test_what_stopped_ones_cost(tmp_path: Path) -> None:
    periods = await compared(tmp_path)
    left_out = sum(one.left_out for one in periods)
    print(f"\n{FEW_STOPPED} of {FEW} stopped; {2 * PAIRS} pairs, {left_out} left out")
    print("medians, and their bootstrapped 95 % intervals")
    for name, pairs in (
        ("round, CPU ms", [one.rounds for one in periods]),
        ("scrape, CPU ms", [one.scrapes_cpu for one in periods]),
        ("scrape, ms", [one.scrapes for one in periods]),
    ):
        lacking, having = zip(*pairs[0], *pairs[1], strict=True)
        print(f"{name}: {statistics.median(lacking):.2f} without, {statistics.median(having):.2f} with")
        change = change_percent(*pairs)
        goal(f"{name}: with 1 of 100 stopped it grows by %", change, CHANGE_PERCENT)


async def in_turn(directory: Path) -> list[dict[int, float]]:
    """What a round costs a container in ms, by how many there are, turn for turn.

    As in a real exporter, whose rounds are seconds apart, nothing of a round before is left in the CPU's caches: the
    round of a thousand comes in between.
    """
    async with AsyncExitStack() as stack:
        sides = []
        for count in INTERVAL_S:
            vms = await stack.enter_async_context(fleet(directory / str(count), count))
            one = await stack.enter_async_context(stepper(vms.state_dir, vms.root, FLAT_DEADLINE_S))
            for _ in range(SETTLING_ROUNDS):
                await one.ask("round")
            sides.append((count, one))
        turns = []
        for _ in range(TURNS):
            rounds = [(count, *(await one.ask("round"))) for count, one in sides]
            assert [down for *_, down in rounds if down] == []
            turns.append({count: cpu_ns / 1e6 / count for count, cpu_ns, _ in rounds})
        return turns


@pytest.mark.timeout(600)
async def test_what_each_costs_among_many(tmp_path: Path) -> None:
    turns = await in_turn(tmp_path)
    print(f"\nround, CPU ms a container, medians of {TURNS} in turn")
    for count in INTERVAL_S:
        print(f"{count:>5} VMs: {statistics.median(turn[count] for turn in turns):.3f}")
    for few, many in itertools.pairwise(INTERVAL_S):
        pairs = [(turn[few], turn[many]) for turn in turns]
        change = change_percent(pairs[::2], pairs[1::2])
        goal(f"a container among {many} costs more than among {few} by %", change, MORE_PERCENT)
