"""Debian's own qemu-ga in a guest of its own, and the fake that stands for it in the scenarios, under one suite."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collector import channel
from collector.catalogue import CATALOGUE, OF_STOCK_AGENT
from collector.sources import stockagent
from collector.sources.guestport import GuestReader
from exporter.lineprotocol import view_of
from runtime import record
from tests.contract.agent_vm import wait_for
from tests.contract.stock_vm import DISK_BYTES, StockVm
from tests.fakevm.process import exporter
from tests.fakevm.scenario import CONTAINER_ID, GOLDEN, base_record, fake_vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.e2e

BOOT_TIMEOUT_S = 90.0
SOCKET = "agent-stats.sock"
ASKED = ("hyper-status", *stockagent.DEEP_COMMANDS)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockVm]:
    """The VM, in a state directory as a launcher that is none of ours would write it."""
    place = tmp_path_factory.mktemp("stock") / "containers" / CONTAINER_ID
    place.mkdir(parents=True)
    with StockVm(place) as vm:
        start_ticks = int(Path(f"/proc/{vm.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        of_qemu = record.Vm(vm.process.pid, start_ticks, 128 << 20, 1, "tcg", "microvm", 0, "none", "cold")
        record.write(place, base_record(vm=of_qemu, network=None))
        wait_for((place / SOCKET).exists, "QEMU listens")
        yield vm


@contextlib.asynccontextmanager
async def _fake(tmp_path: Path) -> AsyncIterator[Path]:
    vm = fake_vm(tmp_path, "qemu-ga")
    await vm.start()
    try:
        yield vm.directory / SOCKET
    finally:
        await vm.stop()


async def _answers(path: Path) -> dict[str, Any]:
    """What an agent answers to a parser reset, a synchronisation and each command."""
    agent = await channel.connect(path, channel.Budget())
    try:
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            agent.write(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":7}}\n')
            found = {"\xff": json.loads(await agent.read_line())}
            line = await agent.read_line()
            assert line[:1] == b"\xff", "the mark that old answers end at"
            found["guest-sync-delimited"] = json.loads(line[1:])
            for command in ASKED:
                agent.write(json.dumps({"execute": command}).encode() + b"\n")
                found[command] = json.loads(await agent.read_line())
    finally:
        agent.close()
    return found


def _shape(value: Any) -> Any:
    """Types in place of values; of a list what its entries have together."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        shapes = [_shape(one) for one in value]
        return [{key: one[key] for one in shapes for key in one}] if shapes else []
    return type(value)


def _fits(part: Any, whole: Any) -> bool:
    """Whether nothing of one shape is missing, or of another type, in the other one."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and _fits(one, whole[key]) for key, one in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and (not part or (bool(whole) and _fits(part[0], whole[0])))
    return bool(part == whole)


async def test_the_fake_answers_in_the_shapes_of_the_real_one(stock: StockVm, tmp_path: Path) -> None:
    real = await _answers(stock.place / SOCKET)
    async with _fake(tmp_path) as path:
        fake = await _answers(path)
    assert real["hyper-status"]["error"]["class"] == fake["hyper-status"]["error"]["class"] == "CommandNotFound"
    assert real["\xff"]["error"]["class"] == fake["\xff"]["error"]["class"] == "GenericError"
    assert [name for name in real if not _fits(_shape(fake[name]), _shape(real[name]))] == []


async def test_the_reader_finds_the_same_in_both(stock: StockVm, tmp_path: Path) -> None:
    async with _fake(tmp_path) as path:
        samples = []
        for place in (path, stock.place / SOCKET):
            reader = GuestReader(place, "/sys/fs/cgroup/container", channel.Budget())
            async with asyncio.timeout(20):
                await reader.read()
                samples.append(await reader.read(deep=True))
            reader.close()
    known = [{name for name in sample.__slots__ if getattr(sample, name) not in (None, (), {})} for sample in samples]
    assert known[0] == known[1]
    assert all(disk in samples[1].disks for disk in ("vda", "vdb"))


async def test_a_wedged_agent_is_synchronised_again(stock: StockVm) -> None:
    reader = GuestReader(stock.place / SOCKET, "/sys/fs/cgroup/container", channel.Budget())
    async with asyncio.timeout(20):
        before = await reader.read()
    stock.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await reader.read()
    finally:
        stock.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(20):
        after = await reader.read()
    reader.close()
    assert after.time_ns > before.time_ns
    assert after.interfaces[0].tx_packets >= before.interfaces[0].tx_packets > 0


async def test_what_the_reference_promises_is_exported(stock: StockVm) -> None:
    async with exporter(stock.place.parents[1], "--deep") as process:
        await process.until(r"^microvm_source_up\{.*source=\"guest\"\} 1", BOOT_TIMEOUT_S)
        # Disks are asked of QEMU and of the guest in one round; none is under way in that.
        text = await process.until(r"^microvm_block_bytes_total")
    told: dict[str, dict[str, float]] = {}
    for family in parse_text(text):
        for one in family.samples:
            kind = next((one.labels[key] for key in ("device", "interface", "cpu") if key in one.labels), "")
            told.setdefault(one.name, {})[f"{kind} {one.labels.get('op', '')}".strip()] = one.value
    of_guest = {name for name in told if name in CATALOGUE and view_of(CATALOGUE[name].source) == "guest"}
    assert of_guest == {metric.name for metric in OF_STOCK_AGENT}
    assert set(told["container_network_transmit_packets_total"]) == {"eth0"}
    assert told["container_network_transmit_packets_total"]["eth0"] >= 1
    for op in ("read", "write"):
        inside = told[f"container_fs_{op}s_bytes_total"]["/dev/vdb"]
        assert inside == told["microvm_block_bytes_total"][f"writable {op}"] > 0, "by QEMU's count and the guest's"
    assert 0 < told["container_fs_usage_bytes"]["/dev/vdb"] < told["container_fs_limit_bytes"]["/dev/vdb"] < DISK_BYTES
    assert told["container_fs_limit_bytes"]["/dev/vdb"] > DISK_BYTES // 2
    assert 0 < told["microvm_guest_cpu_seconds_total"]["cpu00"] < time.monotonic() - stock.began
    assert abs(told["microvm_guest_clock_skew_seconds"][""]) < BOOT_TIMEOUT_S, "seconds, and of the same era"


def test_the_scenario_has_what_the_reference_promises() -> None:
    text = (GOLDEN / "qemu-ga/expected.prom").read_text()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) & set(CATALOGUE)
    assert {name for name in names if view_of(CATALOGUE[name].source) == "guest"} == {
        metric.name for metric in OF_STOCK_AGENT
    }
