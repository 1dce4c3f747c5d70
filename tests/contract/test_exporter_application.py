"""The relay of an application's own metrics and probes of it, by the collector over a fake guest."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from collector import application
from collector.catalogue import container, microvm
from collector.rounds import Collector
from collector.watch import Settings
from exporter import lineprotocol
from exporter.exposition import Exposition
from tests.fakevm import FakeApp, running
from tests.fakevm.scenario import NOW_S, fake_vm, host_root

if TYPE_CHECKING:
    from pathlib import Path

    from collector.metric import Metric
    from collector.snapshot import ContainerSnapshot
    from tests.fakevm import FakeVm

OTHER_ID = "4a" * 32
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
LABELS = {"hyper.metrics": "9100", "hyper.probe": "http:9100/health"}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PATIENCE_S", 30.0)


def collector(tmp_path: Path) -> Collector:
    root = host_root("cgroup-v2", tmp_path / "root")
    return Collector(tmp_path / "state", Settings("node1", root, deadline_s=5.0, clock=lambda: NOW_S))


def labelled(tmp_path: Path, answer: bytes | str | None, container_id: str = "3f" * 32, **more: str) -> FakeVm:
    vm = fake_vm(tmp_path / "state", "cgroup-v2", container_id)
    vm.record = replace(vm.record, labels={**LABELS, **more})
    vm.app = FakeApp({9100: answer})
    return vm


def values(snapshot: ContainerSnapshot, metric: Metric) -> dict[tuple[str, ...], float]:
    return {point.label_values: point.value for point in snapshot.points if point.metric is metric}


def outcome(snapshot: ContainerSnapshot) -> dict[str, Any]:
    return {
        "up": values(snapshot, container.RELAY_UP).get(()),
        "relay": {reason for (reason,) in values(snapshot, container.RELAY_FAILURES_TOTAL)},
        "success": values(snapshot, container.PROBE_SUCCESS).get(()),
        "probe": {reason for (reason,) in values(snapshot, container.PROBE_FAILURES_TOTAL)},
        "families": [family.name for family in snapshot.relayed],
    }


async def test_labels_that_are_kept_are_a_label_s_choice(tmp_path: Path) -> None:
    hits = '# TYPE hits_total counter\nhits_total{path="/a",code="200"} 1\nhits_total{path="/b",code="200"} 2\n'
    text = f'{hits}t{{path="/a"}} 1\nt 2\n'
    vm = labelled(tmp_path, HEAD + text.encode(), **{"hyper.metrics.labels": "code"})
    one = collector(tmp_path)
    async with running(vm):
        snapshot = (await one.round()).containers[vm.record.id]
        one.close()
    assert [(s.labels, s.value) for family in snapshot.relayed for s in family.samples] == [((("code", "200"),), 3)]
    assert values(snapshot, container.RELAY_DROPPED_TOTAL) == {("ambiguous",): 2}


@pytest.mark.parametrize(
    ("answer", "relay", "probe"),
    [
        ("ECONNREFUSED", "refused", "refused"),
        ("ETIMEDOUT", "timeout", "timeout"),
        ("ECONNRESET", "closed", "closed"),
        (b"", "closed", "closed"),
        (b"SSH-2.0-x\r\n", "malformed", "malformed"),
        (b"HTTP/1.1 500 No\r\n\r\napp_up 1\n", "status", "status"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", "status", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "status", None),
        (HEAD + b"app_up 1\n\xff\n", "malformed", None),
        (HEAD + b"<html>\n", "malformed", None),
        (HEAD + b"app_up one\n", "malformed", None),
        (HEAD + b"a 1\n" * 30_000, "too_large", None),
        (HEAD + b"# " + b"x" * (2 << 20), "too_large", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\napp_up 1\n", "closed", None),
        (HEAD + b"# only a comment\n", None, None),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_an_application_that_misbehaves_is_a_number(
    answer: bytes | str, relay: str | None, probe: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = HEAD + b"app_up 1\n"
    vm = labelled(tmp_path, good)
    assert vm.app
    one = collector(tmp_path)
    async with running(vm):
        before = (await one.round()).containers[vm.record.id]
        vm.app.ports[9100] = answer
        now = (await one.round()).containers[vm.record.id]
        vm.app.ports[9100] = good
        after = (await one.round()).containers[vm.record.id]
        one.close()
    well = {"up": 1.0, "relay": set(), "success": 1.0, "probe": set(), "families": ["app_up"]}
    assert outcome(before) == well
    assert outcome(now) == {
        "up": float(relay is None),
        "relay": {relay} - {None},
        "success": float(probe is None),
        "probe": {probe} - {None},
        "families": [],
    }
    assert not now.down, "its guest is well"
    assert (outcome(after)["up"], outcome(after)["success"], outcome(after)["families"]) == (1.0, 1.0, ["app_up"])
    assert "defect" not in caplog.text


async def test_a_body_in_many_parts_is_whole(tmp_path: Path) -> None:
    body = "".join(f"# {'x' * 90} {n}\n" for n in range(8000)) + "last 7\n"
    vm = labelled(tmp_path, HEAD + body.encode())
    one = collector(tmp_path)
    async with running(vm):
        snapshot = (await one.round()).containers[vm.record.id]
        one.close()
    assert outcome(snapshot)["families"] == ["last"]
    assert vm.requests.count("hyper-fetched") >= 7


async def test_a_silent_application_delays_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, other = labelled(tmp_path, None), labelled(tmp_path, HEAD + b"app_up 1\n", OTHER_ID)
    one = collector(tmp_path)
    monkeypatch.setattr(application, "PATIENCE_S", 0.05)
    async with running(silent), running(other):
        await one.round()  # in which nobody knows yet
        monkeypatch.setattr(application, "PATIENCE_S", 3600.0)
        async with asyncio.timeout(60):
            snapshot = await one.round()
        one.close()
    found = snapshot.containers[silent.record.id]
    assert not found.down
    assert values(found, microvm.SOURCE_UP) == {("host",): 1.0, ("vmm",): 1.0, ("guest",): 1.0}
    assert outcome(snapshot.containers[OTHER_ID])["up"] == 1.0
    assert silent.requests.count("hyper-fetch") == 2, "relay and probe; neither is begun again while it waits"


@pytest.mark.parametrize("fault", ["mute", "garbage", "deep", "nan", "error", "closes", "oversize"])
async def test_an_agent_that_lies_about_a_fetch_is_a_failure_of_it(
    fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("collector.sources.guestport.ASK_DEADLINE_S", 0.2)
    vm = labelled(tmp_path, HEAD + b"app_up 1\n")
    one = collector(tmp_path)
    async with running(vm):
        await one.round()
        vm.faults["fetch"] = fault
        now = (await one.round()).containers[vm.record.id]
        del vm.faults["fetch"]
        deadline = time.monotonic() + 20
        while outcome(after := (await one.round()).containers[vm.record.id])["up"] != 1.0 or after.down:
            assert time.monotonic() < deadline, "it does not come back"
        one.close()
    assert outcome(now)["relay"] == {"agent"}
    assert outcome(now)["families"] == []
    assert values(now, microvm.SOURCE_UP)[("guest",)] == 1.0
    assert "defect" not in caplog.text


async def test_a_guest_that_does_not_answer_relays_nothing(tmp_path: Path) -> None:
    vm = labelled(tmp_path, HEAD + b"app_up 1\n")
    one = collector(tmp_path)
    async with running(vm):
        await one.round()
        vm.faults["guest"] = "closes"
        now = (await one.round()).containers[vm.record.id]
        one.close()
    assert outcome(now) == {"up": 0.0, "relay": {"agent"}, "success": 0.0, "probe": {"agent"}, "families": []}


async def test_a_container_that_is_paused_says_nothing_and_is_not_blamed(tmp_path: Path) -> None:
    vm = labelled(tmp_path, HEAD + b"app_up 1\n")
    one = collector(tmp_path)
    async with running(vm):
        assert outcome((await one.round()).containers[vm.record.id])["up"] == 1.0
        await vm.stop()
        vm.record = replace(vm.record, lifecycle=replace(vm.record.lifecycle, state="paused"))
        await vm.start()
        now = (await one.round()).containers[vm.record.id]
        one.close()
    assert outcome(now) == {"up": None, "relay": set(), "success": None, "probe": set(), "families": []}


async def test_an_agent_that_knows_no_fetch_is_told_of(tmp_path: Path) -> None:
    vm = labelled(tmp_path, None)
    vm.app = None
    one = collector(tmp_path)
    async with running(vm):
        now = (await one.round()).containers[vm.record.id]
        one.close()
    assert outcome(now)["relay"] == outcome(now)["probe"] == {"agent"}
    assert not now.down


async def test_wrong_labels_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vm = labelled(tmp_path, None, **{"hyper.metrics": "http", "hyper.probe": "exec:"})
    one = collector(tmp_path)
    async with running(vm):
        now = (await one.round()).containers[vm.record.id]
        one.close()
    assert outcome(now) == {"up": 0.0, "relay": {"label"}, "success": 0.0, "probe": {"label"}, "families": []}
    assert "exec:COMMAND expected" in caplog.text
    assert "hyper-fetch" not in vm.requests


async def test_an_interval_of_its_own_and_a_new_epoch(tmp_path: Path) -> None:
    vm = labelled(tmp_path, HEAD + b"app_up 1\n", **{"hyper.metrics.interval": "1h", "hyper.probe.interval": "1h"})
    one = collector(tmp_path)
    async with running(vm):
        for _ in range(3):
            snapshot = (await one.round()).containers[vm.record.id]
        assert vm.requests.count("hyper-fetch") == 2, "of the relay, and of the probe"
        assert outcome(snapshot)["families"] == ["app_up"]
        count = container.PROBE_DURATION_SECONDS.part("count")
        assert sum(point.value for point in snapshot.points if point.metric.name == count.name) == 1
        vm.record = replace(vm.record, lifecycle=replace(vm.record.lifecycle, epoch=2))
        await vm.stop()
        await vm.start()
        await one.round()
        one.close()
    assert vm.requests.count("hyper-fetch") == 4


async def test_tcp_probes_connect_and_send_nothing(tmp_path: Path) -> None:
    vm = labelled(tmp_path, HEAD, **{"hyper.probe": "tcp:9100"})
    vm.record = replace(vm.record, labels={"hyper.probe": "tcp:9100"})
    assert vm.app
    one = collector(tmp_path)
    async with running(vm):
        good = (await one.round()).containers[vm.record.id]
        vm.app.ports.clear()
        bad = (await one.round()).containers[vm.record.id]
        one.close()
    assert vm.app.sent == ["", ""]
    assert [outcome(one)["success"] for one in (good, bad)] == [1.0, 0.0]
    assert outcome(good)["up"] is None, "nothing is relayed that was not asked for"


async def test_a_name_that_two_mean_otherwise_is_the_first_one_s(tmp_path: Path) -> None:
    first = labelled(tmp_path, HEAD + b"# TYPE x_total counter\nx_total 1\n")
    other = labelled(tmp_path, HEAD + b"# TYPE x_total gauge\nx_total 1\nmine 2\n", OTHER_ID)
    one = collector(tmp_path)
    exposition = Exposition()
    async with running(first), running(other):
        await one.round()
        snapshot = await one.round()
        exposition.update(snapshot)
        one.close()
    found = {key: outcome(item)["families"] for key, item in snapshot.containers.items()}
    assert sorted(found.values()) == [["mine"], ["x_total"]] or found[OTHER_ID] == ["x_total", "mine"]
    dropped = [values(item, container.RELAY_DROPPED_TOTAL) for item in snapshot.containers.values()]
    assert {reason for one_of in dropped for reason in one_of} == {("type",)}
    text = exposition.render("text", [], NOW_S).decode()
    assert text.count("# TYPE x_total ") == 1
    assert not [line for line in lineprotocol.lines(snapshot, "node1") if "x_total" in line or "mine" in line]
