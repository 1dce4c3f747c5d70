"""The two tiers: what each exports, what the default one does not even ask for, and what makes a container deep."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collector.catalogue import CATALOGUE, container, hyper, microvm
from collector.rounds import Collector
from collector.watch import MAX_SERIES, Settings, Slot
from exporter.exposition import Exposition
from exporter.lineprotocol import view_of
from scripts.stack.services import services
from scripts.stack.settings import Settings as Stack
from tests import monitoring
from tests.fakevm import running
from tests.fakevm.process import exporter
from tests.fakevm.scenario import NOW_S, fake_vm, host_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from collector.metric import Metric
    from collector.snapshot import ContainerSnapshot, Point, Snapshot
    from tests.fakevm import FakeVm

OTHER_ID = "4a" * 32
MAX_DEFAULT_SERIES = 60


def collector(tmp_path: Path, **settings: Any) -> Collector:
    root = host_root("cgroup-v2", tmp_path / "root")
    return Collector(tmp_path / "state", Settings("node1", root, deadline_s=0.5, clock=lambda: NOW_S, **settings))


def ordinary(tmp_path: Path, container_id: str = "3f" * 32) -> FakeVm:
    """One interface, a writable layer, no quota."""
    vm = fake_vm(tmp_path / "state", "cgroup-v2", container_id)
    vm.record = replace(vm.record, limits=replace(vm.record.limits, cpu_quota=None))
    return vm


def values(snapshot: ContainerSnapshot, metric: Metric) -> dict[tuple[str, ...], float]:
    return {point.label_values: point.value for point in snapshot.points if point.metric is metric}


def value(snapshot: Snapshot, metric: Metric) -> float:
    return next(point.value for point in snapshot.points if point.metric is metric)


def deep_points(snapshot: ContainerSnapshot) -> set[str]:
    return {p.metric.name for p in snapshot.points if p.metric.tier == "deep"}


async def second(one: Collector, root: Path) -> Snapshot:
    """A snapshot after which everything that needs two samples is there."""
    await one.round()
    while True:
        used = round(time.monotonic() * 1e6)
        (root / "sys/fs/cgroup/hyper/3f/cpu.stat").write_text(f"usage_usec {used}\n")
        snapshot = await one.round()
        if all(values(c, microvm.OVERHEAD_CPU_RATIO) for c in snapshot.containers.values()):
            return snapshot


async def test_the_default_tier_has_few_series_and_asks_for_no_more(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    one = collector(tmp_path)
    async with running(vm):
        snapshot = await second(one, tmp_path / "root")
        one.close()
    found = snapshot.containers[vm.record.id]
    assert not found.down
    assert deep_points(found) == set()
    assert len(found.points) + len(found.sampled_at) <= MAX_DEFAULT_SERIES
    assert set(vm.requests) == {
        "qmp_capabilities", "query-status", "query-cpus-fast", "query-iothreads",
        "guest-sync-delimited", "hyper-status", "hyper-read",
    }  # fmt: skip
    assert vm.requests.count("hyper-status") == 1, "what never changes is asked for once"
    assert value(snapshot, hyper.COLLECTOR_DEEP_CONTAINERS) == 0


async def test_default_metrics_are_the_same_in_both_tiers(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    texts = []
    for deep in (False, True):
        one = collector(tmp_path, deep=deep)
        async with running(vm):
            snapshot = (await one.round()).containers[vm.record.id]
            one.close()
        texts.append({(p.metric.name, p.label_values, p.value) for p in snapshot.points})
    assert texts[0] < texts[1]
    assert {name for name, _, _ in texts[0]} <= {m.name for m in CATALOGUE.values() if m.tier == "default"}


async def test_a_label_makes_one_container_deep(tmp_path: Path) -> None:
    asked, other = ordinary(tmp_path), ordinary(tmp_path, OTHER_ID)
    asked.record = replace(asked.record, labels={"hyper.metrics.tier": "deep"})
    one = collector(tmp_path)
    async with running(asked), running(other):
        snapshot = await one.round()
        one.close()
    assert len(deep_points(snapshot.containers[asked.record.id])) > 40
    assert deep_points(snapshot.containers[OTHER_ID]) == set()
    assert value(snapshot, hyper.COLLECTOR_DEEP_CONTAINERS) == 1


class Alertmanager(http.server.ThreadingHTTPServer):
    """Answers GET /api/v2/alerts with what `answer` gives; it is given what to write with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.alerts: list[dict[str, Any]] = []
        self.answer: Callable[[_Handler], None] = _Handler.honest
        self.paths: list[str] = []
        self.ended = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Alertmanager

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.answer(self)

    def honest(self) -> None:
        self.send(json.dumps(self.server.alerts).encode())

    def hang(self) -> None:
        self.server.ended.wait(30)

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.ended.wait(0.05):
                self.wfile.write(b" ")

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"[" * 65536)

    def deep(self) -> None:
        self.send(b"[" * 200_000)

    def strange(self) -> None:
        self.send(b'[{"labels": {"id": ["x"]}}, {"labels": 7}]')

    def refuse(self) -> None:
        self.send(b"[]", 503)

    def send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the collector may have gone
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def alertmanager() -> Iterator[Alertmanager]:
    server = Alertmanager()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Alertmanager) -> str:
    return f"http://127.0.0.1:{server.server_port}"


async def until(one: Collector, condition: Callable[[Snapshot], bool]) -> Snapshot:
    async with asyncio.timeout(15):
        while True:
            snapshot = await one.round()
            if condition(snapshot):
                return snapshot


async def test_a_container_is_deep_while_it_has_an_alert(tmp_path: Path, alertmanager: Alertmanager) -> None:
    vm, other = ordinary(tmp_path), ordinary(tmp_path, OTHER_ID)
    one = collector(tmp_path, alertmanager_url=url(alertmanager) + "/")
    alertmanager.alerts = [{"labels": {"alertname": "HyperOomKill", "id": OTHER_ID}}, {"labels": {"instance": "x"}}]
    async with running(vm), running(other):
        snapshot = await until(one, lambda s: bool(deep_points(s.containers[OTHER_ID])))
        assert deep_points(snapshot.containers[vm.record.id]) == set()
        assert value(snapshot, hyper.COLLECTOR_ALERTMANAGER_FAILURES_TOTAL) == 0
        alertmanager.alerts = []
        await until(one, lambda s: not deep_points(s.containers[OTHER_ID]))
        await one.aclose()
    assert set(alertmanager.paths) == {"/api/v2/alerts?active=true&silenced=false&inhibited=false"}


async def test_the_stack_s_exporter_is_deep_while_the_stack_s_alertmanager_has_an_alert(tmp_path: Path) -> None:
    """With the settings that the stack gives the exporter, and a real Alertmanager."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    by_name = {one.name: one for one in services(Stack(run_dir=tmp_path, data_dir=tmp_path, alertmanager_port=port))}
    environment = {k: v for k, v in by_name["hyper-exporter"].environment.items() if "INFLUX" not in k}
    config = tmp_path / "silent.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    argv = [f"--config.file={config}" if "--config.file" in word else word for word in by_name["alertmanager"].argv]
    vm = ordinary(tmp_path)
    root = str(host_root("cgroup-v2", tmp_path / "root"))
    deep = rf'^container_cpu_user_seconds_total{{id="{vm.record.id}"'
    with monitoring.program(tmp_path / "alertmanager.log", "Listening on", *argv) as alerts:
        async with running(vm), exporter(tmp_path / "state", "--root", root, environment=environment) as process:
            before = await process.until(r"^hyper_collector_deep_containers 0$")
            assert re.search(deep, before, re.MULTILINE) is None
            alert = [{"labels": {"alertname": "HyperOomKill", "id": vm.record.id}}]
            await asyncio.to_thread(httpx.post, f"{alerts}/api/v2/alerts", json=alert)
            text = await process.until(deep)
            assert "\nhyper_collector_alertmanager_failures_total 0\n" in text


@pytest.mark.parametrize("fault", ["hang", "drip", "endless", "deep", "strange", "refuse"])
async def test_an_alertmanager_that_misbehaves_is_a_number(
    fault: str, tmp_path: Path, alertmanager: Alertmanager, caplog: pytest.LogCaptureFixture
) -> None:
    vm = ordinary(tmp_path)
    one = collector(tmp_path, alertmanager_url=url(alertmanager))
    alertmanager.alerts = [{"labels": {"id": vm.record.id}}]
    async with running(vm):
        await until(one, lambda s: bool(deep_points(s.containers[vm.record.id])))
        alertmanager.answer = getattr(_Handler, fault)
        started = time.monotonic()
        snapshot = await one.round()
        assert time.monotonic() - started < 5, "no round waits for Alertmanager"
        assert deep_points(snapshot.containers[vm.record.id]), "one missed answer changes nothing"
        snapshot = await until(one, lambda s: not deep_points(s.containers[vm.record.id]))
        assert not snapshot.containers[vm.record.id].down
        assert value(snapshot, hyper.COLLECTOR_ALERTMANAGER_FAILURES_TOTAL) >= 3
        await one.aclose()
    assert not [entry for entry in caplog.records if "defect" in entry.message]


async def test_events_are_counted_once_each(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    one = collector(tmp_path)
    async with running(vm):
        before = await one.round()
        vm.events += [
            {"event": "BLOCK_IO_ERROR", "data": {"device": "", "operation": "write", "action": "report"}},
            {"event": "RTC_CHANGE", "data": {"offset": 1}},
            {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-panic"}},
            {"event": "SHUTDOWN", "data": {"guest": True, "reason": "a made-up reason"}},
            {"event": "BLOCK_IO_ERROR"},
        ]
        await one.round()
        vm.faults["vmm"] = "closes"
        await one.round()
        del vm.faults["vmm"]
        after = await until(one, lambda s: not s.containers[vm.record.id].down)
        one.close()
    assert values(before.containers[vm.record.id], microvm.EVENTS_TOTAL) == {}
    assert values(after.containers[vm.record.id], microvm.EVENTS_TOTAL) == {
        ("block_io_error",): 2,
        ("shutdown: guest-panic",): 1,
        ("shutdown",): 1,
    }


async def test_a_histogram_that_there_is_goes_on_and_others_are_made(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    for entry in vm.qmp["query-blockstats"]:
        entry["stats"].pop("rd_latency_histogram", None)
    one = collector(tmp_path, deep=True)
    async with running(vm):
        await one.round()
        await one.round()
        one.close()
    # The writable disk still has those of its writes and flushes: setting any would empty them.
    assert vm.requests.count("block-latency-histogram-set") == 1


async def test_series_of_a_container_have_a_budget(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    disk = vm.qmp["query-blockstats"][1]
    vm.qmp["query-blockstats"] = [{**disk, "node-name": f"disk{n}"} for n in range(100)]
    bounds = [n + 1 for n in range(31)]
    for kind in ("rd", "wr", "flush"):
        disk["stats"][f"{kind}_latency_histogram"] = {"boundaries": bounds, "bins": [0] * 32}
    one = collector(tmp_path, deep=True)
    async with running(vm):
        snapshot = await one.round()
        one.close()
    assert len(snapshot.containers[vm.record.id].points) == MAX_SERIES
    assert value(snapshot, hyper.COLLECTOR_SERIES_DROPPED_TOTAL) > 0
    assert values(snapshot.containers[vm.record.id], container.MEMORY_USAGE_BYTES)


async def test_a_stock_agent_is_asked_what_it_knows_and_comes_back(tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "qemu-ga")
    one = collector(tmp_path)
    async with running(vm):
        first = (await one.round()).containers[vm.record.id]
        vm.faults["guest"] = "mute"
        assert "guest" in (await one.round()).containers[vm.record.id].down
        del vm.faults["guest"]
        after = (await until(one, lambda s: not s.containers[vm.record.id].down)).containers[vm.record.id]
        one.close()
    assert values(first, container.NETWORK_RECEIVE_BYTES_TOTAL) == {("eth0",): 110}
    assert values(first, container.MEMORY_USAGE_BYTES) == {}, "it knows no control group"
    assert values(after, container.FS_USAGE_BYTES) == values(first, container.FS_USAGE_BYTES)
    assert vm.requests.count("hyper-status") == 1
    assert "hyper-read" not in vm.requests
    assert "guest-get-cpustats" not in vm.requests, "that is for the deep tier"


async def test_what_a_stock_agent_cannot_answer_is_absent_alone(tmp_path: Path) -> None:
    vm = fake_vm(tmp_path / "state", "qemu-ga")
    vm.unable = frozenset({"guest-get-fsinfo"})
    one = collector(tmp_path)
    async with running(vm):
        found = (await one.round()).containers[vm.record.id]
        one.close()
    assert found.down == {}
    assert values(found, container.FS_USAGE_BYTES) == {}
    assert values(found, container.NETWORK_RECEIVE_BYTES_TOTAL) == {("eth0",): 110}


async def test_a_metric_s_source_begins_with_the_view_that_it_is_of(tmp_path: Path) -> None:
    """By that InfluxDB's lines have the time of the sample."""
    vm = fake_vm(tmp_path / "state", "deep-kvm")
    vm.record = replace(vm.record, cgroups=ordinary(tmp_path).record.cgroups)
    one = collector(tmp_path, deep=True)
    seen: dict[str, set[str]] = {}

    def hit(slot: Slot, points: Iterable[Point], at_s: float) -> None:
        given = list(points)
        seen[slot.name] = {point.metric.name for point in given}
        original(slot, given, at_s)

    original = Slot.hit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "hit", hit)
        async with running(vm):
            snapshot = (await one.round()).containers[vm.record.id]
            one.close()
    assert set(seen) == set(microvm.SOURCES)
    told: dict[str | None, set[str]] = {view: set() for view in (None, *seen)}
    for point in snapshot.points:
        told[view_of(point.metric.source)].add(point.metric.name)
    nobody_s = told.pop(None)
    assert told == seen
    assert {"container_last_seen", "container_oom_events_total", "microvm_oom_total"} < nobody_s


async def test_both_formats_of_the_deep_tier_parse(tmp_path: Path) -> None:
    vm = ordinary(tmp_path)
    one = collector(tmp_path, deep=True)
    exposition = Exposition()
    async with running(vm):
        exposition.update(await one.round())
        one.close()
    text = parse_text(exposition.render("text", [], NOW_S).decode())
    openmetrics = list(parse_openmetrics(exposition.render("openmetrics", [], NOW_S).decode()))
    found, again = (
        {(s.name, tuple(sorted(s.labels.items())), s.value) for family in families for s in family.samples}
        for families in (text, openmetrics)
    )
    assert found == again
    latency = next(family for family in openmetrics if family.name == microvm.BLOCK_LATENCY_SECONDS.name)
    assert (latency.type, latency.unit) == ("histogram", "seconds")
