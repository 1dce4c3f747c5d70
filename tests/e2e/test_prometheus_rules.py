"""Rules, routes and panels on a real Prometheus and a real Alertmanager, with an exporter that says what it is told."""

from __future__ import annotations

import datetime
import http.server
import json
import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from collector.catalogue import BASE_LABELS, CATALOGUE, CONTAINER_STATES, SOURCES, Metric
from dashboards.fleet import fleet
from tests.contract.remediation.harness import ID, Controller, FakeHyperd, until
from tests.monitoring import alertmanager, prometheus, query
from tests.panels import filled
from tests.places import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

OTHER = "ab" * 32

# A well world: of what all others show as 1 there is enough, and nothing is broken.
SIZES = {
    "container_spec_memory_limit_bytes": 2, "container_fs_limit_bytes": 2, "container_fs_inodes_total": 2,
    "machine_memory_bytes": 100, "machine_cpu_cores": 100, "hyper_records_unreadable": 0,
    "container_quarantine_start_time_seconds": 0, "hyper_remediation_stopped": 0, "hyper_remediation_waiting": 0,
    "hyper_reserve_missing_bytes": 0, "machine_scrape_error": 0,
}  # fmt: skip
TROUBLE = re.compile("oom|throttled|pressure|overflows|retransmits|dropped|fallbacks|restarts")


class Exposition(http.server.ThreadingHTTPServer):
    """Every metric of the catalogue for two containers, of which `down` exited; counters grow with every scrape."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scrapes = 0
        self.down: set[str] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def text(self) -> str:
        self.scrapes += 1
        lines = []
        for metric in CATALOGUE.values():
            if metric.type != "histogram":
                lines += [f"# TYPE {metric.name} {metric.type if metric.type != 'unknown' else 'untyped'}"]
                lines += self._series(metric)
        return "\n".join(lines) + "\n"

    def _series(self, metric: Metric) -> Iterator[str]:
        owners: list[dict[str, str]] = [{}]
        if metric.scope == "container":
            owners = [dict(zip(BASE_LABELS, (id_, name, "i", "shop", name, name), strict=True)) for id_, name in
                      ((ID, "web"), (OTHER, "db"))]  # fmt: skip
        for owner in owners:
            for own in self._own_labels(metric):
                if metric.name == "container_state" and not self._value(metric, owner["id"], own):
                    continue  # a state that does not hold has no series
                labels = ",".join(f'{key}="{value}"' for key, value in {**owner, **own}.items())
                yield f"{metric.name}{{{labels}}} {self._value(metric, owner.get('id', ''), own)}"

    @staticmethod
    def _own_labels(metric: Metric) -> list[dict[str, str]]:
        several = {"state": CONTAINER_STATES, "source": SOURCES, "kind": ("start", "stop"),
                   "part": ("vcpu", "guest_ram"), "by": ("host", "self"),
                   "layer": ("container", "host")}  # fmt: skip
        sets: list[dict[str, str]] = [{}]
        for label in metric.labels:
            # What only describes has one series; what splits has several.
            values = ("x",) if metric.name.endswith(("_info", "_path")) else several.get(label, ("x", "y"))
            sets = [{**one, label: value} for one in sets for value in values]
        return sets

    def _value(self, metric: Metric, id_: str, own: dict[str, str]) -> float:
        if metric.name == "container_state":
            return float(own["state"] == ("exited" if id_ in self.down else "running"))
        if metric.name == "container_exit_code":
            return 3
        if metric.name in SIZES:
            return SIZES[metric.name]
        if "timestamp" in metric.name or metric.name in {"container_last_seen", "container_start_time_seconds"}:
            return time.time()
        # Counters of trouble would fire alerts of their own; they stand still here.
        return self.scrapes if metric.type == "counter" and not TROUBLE.search(metric.name) else 1


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Exposition

    def do_GET(self) -> None:
        body = self.server.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def exporter() -> Iterator[Exposition]:
    server = Exposition()
    with serving(server):
        yield server


def evaluated_after(url: str, then_s: float) -> Callable[[], bool]:
    """A question: has every group of rules been evaluated since?"""

    def answer() -> bool:
        groups = httpx.get(f"{url}/api/v1/rules").json()["data"]["groups"]
        times = [datetime.datetime.fromisoformat(group["lastEvaluation"]).timestamp() for group in groups]
        return bool(times) and min(times) > then_s

    return answer


def test_a_container_that_is_down_is_redeployed_by_way_of_prometheus_and_alertmanager(
    exporter: Exposition, tmp_path: Path
) -> None:
    hyperd = FakeHyperd(tmp_path / "hyperd.sock")
    hyperd.start()
    controller = Controller(tmp_path)
    controller.start()
    try:
        webhook = f"{controller.url}/alertmanager"
        address = controller.url.removeprefix("http://")
        with alertmanager(tmp_path, webhook) as alerts, prometheus(tmp_path, exporter.address, alerts, address) as url:
            until(lambda: query(url, 'container_state{state="running"} == 1'))
            until(evaluated_after(url, time.time()))
            assert not query(url, "ALERTS")
            exporter.down = {ID}
            until(controller.outcomes)
            assert controller.outcomes() == ["done"]
            assert len(hyperd.redeploys) == 1
            fired = httpx.get(f"{alerts}/api/v2/alerts").json()
            assert [(alert["labels"]["alertname"], alert["labels"]["name"]) for alert in fired] == [
                ("HyperContainerDown", "web")
            ]
            assert fired[0]["annotations"]["description"].endswith("down for 2s; its exit code is 3.")
            exporter.down = set()
            until(lambda: not httpx.get(f"{alerts}/api/v2/alerts").json())
            until(lambda: "resolved" in controller.reasons())
            done = 'hyper_remediation_actions_total{job="hyper-remediation", outcome="done"} == 1'
            until(lambda: query(url, done))
            assert len(hyperd.redeploys) == 1
        assert controller.end() == 0
    finally:
        if controller.process is not None and controller.process.poll() is None:
            controller.kill()
        hyperd.stop()


def test_every_panel_and_variable_can_be_asked_for(exporter: Exposition, tmp_path: Path) -> None:
    exporter.down = {OTHER}
    with prometheus(tmp_path, exporter.address, "http://127.0.0.1:1") as url:
        until(lambda: exporter.scrapes > 5 and query(url, "rate(hyper_exporter_cpu_seconds_total[10s]) > 0"))
        empty = []
        for panel in fleet()["panels"]:
            for target in panel.get("targets", ()):
                result = query(url, filled(target["expr"], __rate_interval="5m"))
                if not result:
                    empty.append(panel["title"])
                if panel["title"] == "Down containers":
                    assert [
                        (one["metric"]["container"], one["metric"]["state"], one["value"][1]) for one in result
                    ] == [("db", "exited", "3")]
                if panel["title"] in {"Running", "Down"}:
                    assert [one["value"][1] for one in result] == ["1"]
        nothing = ["OOM kills", "Restarts", "Sources down by kind"]
        assert sorted(empty) == nothing, "all other panels have data here"
        names = httpx.get(f"{url}/api/v1/label/__name__/values").json()["data"]
        assert json.dumps(names).count("hyper_") > 10
