"""The fake VM and a real QEMU under one suite: what the collector relies on must hold for both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from collector import channel, kerneltext
from collector.catalogue import microvm
from collector.errors import UnreachableError
from collector.sources import qmp, vmm
from collector.sources.vmm import LATENCY_BOUNDS_NS, VmmReader
from collector.watch import Settings, Watch
from runtime import record as records
from runtime.record import Record, Vm
from tests.contract import agent_vm
from tests.fakevm.fleet import fleet
from tests.fakevm.scenario import base_record, fake_vm, host_root, read_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

RAM_BYTES = 64 << 20


@dataclass
class Machine:
    """Either VM: its monitor, its process, and how to wedge it and let it go on."""

    directory: Path
    record: Record
    root: Path
    wedge: Callable[[], Any]
    go_on: Callable[[], Any]

    @property
    def monitor(self) -> Path:
        return self.directory / "qmp-stats.sock"


@contextlib.asynccontextmanager
async def _fake(tmp_path: Path, scenario: str = "base", qmp: Mapping[str, Any] | None = None) -> AsyncIterator[Machine]:
    vm = fake_vm(tmp_path / "state", scenario)
    vm.qmp |= qmp or {}
    await vm.start()
    try:
        root = host_root("base", tmp_path / "root")
        yield Machine(
            vm.directory, vm.record, root, lambda: vm.faults.update(vmm="mute"), lambda: vm.faults.pop("vmm", None)
        )
    finally:
        await vm.stop()


@contextlib.asynccontextmanager
async def _one_of_many(tmp_path: Path) -> AsyncIterator[Machine]:
    async with fleet(tmp_path, 1) as vms:
        directory = vms.directory_of(0)
        yield Machine(directory, records.read(directory), vms.root, lambda: vms.tell("stop 1"), lambda: vms.tell("go"))


@contextlib.asynccontextmanager
async def _qemu(tmp_path: Path, *extra: str) -> AsyncIterator[Machine]:
    program = shutil.which("qemu-system-x86_64")
    assert program, "install the package qemu-system-x86"
    directory = tmp_path / "vm"
    directory.mkdir()
    for name in ("image", "writable"):
        with (directory / name).open("wb") as disk:
            disk.truncate(1 << 20)
    process = await asyncio.create_subprocess_exec(
        program, "-M", "microvm,acpi=off,memory-backend=ram", "-nodefaults", "-S", "-display", "none", "-m", "64",
        "-object", f"memory-backend-memfd,id=ram,size={RAM_BYTES},share=on", "-accel", "tcg,tb-size=32",
        "-blockdev", "driver=raw,node-name=image,file.driver=file,file.filename=image,read-only=on",
        "-blockdev", "driver=raw,node-name=writable,file.driver=file,file.filename=writable",
        "-device", "virtio-blk-device,drive=image", "-device", "virtio-blk-device,drive=writable",
        "-qmp", "unix:qmp-stats.sock,server=on,wait=off", *extra,
        cwd=directory,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while not (directory / "qmp-stats.sock").exists():
                assert process.returncode is None, "QEMU ended"
                await asyncio.sleep(0.02)
        stat = (await asyncio.to_thread(_read, f"/proc/{process.pid}/stat")).rpartition(")")[2].split()
        vm = Vm(process.pid, int(stat[19]), RAM_BYTES, 1, "tcg", "microvm", 0, "none", "cold")
        record = base_record(vm=vm)
        yield Machine(
            directory,
            record,
            Path("/"),
            lambda: process.send_signal(signal.SIGSTOP),
            lambda: process.send_signal(signal.SIGCONT),
        )
    finally:
        process.kill()
        await process.wait()


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123 -- one line of /proc
        return file.read()


@pytest.fixture(params=[_fake, _one_of_many, _qemu], ids=["fake", "one of many", "qemu"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machine]:
    async with request.param(tmp_path) as one:
        yield one


async def test_monitor_tells_status_disks_and_threads(machine: Machine) -> None:
    reader = VmmReader(machine.monitor, channel.Budget())
    async with asyncio.timeout(10):
        sample = await reader.read()
        again = await reader.read()
    assert sample.status in {"prelaunch", "running"}
    assert sample == again
    assert reader.thread_ids is not None
    assert len(reader.thread_ids.vcpus) == 1
    assert reader.thread_ids.iothreads == ()
    reader.close()


async def test_monitor_tells_disks_and_queues_when_asked_deep(machine: Machine) -> None:
    reader = VmmReader(machine.monitor, channel.Budget())
    async with asyncio.timeout(10):
        await reader.read()
        first = (await reader.read(deep=True)).details
        again = (await reader.read(deep=True)).details
        assert (await reader.read()).details is None
    assert first is not None
    assert again is not None
    assert [device.name for device in again.devices] == ["image", "writable"]
    assert all(set(device.errors) == {"read", "write", "flush"} for device in again.devices)
    latency = again.devices[1].latency["write"]
    assert latency.bounds_ns == LATENCY_BOUNDS_NS
    assert len(latency.bins) == len(LATENCY_BOUNDS_NS) + 1
    assert first.inflight
    assert first.inflight == again.inflight
    assert again.balloon_bytes is None
    assert again.balloon_stats == {}
    assert again.kvm_exits == {}
    reader.close()


@contextlib.asynccontextmanager
async def _fake_with_balloon(tmp_path: Path) -> AsyncIterator[Machine]:
    place = "qom-get /machine/peripheral-anon/device[5] guest-stats"
    told = read_json("balloon", "scenario.json")["qmp"][place]["stats"]
    untold = {"stats": dict.fromkeys(told, 2**64 - 1), "last-update": 0}
    async with _fake(tmp_path, "balloon", {place: untold}) as one:
        yield one


@contextlib.asynccontextmanager
async def _qemu_with_balloon(tmp_path: Path) -> AsyncIterator[Machine]:
    async with _qemu(tmp_path, "-device", "virtio-balloon-device") as one:
        yield one


BALLOONS = {"fake": _fake_with_balloon, "qemu": _qemu_with_balloon}


@pytest.mark.parametrize("vm", BALLOONS)
async def test_a_balloon_is_found_and_asked_and_what_no_guest_has_told_is_absent(vm: str, tmp_path: Path) -> None:
    async with BALLOONS[vm](tmp_path) as one:
        reader = VmmReader(one.monitor, channel.Budget())
        async with asyncio.timeout(10):
            for _ in range(2):
                found = (await reader.read(deep=True)).details
                assert found is not None
                assert found.balloon_bytes
                assert found.balloon_stats == {}
        reader.close()
        places = await _object_tree(one.monitor, "qom-list", path="/machine/peripheral-anon")
        name = next(place["name"] for place in places if "balloon" in place["type"])
        at = {"path": f"/machine/peripheral-anon/{name}"}
        untold = await _object_tree(one.monitor, "qom-get", **at, property="guest-stats")
        interval = await _object_tree(one.monitor, "qom-get", **at, property="guest-stats-polling-interval")
    assert untold["last-update"] == 0
    assert set(untold["stats"].values()) == {2**64 - 1}
    assert set(untold["stats"]) & set(qmp.BALLOON_STATS) == set(qmp.BALLOON_STATS) - {"stat-oom-kills"}
    assert interval == vmm.BALLOON_POLL_S


async def _object_tree(socket: Path, command: str, **arguments: Any) -> Any:
    """What QEMU returns to one command."""
    monitor = await channel.connect(socket, channel.Budget())
    async with asyncio.timeout(10):
        await monitor.read_line()
        monitor.write(b'{"execute":"qmp_capabilities"}\n')
        await monitor.read_line()
        monitor.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = json.loads(await monitor.read_line())
    monitor.close()
    return answer["return"]


@pytest.mark.e2e
async def test_a_guest_s_balloon_tells_its_memory_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmm, "BALLOON_POLL_S", 1)
    shared = await asyncio.to_thread(agent_vm.with_module, "virtio_balloon", tmp_path / "initrd")
    guest = await asyncio.to_thread(agent_vm.GuestVm, shared=shared, extra=["-device", "virtio-balloon-device"])
    monitor = guest.place / "qmp-stats.sock"
    reader = VmmReader(monitor, channel.Budget())

    async def told(until: Callable[[Mapping[str, int]], bool]) -> Mapping[str, int]:
        async with asyncio.timeout(60):
            while True:
                found = (await reader.read(deep=True)).details
                if found is not None and found.balloon_stats and until(found.balloon_stats):
                    return found.balloon_stats
                await asyncio.sleep(0.1)  # between two looks at what is told

    try:
        # The driver tells once of its own accord, when it is loaded.
        early = await told(lambda _: True)
        (read,) = guest.stats.call("hyper-read", files=["/proc/meminfo"], statvfs=[], max_bytes=65536)["files"]
        meminfo = kerneltext.parse_meminfo(read["data"].encode())
        assert early["stat-total-memory"] == meminfo[b"MemTotal"]
        assert early["stat-free-memory"] == pytest.approx(meminfo[b"MemFree"], rel=0.2)
        script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=16 2>/dev/null; exec sleep 600"
        await asyncio.to_thread(guest.start, "sh", "-c", script)
        late = await told(lambda stats: stats["stat-free-memory"] < early["stat-free-memory"] - (14 << 20))
        assert late["stat-available-memory"] < early["stat-available-memory"] - (14 << 20)
        reader.close()
        # A guest whose driver has not answered for long is not told of any more.
        reader = VmmReader(monitor, channel.Budget(), clock=lambda: time.time() + 60)
        found = (await reader.read(deep=True)).details
        assert found is not None
        assert found.balloon_bytes == 128 << 20
        assert found.balloon_stats == {}
    finally:
        reader.close()
        guest.close()


async def test_one_client_at_a_time_and_the_next_after_it(machine: Machine) -> None:
    for _ in range(3):
        reader = VmmReader(machine.monitor, channel.Budget())
        async with asyncio.timeout(10):
            await reader.read()
        reader.close()


async def test_a_wedged_monitor_costs_its_deadline_and_comes_back(machine: Machine) -> None:
    settings = Settings("node1", machine.root, deadline_s=0.3)
    watch = Watch(machine.directory, machine.record, settings)
    assert (await watch.sample()).down.keys() <= {"guest"}
    machine.wedge()
    for _ in range(3):
        started = time.monotonic()
        snapshot = await watch.sample()
        assert time.monotonic() - started < 1.5
        assert "no answer" in snapshot.down["vmm"]
        assert "host" not in snapshot.down
    machine.go_on()
    deadline = time.monotonic() + 10
    while "vmm" in (await watch.sample()).down:
        assert time.monotonic() < deadline, "the monitor did not come back"
    watch.close()


async def test_host_s_bill_is_split_by_thread_and_kind(machine: Machine) -> None:
    watch = Watch(machine.directory, machine.record, Settings("node1", machine.root))
    snapshot = await watch.sample()
    watch.close()
    cpu = {p.label_values[0]: p.value for p in snapshot.points if p.metric is microvm.HOST_CPU_SECONDS_TOTAL}
    assert set(cpu) == set(microvm.CPU_PARTS) - {"iothread"}, "it has none"
    assert cpu["main"] > 0
    memory = {p.label_values[0]: p.value for p in snapshot.points if p.metric is microvm.HOST_MEMORY_BYTES}
    assert {"guest_ram", "template_shared", "vmm"} <= set(memory)
    assert memory["vmm"] > 1 << 20
    assert memory["template_shared"] == 0


async def test_nobody_there(tmp_path: Path) -> None:
    reader = VmmReader(tmp_path / "qmp-stats.sock", channel.Budget())
    with pytest.raises(UnreachableError, match=r"qmp-stats\.sock: No such file"):
        await reader.read()


async def test_resident_memory_adds_up_to_what_the_kernel_says(tmp_path: Path) -> None:
    """The kernel's sum is proportional: it moves when another VM of the host comes or goes, so it must hold still."""
    async with _qemu(tmp_path) as real:
        assert real.record.vm
        for _ in range(50):
            watch = Watch(real.directory, real.record, Settings("node1"))  # one watch reads the memory once a minute
            before = await asyncio.to_thread(_pss, real.record.vm.pid)
            snapshot = await watch.sample()
            watch.close()
            after = await asyncio.to_thread(_pss, real.record.vm.pid)
            if after == pytest.approx(before, rel=0.002):
                break
            await asyncio.sleep(0.2)
        else:
            pytest.fail("the memory of a stopped QEMU never held still")
    memory = {p.label_values[0]: p.value for p in snapshot.points if p.metric is microvm.HOST_MEMORY_BYTES}
    parts = memory["guest_ram"] + memory["template_shared"] + memory["vmm"]
    assert parts == pytest.approx(after, rel=0.01)


def _pss(pid: int) -> int:
    """The process's proportional share of resident memory in bytes, as the kernel adds it up itself."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
