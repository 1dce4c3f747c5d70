"""The fake agent and the real one under one suite, and what the real one is asked cross-checked inside the guest."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from collector import channel, details, reconcile
from collector.catalogue import EXPORTED
from collector.errors import UnreachableError
from collector.sources import httpanswer
from collector.sources.fetch import fetch
from collector.sources.guestport import GuestReader
from tests.contract import agent_vm
from tests.fakevm import FakeApp
from tests.fakevm.fleet import fleet
from tests.fakevm.scenario import base_record, fake_vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from collector.sources.fetch import Fetched
    from collector.sources.guest import GuestSample

pytestmark = pytest.mark.e2e

CGROUP = "/sys/fs/cgroup/container"
LIMITS = {
    "memory_swap_max": 0, "cpu_quota_us": 50_000, "cpu_period_us": 100_000,
    "cpu_weight": 100, "pids_max": None,
}  # fmt: skip


@dataclass
class Agent:
    """Either agent: its socket, and how to wedge it and let it go on."""

    socket: Path
    wedge: Callable[[], Any]
    go_on: Callable[[], Any]


@contextlib.asynccontextmanager
async def _fake(tmp_path: Path) -> AsyncIterator[Agent]:
    vm = fake_vm(tmp_path)
    await vm.start()
    try:
        yield Agent(
            vm.directory / "agent-stats.sock", lambda: vm.faults.update(guest="mute"), lambda: vm.faults.pop("guest")
        )
    finally:
        await vm.stop()


@contextlib.asynccontextmanager
async def _one_of_many(tmp_path: Path) -> AsyncIterator[Agent]:
    async with fleet(tmp_path, 1) as vms:
        yield Agent(vms.directory_of(0) / "agent-stats.sock", lambda: vms.tell("stop 1"), lambda: vms.tell("go"))


@contextlib.asynccontextmanager
async def _guest(
    *args: str, memory_mib: int = 128, memory_max: int = 48 << 20
) -> AsyncIterator[tuple[Agent, agent_vm.GuestVm]]:
    vm = await asyncio.to_thread(agent_vm.GuestVm, memory_mib=memory_mib)
    try:
        vm.stats.close()  # a port serves one client
        await asyncio.to_thread(vm.start, *args, cgroup={**LIMITS, "memory_max": memory_max})
        yield (
            Agent(
                vm.place / "agent-stats.sock",
                lambda: vm.process.send_signal(signal.SIGSTOP),
                lambda: vm.process.send_signal(signal.SIGCONT),
            ),
            vm,
        )
    finally:
        vm.close()


@contextlib.asynccontextmanager
async def _real(tmp_path: Path) -> AsyncIterator[Agent]:
    del tmp_path
    async with _guest("sleep", "600") as (agent, _):
        yield agent


async def _read(reader: GuestReader, timeout_s: float = 20.0, *, deep: bool = False) -> GuestSample:
    async with asyncio.timeout(timeout_s):
        return await reader.read(deep=deep)


def _settled(sample: GuestSample) -> bool:
    assert sample.memory is not None
    assert sample.root is not None
    assert sample.details is not None
    if (sample.details.processes, sample.threads) != (2, 2):  # a command of the script ended between the two files
        return False
    return sample.memory[b"file"] >= 8 << 20 and sample.root.used_bytes >= 8 << 20


@pytest.fixture(params=[_fake, _one_of_many, _real], ids=["fake", "one of many", "real"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    async with request.param(tmp_path) as one:
        yield one


async def test_a_sample_makes_every_guest_metric_but_network(agent: Agent) -> None:
    reader = GuestReader(agent.socket, CGROUP, channel.Budget())
    first, second = await _read(reader), await _read(reader, deep=True)
    reader.close()
    record = base_record()
    points = [*reconcile.guest_points(record, second), *details.guest_details(record, second)]
    made = {point.metric.name for point in points}
    elsewhere = {"container_oom_events_total", "microvm_oom_total", "container_cpu_load_average_10s"}
    elsewhere.add("container_file_descriptors")  # so few are none to the kernel's coarse count
    interfaces = {metric.name for metric in EXPORTED if metric.labels == ("interface",)}
    asked = {metric.name for metric in EXPORTED if metric.source.startswith("guest:")} - elsewhere - interfaces
    assert asked - made == set()
    assert not {point.metric.tier for point in reconcile.guest_points(record, first)} - {"default"}
    assert second.details is not None
    assert second.details.cpu is not None
    assert second.details.cpu.running is not None
    assert second.details.cpu.running >= 1, "the agent that reads it"
    assert second.uptime_ns >= first.uptime_ns
    assert second.boot_ns is not None
    assert 0 < second.boot_ns < 120e9


PAGE = b"app_up 1\n" * 20_000
SERVER = "mkdir /www; yes 'app_up 1' | head -n 20000 > /www/metrics; httpd -p 127.0.0.1:8080 -h /www; exec sleep 600"


@contextlib.asynccontextmanager
async def _fake_server(tmp_path: Path) -> AsyncIterator[Path]:
    vm = fake_vm(tmp_path)
    vm.app = FakeApp({8080: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE})
    await vm.start()
    try:
        yield vm.directory / "agent-stats.sock"
    finally:
        await vm.stop()


@contextlib.asynccontextmanager
async def _real_server(tmp_path: Path) -> AsyncIterator[Path]:
    del tmp_path
    async with _guest("sh", "-c", SERVER) as (agent, _):
        yield agent.socket


@pytest.mark.parametrize("server", [_fake_server, _real_server], ids=["fake", "real"])
async def test_a_fetch_brings_what_a_server_in_the_guest_says(server: Any, tmp_path: Path) -> None:
    async with server(tmp_path) as path:
        reader = GuestReader(path, CGROUP, channel.Budget())
        with pytest.raises(UnreachableError):
            await reader.ask("hyper-fetch", {"fetch": 1, "port": 8080})  # a sample opens the connection
        await _read(reader)

        async def get(port: int, send: str, max_bytes: int = 1 << 20) -> Fetched:
            return await fetch(reader.ask, port=port, send=send, deadline_s=20, max_bytes=max_bytes)

        request = httpanswer.request(8080, "/metrics")
        async with asyncio.timeout(30):
            while (whole := await get(8080, request)).error is not None or b" 200 " not in whole.data[:20]:
                await _read(reader)
        answer = httpanswer.parse_answer(whole.data, ended=True)
        assert (answer.status, answer.body, answer.whole, whole.truncated) == (200, PAGE, True, False)
        assert whole.connect_s is not None
        assert whole.first_byte_s is not None
        assert 0 < whole.connect_s <= whole.first_byte_s <= whole.total_s
        cut = await get(8080, request, 5000)
        assert (len(cut.data), cut.truncated, cut.error) == (5000, True, None)
        connected = await get(8080, "")
        assert (connected.data, connected.error, connected.first_byte_s) == (b"", None, None)
        refused = await get(8081, "")
        assert (refused.error, refused.connect_s) == ("ECONNREFUSED", None)
        with pytest.raises(UnreachableError, match="BadState"):
            await reader.ask("hyper-fetched", {"fetch": 7})
        assert (await _read(reader)).memory_bytes, "samples go on over the same connection"
        reader.close()


async def test_a_wedged_agent_is_synchronised_again(agent: Agent) -> None:
    reader = GuestReader(agent.socket, CGROUP, channel.Budget())
    await _read(reader)
    agent.wedge()
    for _ in range(4):
        with pytest.raises(TimeoutError):
            await _read(reader, 0.2)
    agent.go_on()
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(TimeoutError, UnreachableError):
            sample = await _read(reader, 5)
            break
        assert time.monotonic() < deadline, "the agent did not come back"
    # An answer from before the pause would be as old as the pause.
    again = await _read(reader)
    assert 0 <= again.uptime_ns - sample.uptime_ns < 10e9
    reader.close()


async def test_values_are_those_that_tools_in_the_guest_show() -> None:
    script = "dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sync; sleep 600 & exec sleep 600"
    async with _guest("sh", "-c", script) as (agent, vm):
        reader = GuestReader(agent.socket, CGROUP, channel.Budget())
        deadline = time.monotonic() + 30
        while not _settled(sample := await _read(reader, deep=True)):
            assert time.monotonic() < deadline, "the container did not write its file"

        def shown(*command: str) -> int:
            code, out, _ = vm.run(*command)
            assert code == 0
            return int(out.split()[0])

        # exec adds a process of its own to the group while it looks.
        inside = await asyncio.to_thread(shown, "cat", "/sys/fs/cgroup/memory.current")
        faults = sample.memory[b"pgfault"] if sample.memory else -1
        shown_faults = await asyncio.to_thread(
            shown, "sh", "-c", "awk '$1 == \"pgfault\" {print $2}' /sys/fs/cgroup/memory.stat"
        )
        most_threads = await asyncio.to_thread(shown, "cat", "/proc/sys/kernel/threads-max")
        size_kb = await asyncio.to_thread(shown, "sh", "-c", "df -k / | tail -n 1 | awk '{print $2}'")
        reader.close()
    assert sample.threads == 2
    assert sample.details is not None
    assert sample.details.threads_max == most_threads
    assert sample.details.tcp_states == {}
    assert sample.details.sockets == 2  # those by which PID 1 sets up the network
    assert 0 < faults <= shown_faults
    assert sample.memory_bytes == pytest.approx(inside, rel=0.1)
    assert sample.root is not None
    assert sample.root.size_bytes == size_kb * 1024
    assert sample.io is not None
    assert {"vda", "vdb"} <= set(sample.io)


@pytest.mark.parametrize(
    ("memory_mib", "memory_max", "kills"),
    [(256, 48 << 20, {"container": 1, "guest": 0}), (128, 512 << 20, {"container": 0, "guest": 1})],
    ids=["beyond its limit", "guest too small"],
)
async def test_an_oom_kill_is_told_with_its_layer(memory_mib: int, memory_max: int, kills: dict[str, int]) -> None:
    # The shell outlives its child, so that the guest is still there to be asked.
    script = "tail /dev/zero; sleep 600"
    async with _guest("sh", "-c", script, memory_mib=memory_mib, memory_max=memory_max) as (agent, _):
        reader = GuestReader(agent.socket, CGROUP, channel.Budget())
        deadline = time.monotonic() + 40
        while not sum(reconcile.guest_oom_kills(sample := await _read(reader)).values()):
            assert time.monotonic() < deadline, f"no OOM kill: {sample.memory_events}"
        reader.close()
    assert reconcile.guest_oom_kills(sample) == kills
    assert sample.memory_peak_bytes is not None
    assert sample.memory_peak_bytes <= memory_max
