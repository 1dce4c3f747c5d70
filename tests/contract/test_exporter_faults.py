"""What a bad VM may cost: its own samples, and nothing of the others."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import pytest

from collector.catalogue import container, hyper, microvm
from collector.channel import MAX_BUFFERED_BYTES
from collector.rounds import Collector
from collector.watch import STALE_ROUNDS, Settings
from runtime import record
from runtime.record import Lifecycle
from tests.fakevm import Fault, running
from tests.fakevm.scenario import NOW_S, base_record, fake_vm, host_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from collector.metric import Metric
    from collector.snapshot import ContainerSnapshot, Snapshot

DEADLINE_S = 0.4
OTHER_ID = "4a" * 32
FAULTS = get_args(Fault)


@pytest.fixture
def clock() -> list[float]:
    return [NOW_S]


@pytest.fixture
def collector(tmp_path: Path, clock: list[float]) -> Any:
    root = host_root("cgroup-v2", tmp_path / "root")
    settings = Settings("node1", root, deadline_s=DEADLINE_S, clock=lambda: clock[0])
    made = Collector(tmp_path / "state", settings, tombstone_ttl_s=60)
    yield made
    made.close()


def values(snapshot: ContainerSnapshot, metric: Metric) -> dict[tuple[str, ...], float]:
    return {point.label_values: point.value for point in snapshot.points if point.metric is metric}


def up(snapshot: ContainerSnapshot) -> dict[str, float]:
    return {labels[0]: value for labels, value in values(snapshot, microvm.SOURCE_UP).items()}


@pytest.mark.parametrize("source", ["vmm", "guest"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_stays_where_it_is(fault: Any, source: str, collector: Collector, tmp_path: Path) -> None:
    bad = fake_vm(tmp_path / "state", "cgroup-v2")
    good = fake_vm(tmp_path / "state", "cgroup-v2", OTHER_ID)
    async with running(bad), running(good):
        first = await collector.round()
        assert up(first.containers[bad.record.id]) == {"host": 1, "vmm": 1, "guest": 1}
        bad.faults[source] = fault
        started = time.monotonic()
        second = await collector.round()
        # A wide margin over the deadline: the machine is shared.
        assert time.monotonic() - started < DEADLINE_S + 2
        hurt, well = second.containers[bad.record.id], second.containers[good.record.id]
        assert up(hurt) == {"host": 1, "vmm": 1, "guest": 1, source: 0}
        assert hurt.down[source]
        assert "defect" not in hurt.down[source]
        assert up(well) == {"host": 1, "vmm": 1, "guest": 1}
        kept = values(first.containers[bad.record.id], container.MEMORY_USAGE_BYTES)
        assert values(hurt, container.MEMORY_USAGE_BYTES) == kept


@pytest.mark.parametrize("source", ["vmm", "guest"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_it_comes_back(fault: Any, source: str, collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    async with running(vm):
        await collector.round()
        vm.faults[source] = fault
        for _ in range(2):
            snapshot = await collector.round()
            assert up(snapshot.containers[vm.record.id])[source] == 0
        del vm.faults[source]
        deadline = time.monotonic() + 10
        while up((await collector.round()).containers[vm.record.id])[source] != 1:
            assert time.monotonic() < deadline, "the source did not come back"


async def test_values_of_a_silent_source_age_and_then_go(
    collector: Collector, tmp_path: Path, clock: list[float]
) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    async with running(vm):
        await collector.round()
        vm.faults["guest"] = "mute"
        for missed in range(1, STALE_ROUNDS + 1):
            clock[0] += 10
            snapshot = (await collector.round()).containers[vm.record.id]
            assert snapshot.sampled_at["guest"] == NOW_S
            assert bool(values(snapshot, container.MEMORY_USAGE_BYTES)) == (missed < STALE_ROUNDS)
        assert snapshot.summary.memory_bytes is None
        assert values(snapshot, microvm.VMM_STATUS)


async def test_counters_that_go_back_are_held_and_told(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    path = "/sys/fs/cgroup/container/cpu.stat"
    async with running(vm):
        before = (await collector.round()).containers[vm.record.id]
        vm.files[path] = b"usage_usec 1\nuser_usec 1\nsystem_usec 0\n"
        after = (await collector.round()).containers[vm.record.id]
    assert values(after, container.CPU_USAGE_SECONDS_TOTAL) == values(before, container.CPU_USAGE_SECONDS_TOTAL)
    assert up(after)["guest"] == 0
    assert "went back" in after.down["guest"]
    assert after.summary.cpu_ratio is None


async def test_a_guest_that_renames_its_interfaces_has_no_more_of_them(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    names = set()
    async with running(vm):
        for number in range(4):
            rows = (b"n%dr%d: %s\n" % (row, number, b"1 " * 16) for row in range(8))
            vm.files["/proc/net/dev"] = b"".join(rows)
            snapshot = await collector.round()
            names |= set(values(snapshot.containers[vm.record.id], container.NETWORK_RECEIVE_BYTES_TOTAL))
        assert names == {(f"n{row}r0",) for row in range(8)}
        assert {p.value for p in snapshot.points if p.metric is hyper.COLLECTOR_SERIES_DROPPED_TOTAL} == {24}
    vm.record = replace(vm.record, lifecycle=replace(vm.record.lifecycle, epoch=2))
    async with running(vm):
        again = (await collector.round()).containers[vm.record.id]
    assert set(values(again, container.NETWORK_RECEIVE_BYTES_TOTAL)) == {(f"n{row}r3",) for row in range(8)}


async def test_a_difference_that_wobbles_is_held_and_no_fault(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    stat = tmp_path / "root/sys/fs/cgroup/hyper/3f/cpu.stat"
    async with running(vm):
        before = (await collector.round()).containers[vm.record.id]
        stat.write_text("usage_usec 15900000\n")
        after = (await collector.round()).containers[vm.record.id]
    assert values(before, microvm.HOST_CPU_SECONDS_TOTAL)[("other",)] > 0.5
    assert values(after, microvm.HOST_CPU_SECONDS_TOTAL) == values(before, microvm.HOST_CPU_SECONDS_TOTAL)
    assert up(after) == {"host": 1, "vmm": 1, "guest": 1}


async def test_a_restart_is_a_new_epoch(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    events = "/sys/fs/cgroup/container/memory.events"
    vm.files[events] = b"low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\n"
    async with running(vm):
        first = (await collector.round()).containers[vm.record.id]
        assert values(first, container.OOM_EVENTS_TOTAL) == {(): 2}
    vm.files[events] = b"low 0\nhigh 0\nmax 1\noom 1\noom_kill 1\n"
    vm.files["/sys/fs/cgroup/container/cpu.stat"] = b"usage_usec 7000000\nuser_usec 1\nsystem_usec 0\n"
    # One kill came after the last sample: only the record knows of it.
    again = replace(vm.record.lifecycle, epoch=2, restarts=1)
    vm.record = replace(vm.record, lifecycle=again, oom_kills={"container": 3, "guest": 0, "host": 0})
    async with running(vm):
        second = (await collector.round()).containers[vm.record.id]
    assert values(second, container.CPU_USAGE_SECONDS_TOTAL) == {("total",): 7.0}
    assert values(second, container.OOM_EVENTS_TOTAL) == {(): 4}
    assert values(second, container.RESTARTS_TOTAL) == {(): 1}
    assert up(second) == {"host": 1, "vmm": 1, "guest": 1}


async def test_a_stopped_container_is_a_state_and_not_a_gap(collector: Collector, tmp_path: Path) -> None:
    life = Lifecycle("exited", "running", 1.0, 2.0, 3.0, exit_code=137, oom_killed=True, restarts=4, epoch=5)
    stopped = base_record(lifecycle=life, vm=None, oom_kills={"container": 3, "guest": 2, "host": 1})
    directory = tmp_path / "state/containers" / stopped.id
    directory.mkdir(parents=True)
    record.write(directory, stopped)
    snapshot = (await collector.round()).containers[stopped.id]
    state = values(snapshot, container.STATE)
    assert state == {("exited",): 1}
    assert values(snapshot, container.DESIRED_RUNNING) == {(): 1}
    assert values(snapshot, container.EXIT_CODE) == {(): 137}
    assert values(snapshot, container.RESTARTS_TOTAL) == {(): 4}
    assert values(snapshot, container.OOM_EVENTS_TOTAL) == {(): 5}
    assert values(snapshot, microvm.OOM_TOTAL) == {("container",): 3, ("guest",): 2, ("host",): 1}
    assert values(snapshot, container.MEMORY_USAGE_BYTES) == {}
    assert up(snapshot) == {}


async def test_last_words_of_a_removed_container(collector: Collector, tmp_path: Path, clock: list[float]) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    async with running(vm):
        await collector.round()
    shutil.rmtree(vm.directory)
    snapshot = (await collector.round()).containers[vm.record.id]
    assert snapshot.removed
    assert values(snapshot, container.MEMORY_MAX_USAGE_BYTES) != {}
    assert values(snapshot, container.OOM_EVENTS_TOTAL) == {(): 0}
    assert values(snapshot, container.DESIRED_RUNNING) == {(): 0}
    assert values(snapshot, container.CPU_USAGE_SECONDS_TOTAL) == {}
    clock[0] += 61
    assert vm.record.id not in (await collector.round()).containers


SHUTDOWN = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}}


async def test_what_qemu_said_last_stays_over_epochs_and_after_the_end(collector: Collector, tmp_path: Path) -> None:
    """As QEMU with `-no-reboot`: it tells of its end and closes, and nobody asked it anything in between."""
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    running_life, told = vm.record.lifecycle, {}
    for epoch in (1, 2):
        vm.record = replace(vm.record, lifecycle=replace(running_life, epoch=epoch))
        async with running(vm):
            assert up((await collector.round()).containers[vm.record.id])["vmm"] == 1
            await vm.tell({"event": "WATCHDOG", "data": {"action": "none"}}, SHUTDOWN)
        ended = replace(running_life, state="exited", finished_at=NOW_S, exit_code=0, epoch=epoch)
        record.write(vm.directory, replace(vm.record, lifecycle=ended, vm=None if epoch == 2 else vm.record.vm))
        snapshot = (await collector.round()).containers[vm.record.id]
        assert up(snapshot) == {}
        told = values(snapshot, microvm.EVENTS_TOTAL)
        assert told == {("watchdog",): epoch, ("shutdown: guest-reset",): epoch}
    shutil.rmtree(vm.directory)
    snapshot = (await collector.round()).containers[vm.record.id]
    assert snapshot.removed
    assert values(snapshot, microvm.EVENTS_TOTAL) == told


async def test_what_qemu_said_last_is_seen_while_the_record_still_says_running(
    collector: Collector, tmp_path: Path
) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    async with running(vm):
        await collector.round()
        await vm.tell(SHUTDOWN)
    for _ in range(STALE_ROUNDS + 1):
        snapshot = (await collector.round()).containers[vm.record.id]
        assert up(snapshot)["vmm"] == 0
        assert values(snapshot, microvm.EVENTS_TOTAL) == {("shutdown: guest-reset",): 1}


async def test_a_storm_of_events_between_two_rounds_is_counted(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    async with running(vm):
        await collector.round()
        await vm.tell(*[{"event": "BLOCK_IO_ERROR"}] * 500)
        snapshot = (await collector.round()).containers[vm.record.id]
        assert values(snapshot, microvm.EVENTS_TOTAL) == {("block_io_error",): 500}
        assert up(snapshot)["vmm"] == 1


async def test_a_reused_pid_is_not_the_vm(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    assert vm.record.vm
    vm.record = replace(vm.record, vm=replace(vm.record.vm, pid_start_ticks=1))
    async with running(vm):
        snapshot = (await collector.round()).containers[vm.record.id]
    assert up(snapshot) == {"host": 0, "vmm": 1, "guest": 1}
    assert values(snapshot, microvm.HOST_MEMORY_BYTES) == {}


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}', "[]", '{"schema": 1}', "[" * 5000])
async def test_an_unreadable_record_is_counted(text: str, collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    bad = tmp_path / "state/containers" / OTHER_ID
    bad.mkdir(parents=True)
    (bad / record.FILE_NAME).write_text(text)
    (tmp_path / "state/containers/not-an-id").mkdir()
    async with running(vm):
        snapshot = await collector.round()
    assert list(snapshot.containers) == [vm.record.id]
    assert {p.value for p in snapshot.points if p.metric is hyper.RECORDS_UNREADABLE} == {1}


def unreadable(snapshot: Snapshot) -> float:
    [point] = [point for point in snapshot.points if point.metric is hyper.RECORDS_UNREADABLE]
    return point.value


@pytest.mark.parametrize("cause", ["an unknown schema", "another id", "no descriptor", "no right"])
async def test_a_record_that_becomes_unreadable_is_told_as_it_was_last(
    cause: str,
    collector: Collector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    down = base_record(OTHER_ID, lifecycle=Lifecycle("exited", "running", 1.0, 2.0, 3.0, exit_code=1), vm=None)
    directory = tmp_path / "state/containers" / OTHER_ID
    directory.mkdir(parents=True)
    record.write(directory, down)
    async with running(vm):
        first = await collector.round()
        with monkeypatch.context() as patched:
            if cause == "no descriptor":
                patched.setattr(record, "read", failing(OSError(errno.EMFILE, "Too many open files")))
            elif cause == "no right":
                patched.setattr(os, "stat", failing(PermissionError(errno.EACCES, "Permission denied"), os.stat))
            for one in (vm.directory, directory):
                text = '{"schema": 99}' if cause == "an unknown schema" else base_record("5b" * 32).to_json()
                (one / record.FILE_NAME).write_text(text)
            for _ in range(STALE_ROUNDS):
                later = await collector.round()
        assert unreadable(first) == 0
        assert unreadable(later) == 2
        for container_id in (vm.record.id, OTHER_ID):
            before, after = first.containers[container_id], later.containers[container_id]
            assert not after.removed
            for metric in (container.STATE, container.DESIRED_RUNNING):
                assert values(after, metric) == values(before, metric)
        assert up(later.containers[vm.record.id]) == {"host": 1, "vmm": 1, "guest": 1}, "its VM is asked as before"
        assert caplog.text.count("its record") == 2, "each is said once"
        record.write(directory, replace(down, lifecycle=replace(down.lifecycle, desired="stopped")))
        shutil.rmtree(vm.directory)
        last = await collector.round()
    assert unreadable(last) == 0
    assert values(last.containers[OTHER_ID], container.DESIRED_RUNNING) == {(): 0}
    assert last.containers[vm.record.id].removed, "one that is not there any more is"


def failing(error: OSError, otherwise: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Raises it for records."""

    def call(path: Any, *args: Any, **more: Any) -> Any:
        if otherwise is not None and not str(path).endswith(record.FILE_NAME):
            return otherwise(path, *args, **more)
        raise error

    return call


async def test_a_directory_that_cannot_be_listed_is_said_once(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    listdir = os.listdir

    def cannot(path: Any) -> list[str]:
        if str(path) == str(tmp_path / "state/containers"):
            raise OSError(errno.EMFILE, "Too many open files")
        return listdir(path)

    async with running(vm):
        await collector.round()
        for told in (1, 2):
            with monkeypatch.context() as patched:
                patched.setattr(os, "listdir", cannot)
                for _ in range(2):
                    assert not (await collector.round()).containers[vm.record.id].removed
            await collector.round()
            assert caplog.text.count("cannot list") == told


async def test_many_hostile_guests_cost_bounded_memory(tmp_path: Path) -> None:
    root = host_root("base", tmp_path / "root")
    settings = Settings("node1", root, deadline_s=DEADLINE_S, clock=lambda: NOW_S)
    collector = Collector(tmp_path / "state", settings)
    vms = [fake_vm(tmp_path / "state", container_id=f"{n:064x}") for n in range(40)]
    for vm in vms:
        await vm.start()
        vm.faults = {"guest": "endless", "vmm": "endless"}
    highest = 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, settings.budget.used_bytes)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    snapshot = await collector.round()
    watching.cancel()
    assert all(up(one)["guest"] == 0 for one in snapshot.containers.values())
    collector.close()
    for vm in vms:
        await vm.stop()
    assert 0 < highest < MAX_BUFFERED_BYTES + 80 * 65536 + (1 << 20)
    assert settings.budget.used_bytes == 0


async def test_rounds_leak_no_descriptors(collector: Collector, tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "cgroup-v2")
    before = _descriptors()
    async with running(vm):
        await collector.round()
        steady = _descriptors()
        for fault in ("garbage", "closes", "oversize"):
            vm.faults = {"guest": fault, "vmm": fault}
            await collector.round()
        vm.faults = {}
        for _ in range(3):
            await collector.round()
        assert _descriptors() <= steady
    collector.close()
    await asyncio.sleep(0)
    assert _descriptors() <= before + 1


def _descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- counts descriptors, its own too
