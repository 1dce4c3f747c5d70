from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.catalogue import microvm
from collector.channel import Budget
from collector.definitions.microvm import SHUTDOWN_REASONS
from collector.details import vmm_details
from collector.errors import MalformedError
from collector.sources import qmp
from collector.sources.vmm import Details, VmmReader, VmmSample, event_name
from tests.fakevm import running
from tests.fakevm.scenario import NOW_S, fake_vm, read_json

if TYPE_CHECKING:
    from pathlib import Path


def devices() -> tuple[qmp.BlockDevice, ...]:
    return qmp.parse_blockstats(read_json("base", "qmp.json")["query-blockstats"])


def test_errors_and_latency_of_a_disk() -> None:
    image, writable = devices()
    assert image.errors == {"read": 0, "write": 0, "flush": 0}
    assert writable.merged == {"read": 2, "write": 0}
    assert set(image.latency) == {"read"}
    assert sum(writable.latency["write"].bins) == writable.writes


def test_buckets_add_up_and_end_at_infinity() -> None:
    points = [*vmm_details(VmmSample("running", Details(devices())))]
    buckets = [
        (p.label_values[2], p.value)
        for p in points
        if p.metric.name == f"{microvm.BLOCK_LATENCY_SECONDS.name}_bucket"
        and p.label_values[:2] == ("writable", "write")
    ]
    assert [le for le, _ in buckets] == ["5e-05", "0.0002", "0.001", "0.005", "0.02", "0.1", "0.5", "2.0", "+Inf"]
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1][1] == devices()[1].writes
    assert not [p for p in points if p.metric.name.endswith(("_count", "_sum"))], "neither without the other"


def test_a_disk_that_nothing_was_asked_of_has_no_series() -> None:
    spare = qmp.BlockDevice("volume0", 0, 0, 0, 0, 0, qdev="volume0", errors={"read": 0})
    details = Details((*devices(), spare), {("volume0", 0): 0, ("writable", 0): 2})
    points = [*vmm_details(VmmSample("running", details))]
    assert {p.label_values[0] for p in points} == {"image", "writable"}
    assert [p.value for p in points if p.metric is microvm.VIRTQUEUE_INFLIGHT] == [2]


def test_exits_by_reason_add_up_to_what_kvm_counts() -> None:
    stats = [{"name": "exits", "value": 100}, {"name": "io_exits", "value": 30}, {"name": "halt_poll_ns", "value": 7}]
    answer = [{"provider": "kvm", "stats": stats}, {"provider": "kvm", "stats": [{"name": "exits", "value": 5}]}]
    assert qmp.parse_kvm_exits(answer) == {"io": 30, "other": 75}
    assert qmp.parse_kvm_exits([]) == {}
    lying = [{"stats": [{"name": "exits", "value": 1}, {"name": "io_exits", "value": 9}]}]
    assert qmp.parse_kvm_exits(lying) == {"io": 9, "other": 0}


def test_devices_without_an_id_go_by_their_kind() -> None:
    answer = [
        {"name": "virtio-net", "path": "/machine/peripheral-anon/device[5]"},
        {"name": "virtio-serial", "path": "/machine/peripheral-anon/device[1]"},
        {"name": "virtio-blk", "path": "/machine/peripheral/image"},
        {"name": "virtio-blk", "path": "/machine/peripheral/writable/virtio-backend"},
    ]
    assert [device.name for device in qmp.parse_virtio(answer)] == ["virtio-net", "image", "writable"]


UNTOLD = 2**64 - 1


def test_what_a_balloon_does_not_tell_is_absent() -> None:
    stats = {"stat-free-memory": 4096, "stat-swap-in": UNTOLD, "stat-total-memory": 0, "stat-htlb-pgfail": 3}
    told = qmp.parse_balloon_stats({"stats": stats, "last-update": 7})
    assert told == qmp.BalloonStats(7, {"stat-free-memory": 4096, "stat-total-memory": 0})
    assert qmp.parse_balloon_stats({"stats": stats, "last-update": 0}) is None
    points = [*vmm_details(VmmSample("running", Details((), balloon_stats=told.values)))]
    assert {(p.label_values, p.value) for p in points} == {(("free",), 4096), (("total",), 0)}
    with pytest.raises(MalformedError):
        qmp.parse_balloon_stats({"stats": {**stats, "stat-swap-in": UNTOLD + 1}, "last-update": 7})


def test_a_balloon_is_found_by_its_type_on_either_transport() -> None:
    others = [{"name": "type", "type": "string"}, {"name": "virtio-balloon", "type": "child<virtio-blk-device>"}]
    for kind in ("virtio-balloon-device", "virtio-balloon-pci", "virtio-balloon-pci-non-transitional"):
        answer = [*others, {"name": "device[5]", "type": f"child<{kind}>"}, {"name": "b", "type": f"child<{kind}>"}]
        assert qmp.parse_balloon_path("/machine/peripheral-anon", answer) == "/machine/peripheral-anon/device[5]"
    assert qmp.parse_balloon_path("/machine/peripheral", others) is None


async def test_a_balloon_that_somebody_else_asks_keeps_its_pace(tmp_path: Path) -> None:
    vm = fake_vm(tmp_path, "deep-kvm")
    clock = [NOW_S]
    reader = VmmReader(vm.directory / vm.record.sockets.qmp_stats, Budget(), clock=lambda: clock[0])
    async with running(vm):
        stats = []
        for late_s in (0, 14, 2):
            clock[0] += late_s
            details = (await reader.read(deep=True)).details
            assert details is not None
            stats.append(bool(details.balloon_stats))
        reader.close()
    assert "qom-set" not in vm.requests
    assert stats == [True, True, False], "it is asked every 5 s, and has not answered three times"


def test_a_shutdown_is_told_with_a_reason_that_is_known() -> None:
    for reason in SHUTDOWN_REASONS:
        assert event_name({"event": "SHUTDOWN", "data": {"reason": reason}}) == f"shutdown: {reason}"
    assert event_name({"event": "SHUTDOWN", "data": {"reason": "x" * 999}}) == "shutdown"
    assert event_name({"event": "SHUTDOWN", "data": None}) == "shutdown"
    assert event_name({"event": "RTC_CHANGE"}) is None
