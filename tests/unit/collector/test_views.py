from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from collector.definitions import microvm
from collector.sources import guest, process
from collector.sources.cgroup import CgroupSample
from collector.sources.process import ProcessSample, ThreadTime, VmMemory
from collector.summary import LoadMeter
from collector.views import STARVED_RATIO, Pair, Shares, Views, overhead_cpu, pair, residual_seconds, shares
from tests.fakevm.scenario import base_record, guest_files, read_json

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
START = Pair(
    guest_at_s=0.0, host_at_s=0.0, usage_s=100.0, waiting_s=5.0, guest_throttled_s=1.0, host_throttled_s=0.0,
    host_cpu_s=200.0, vcpu_s=150.0, wait_s=3.0, main_s=20.0, busy_s=400.0,
)  # fmt: skip


def after(seconds: float = 10.0, **grown: float) -> Pair:
    """`START`, so much later, with these members grown."""
    values = {key: getattr(START, key) + value for key, value in grown.items()}
    return replace(START, guest_at_s=seconds, host_at_s=seconds, **values)


@pytest.mark.parametrize(
    ("grown", "ratio"),
    [
        ({"host_cpu_s": 4.0, "usage_s": 3.0}, 0.25),
        ({"host_cpu_s": 4.0, "usage_s": 4.0}, 0.0),
        ({"host_cpu_s": 4.0, "usage_s": 5.0}, 0.0),
        ({"host_cpu_s": 4.0}, 1.0),
        ({"host_cpu_s": 0.0005}, None),
        ({"host_cpu_s": -4.0, "usage_s": 1.0}, None),
        ({"host_cpu_s": 4.0, "usage_s": -1.0}, None),
    ],
)
def test_overhead_is_a_share_of_the_host_s_bill(grown: dict[str, float], ratio: float | None) -> None:
    assert overhead_cpu(START, after(**grown)) == (None if ratio is None else pytest.approx(ratio))


def test_overhead_goes_by_the_time_that_each_view_was_read() -> None:
    late = replace(after(host_cpu_s=5.0, usage_s=4.0), host_at_s=12.5)
    assert overhead_cpu(START, late) == pytest.approx(0.0)


@pytest.mark.parametrize("unknown", ["usage_s", "waiting_s", "wait_s"])
def test_what_one_view_does_not_tell_is_absent(unknown: str) -> None:
    now = replace(after(host_cpu_s=4.0), **{unknown: None})
    assert (overhead_cpu(START, now) is None) == (unknown == "usage_s")
    assert shares(START, now, 1) is None


def test_samples_too_close_tell_nothing() -> None:
    now = after(0.01, host_cpu_s=0.01, usage_s=0.01, waiting_s=0.01)
    assert overhead_cpu(START, now) is None
    assert shares(START, now, 1) is None


@pytest.mark.parametrize(
    ("grown", "vcpus", "by"),
    [
        ({}, 1, "none"),
        ({"waiting_s": 0.9}, 1, "none"),
        ({"waiting_s": 3.0}, 1, "self"),
        ({"waiting_s": 5.0, "guest_throttled_s": 4.5}, 1, "limit"),
        ({"waiting_s": 5.0, "wait_s": 4.0}, 1, "host"),
        ({"usage_s": 9.0, "wait_s": 4.0}, 1, "host"),
        ({"usage_s": 0.1, "wait_s": 4.0}, 1, "none"),
        ({"usage_s": 9.0, "wait_s": 4.0}, 8, "none"),
        ({"waiting_s": 5.0, "wait_s": 4.5, "host_throttled_s": 4.4}, 1, "limit"),
        ({"waiting_s": -5.0, "wait_s": -4.0, "guest_throttled_s": -1.0}, 1, "none"),
    ],
)
def test_verdict(grown: dict[str, float], vcpus: int, by: str) -> None:
    found = shares(START, after(**grown), vcpus)
    assert found is not None
    assert found.starved_by == by


def test_the_threshold_is_the_constant() -> None:
    assert Shares(1.0, 0.0, STARVED_RATIO, 0.0).starved_by == "limit"
    assert Shares(1.0, 0.0, STARVED_RATIO - 0.001, 0.0).starved_by == "none"
    assert Shares(STARVED_RATIO - 0.001, 0.0, 1.0, 1.0).starved_by == "none"


@pytest.mark.parametrize(
    ("ran", "waited", "main", "busy", "residual"),
    [
        (10, 0, 0, 10, 0), (10, 0, 0, 8, 2), (10, 3, 0, 12, 0), (10, 3, 0, 15, 2), (10, 3, 0, 13, 0), (0, 0, 0, 0, 0),
        (10, 1, 2, 13, 0), (10, 1, 2, 14, 1), (10, 0, 5, 8, 2), (10, 0, -5, 11, 1),
    ],
)  # fmt: skip
def test_residual_is_the_distance_from_what_waiting_explains(
    ran: float, waited: float, main: float, busy: float, residual: float
) -> None:
    assert residual_seconds(START, after(vcpu_s=ran, wait_s=waited, main_s=main, busy_s=busy)) == pytest.approx(
        residual
    )


def test_residual_of_counters_that_went_back_is_unknown() -> None:
    assert residual_seconds(START, after(vcpu_s=-1.0)) is None
    assert residual_seconds(START, after(busy_s=-1.0)) is None
    assert residual_seconds(replace(START, busy_s=None), after()) is None


def test_a_guest_is_busy_for_what_it_was_not_idle() -> None:
    answer, process = samples(None)
    unknown = CgroupSample(None, None, None)
    assert answer.details is not None
    cpu = answer.details.cpu
    assert cpu is not None
    assert cpu.idle_s is not None
    uptime_s = cpu.idle_s + cpu.steal_s + 5.0
    answer = replace(answer, uptime_ns=int(uptime_s * 1e9))
    found = pair(answer, 1.0, process, unknown, 1.0)
    assert found.busy_s == pytest.approx(5.0), "whatever its ticks have seen"
    assert found.main_s == pytest.approx(1.0)
    ticks = replace(answer, details=replace(answer.details, cpu=replace(cpu, idle_s=None)))
    assert pair(ticks, 1.0, process, unknown, 1.0).busy_s == cpu.busy_s, "a stock agent tells no uptime"


def samples(memory: VmMemory | None, **changes: Any) -> tuple[guest.GuestSample, ProcessSample]:
    files = [{"path": path, "data": text.decode("latin-1")} for path, text in guest_files().items()]
    answer = {**read_json("base", "agent.json")["hyper-read"], "files": files}
    found = guest.parse_sample(answer, "/sys/fs/cgroup/container", deep=True)
    ran = ProcessSample(20.0, ThreadTime(15.0, 2.0), None, ThreadTime(1.0, 0.0), None, None, memory, memory_is_new=True)
    return found, replace(ran, **changes)


def points(views: Views, found: guest.GuestSample, ran: ProcessSample, *, deep: bool = True) -> dict[str, float]:
    now = pair(found, 10.0, ran, CgroupSample(20.0, None, None), 10.0)
    return {point.metric.name: point.value for point in views.points(now, found, ran, deep=deep)}


def test_memory_of_two_views() -> None:
    found, ran = samples(VmMemory(guest_ram=100 * MIB, template_shared=30 * MIB, vmm=12 * MIB))
    assert found.memory_bytes is not None
    assert found.memory_free_bytes is not None
    told = points(Views(192 * MIB, 1), found, ran)
    assert told[microvm.OVERHEAD_MEMORY_BYTES.name] == 112 * MIB - found.memory_bytes
    assert told[microvm.VIEW_RESIDUAL_BYTES.name] == 130 * MIB - (192 * MIB - found.memory_free_bytes)


def test_memory_stays_as_it_was_compared_until_it_is_read_again() -> None:
    views = Views(192 * MIB, 1)
    found, ran = samples(VmMemory(100 * MIB, 0, 12 * MIB))
    first = points(views, found, ran)
    later = points(views, replace(found, memory_bytes=1), replace(ran, memory_is_new=False))
    assert later[microvm.OVERHEAD_MEMORY_BYTES.name] == first[microvm.OVERHEAD_MEMORY_BYTES.name]
    assert microvm.VIEW_RESIDUAL_BYTES.name not in points(views, found, replace(ran, memory_is_new=False), deep=False)


def test_a_round_too_soon_does_not_reset_the_interval() -> None:
    found, ran = samples(None)
    views = Views(192 * MIB, 1)

    def told(at_s: float) -> set[str]:
        now = pair(found, at_s, ran, CgroupSample(20.0, None, None), at_s)
        return {point.metric.name for point in views.points(now, found, ran, deep=False)}

    assert [microvm.STARVED_BY.name in told(at_s) for at_s in (10.0, 10.04, 10.08, 10.12)] == [
        False, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("memory", [None, VmMemory(None, None, None)])
def test_memory_that_is_not_known_has_no_overhead(memory: VmMemory | None) -> None:
    assert microvm.OVERHEAD_MEMORY_BYTES.name not in points(Views(192 * MIB, 1), *samples(memory))


def reader_of(pid: int, proc: Path, now: list[float]) -> process.ProcessReader:
    """Of a process that has no mappings, by a clock of the test's own."""
    (proc / str(pid)).mkdir()
    stat = str(pid).encode() + b" (q) S " + b" ".join(b"1" for _ in range(18)) + b" 77 0 0"
    (proc / str(pid) / "stat").write_bytes(stat)
    (proc / str(pid) / "smaps").write_bytes(b"")
    vm = base_record().vm
    assert vm is not None
    vm = replace(vm, pid=pid, pid_start_ticks=int(stat.rpartition(b")")[2].split()[19]))
    return process.ProcessReader(vm, proc, lambda: now[0])


def test_smaps_is_read_again_for_the_first_sample_that_it_can_be_compared_with(tmp_path: Path) -> None:
    now = [0.0]
    reader = reader_of(4711, tmp_path, now)
    assert [reader.read(None, paired=paired).memory_is_new for paired in (False, False, True, True)] == [
        True, False, True, False,
    ]  # fmt: skip
    now[0] = process.SMAPS_INTERVAL_S
    assert reader.read(None, paired=True).memory_is_new
    reader.close()


def test_smaps_of_many_vms_are_not_read_again_in_the_same_round(tmp_path: Path) -> None:
    now = [0.0]
    pids = range(600, 660)
    readers = [reader_of(pid, tmp_path, now) for pid in pids]

    def read_in_this_round() -> int:
        return sum(reader.read(None, paired=True).memory_is_new for reader in readers)

    assert read_in_this_round() == len(readers)
    for minute in (0, 60):
        reads = []
        for second in range(10, 61, 10):
            now[0] = minute + second
            reads.append(read_in_this_round())
        assert reads == [10] * 6
    for reader in readers:
        reader.close()


def test_load_forgets() -> None:
    meter = LoadMeter()
    assert meter.observe(2, 100.0) == 2000
    assert meter.observe(0, 100.0) == 2000
    assert 700 < meter.observe(0, 110.0) < 750
    for at_s in range(120, 220, 10):
        load = meter.observe(3, at_s)
    assert load == pytest.approx(3000, rel=0.01)
