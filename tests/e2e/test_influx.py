"""A real micro-VM's samples reach an InfluxDB-compatible server by line protocol, the same as Prometheus gets."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from typing import TYPE_CHECKING, Any

import pytest

from collector.catalogue import CATALOGUE
from tests.host import Daemon, Host, free_port, get, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("victoria-metrics")
    assert program, "the package victoria-metrics is missing: run 'make setup'"
    address = f"127.0.0.1:{free_port()}"
    options = (f"-httpListenAddr={address}", f"-storageDataPath={tmp_path / 'influx'}", "-search.latencyOffset=0s")
    server = Daemon([program, *options], {}, tmp_path / "influx.log")
    server.start()
    server.ready(lambda: get(f"http://{address}/health"))
    yield f"http://{address}"
    server.stop()


def samples(url: str, name: str, container: str) -> dict[float, float]:
    """Time in seconds and value of every sample of one series that the server has."""
    get(f"{url}/internal/force_flush")
    match = urllib.parse.quote(f'{name}{{name="{container}"}}')
    lines = get(f"{url}/api/v1/export?match[]={match}").splitlines()
    found: dict[float, float] = {}
    for one in map(json.loads, lines):
        found.update(zip((stamp / 1000 for stamp in one["timestamps"]), one["values"], strict=True))
    return found


def latest(url: str, name: str, container: str) -> Any:
    """The answer to a query, as an operator would ask it."""
    query = urllib.parse.quote(f'{name}{{name="{container}"}}')
    result = json.loads(get(f"{url}/api/v1/query?query={query}"))["data"]["result"]
    return result[0]["value"][1] if result else None


def test_the_same_samples_arrive(images: Images, influx: str) -> None:
    host = Host(accel="tcg", influx_url=influx)
    try:
        host.start()
        host.hyper("pull", images.busybox)
        host.run("--name", "wrote", images.busybox, "sleep", "600")
        host.start_exporter()
        metric = CATALOGUE["container_spec_memory_limit_bytes"]
        name = f"{metric.influx_measurement}_{metric.influx_field}"
        wait_for(lambda: latest(influx, name, "wrote"), f"{name} can be queried")
        limit = host.value("container_spec_memory_limit_bytes", name="wrote")
        assert float(latest(influx, name, "wrote")) == limit
        usage = CATALOGUE["container_cpu_usage_seconds_total"]
        field = f"{usage.influx_measurement}_{usage.influx_field}"
        # Values that /metrics has shown must be among those that were written.
        shown = host.value("container_cpu_usage_seconds_total", name="wrote")
        wait_for(lambda: shown in samples(influx, field, "wrote").values(), f"{shown} was written")
        stamps = sorted(samples(influx, field, "wrote"))
        assert stamps == sorted(set(stamps))
    finally:
        host.close()
