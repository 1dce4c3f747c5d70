"""Every panel of every dashboard has data on a real Prometheus, of a real host with containers under load."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from collector.catalogue import CATALOGUE
from tests.contract.remediation.harness import webhook
from tests.host import Daemon, free_port, get, wait_for
from tests.monitoring import prometheus, query
from tests.panels import filled, queries, young

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collector.catalogue import Metric
    from tests.e2e.conftest import Images
    from tests.host import Host

DEADLINE_S = 60.0
DEEP = ("--label", "hyper.metrics.tier=deep")

# `up` is Prometheus' own name: it is left out.
APPLICATION = "mkdir /www; printf 'orders 1\\nup 1\\n' > /www/metrics; httpd -p 127.0.0.1:8000 -h /www; "
ASKED = ("--label", "hyper.metrics=8000", "--label", "hyper.probe=tcp:8000")
REFUSED = (
    "--label",
    "hyper.metrics=1",
    "--label",
    "hyper.probe=tcp:1",
    "--health-cmd",
    "false",
    "--health-interval",
    "1s",
)
BUSY = "while :; do dd if=/dev/zero of=/data bs=64k count=32 conv=fsync 2>/dev/null; cat /data >/dev/null; done"
HUNGRY = "while [ ! -e /go ]; do sleep 0.1; done; tail /dev/zero; sleep 600"

# What has no data in this world, and why. A panel of which every query has data after all fails the test.
EMPTY = {
    "marks: Image changes": "no container changed its image; tests/rules has one that does",
    "InfluxDB backlog": "the exporter of this host writes to no InfluxDB",
    "InfluxDB writes": "the exporter of this host writes to no InfluxDB",
}

# What of the catalogue no micro-VM of this world exports, and why; and what depends on the host and its kernels.
NEVER = {
    "microvm_kvm_exits_total": "no KVM that works",
    "microvm_balloon_actual_bytes": "VMs of the runtime have no balloon; tests/contract has one on a real QEMU",
    "microvm_balloon_memory_bytes": "the same",
    "microvm_balloon_swap_bytes_total": "the same",
    "microvm_balloon_page_faults_total": "the same",
    "microvm_balloon_oom_kills_total": "the same",
    "hyper_collector_alertmanager_failures_total": "the exporter of this host asks no Alertmanager",
    "hyper_influx_backlog_bytes": "the exporter of this host writes to no InfluxDB; test_influx.py has one that does",
    "hyper_influx_written_total": "the same",
    "hyper_influx_dropped_total": "the same",
    "hyper_influx_failures_total": "the same",
    "hyper_remediation_feed_readable": "the controller of this host has no feed; tests/contract/remediation has one",
    "hyper_remediation_feed_timestamp_seconds": "the same",
}
BY_HOST = (
    "microvm_host_pressure_", "microvm_host_oom_kills_total", "microvm_host_memory_limit_bytes", "machine_cpu_",
    "container_memory_swap", "container_memory_kernel_usage", "container_memory_max_usage_bytes",
    "container_file_descriptors",
)  # fmt: skip

Asked = tuple[str, str, str]
"""Dashboard, panel, expression."""


@pytest.mark.timeout(300)
def test_every_panel_has_data(host: Host, images: Images, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    program = str(Path(sys.executable).parent / "hyper-remediation")
    controller = Daemon([program], {**host.env, "HYPER_REMEDIATION_LISTEN": address}, tmp_path / "remediation.log")
    controller.start()
    try:
        controller.ready(lambda: get(f"http://{address}/healthz"))
        with prometheus(tmp_path, host.exporter, "http://127.0.0.1:1", address) as url:
            # Counters are first seen at 0, so that what happens afterwards is an increase.
            wait_for(lambda: query(url, "hyper_remediation_actions_total"), "the controller is scraped")
            port = free_port()
            load(host, images, url, port, address)
            values = {
                "digest": host.inspect("web")["image_digest"],
                "baseline": host.inspect("busy")["image_digest"],
            }
            stop = threading.Event()
            visitor = threading.Thread(target=visit, args=(port, stop))
            visitor.start()
            silent = host.inspect("hungry")["vm"]["pid"]
            os.kill(silent, signal.SIGSTOP)
            try:
                missing = unanswered(url, list(queries()), values, DEADLINE_S)
            finally:
                os.kill(silent, signal.SIGCONT)
                stop.set()
                visitor.join()
            unseen = {one.name for one in CATALOGUE.values() if not query(url, seen_as(one))}
    finally:
        controller.stop()
    unexpected = [f"{name}: {title}: {expr}" for name, title, expr in missing if title not in EMPTY]
    assert unexpected == []
    assert {title for _, title, _ in missing} == set(EMPTY), "what is told to have no data has some"
    assert {name for name in unseen if not name.startswith(BY_HOST)} == set(NEVER), "the catalogue is what VMs export"


def seen_as(metric: Metric) -> str:
    """A query for whatever was ever exported of it."""
    name = f"{metric.name}_bucket" if "histogram" in metric.type else metric.name
    return f"last_over_time({name}[1h])"


def load(host: Host, images: Images, url: str, port: int, controller: str) -> None:
    """What the dashboards are for: work, ends, a kill for memory, a restart, silence, remediation, quarantine."""
    host.run("--name", "web", *DEEP, "-p", f"{port}:80", images.nginx)
    check = ("--health-cmd", "true", "--health-interval", "1s")
    busy = ("--name", "busy", *DEEP, "--cpus", "0.3", "-m", "64m", *check, *ASKED)
    host.run(*busy, images.busybox, "sh", "-c", APPLICATION + BUSY)
    # It is silenced for longer than the controller has patience with what is unhealthy.
    off = ("--label", "hyper.remediation=off")
    host.run("--name", "hungry", *off, *REFUSED, "-m", "32m", images.busybox, "sh", "-c", HUNGRY)
    host.run("--name", "ends", "--label", "hyper.remediation=redeploy", images.busybox, "sh", "-c", "exit 3")
    # What an earlier test removed from this host may still be told of.
    wait_for(lambda: {"web", "busy", "hungry", "ends"} <= seen(url), "all are seen")
    host.hyper("restart", "-t", "0", "busy")
    host.hyper("exec", "hungry", "touch", "/go")
    assert host.hyper("run", "-d", "--name", "late", "-p", f"{port}:80", images.nginx, check=False).returncode != 0
    alert = {"alertname": "HyperContainerDown", "id": host.inspect("ends")["id"], "name": "ends"}
    for _ in range(2):  # the second one comes too soon, and is decided against
        httpx.post(f"http://{controller}/alertmanager", json=webhook(labels=alert)).raise_for_status()
        wait_for(lambda: query(url, 'hyper_remediation_actions_total{outcome="done"} > 0'), "it was acted on")
    wait_for(lambda: query(url, 'container_oom_events_total{name="hungry"} > 0'), "the kill is seen")
    host.hyper("quarantine", "ends")


def seen(url: str) -> set[str]:
    """Names of the containers that Prometheus has values of."""
    found = query(url, "count by (name) (container_exit_code or container_cpu_usage_seconds_total)")
    return {one["metric"]["name"] for one in found}


def visit(port: int, stop: threading.Event) -> None:
    """Ask nginx for its page until told to stop."""
    while not stop.wait(0.05):
        get(f"http://127.0.0.1:{port}/")


def unanswered(url: str, asked: Sequence[Asked], values: dict[str, str], deadline_s: float) -> list[Asked]:
    """What has no data until the deadline; less if nothing is missing any more but what is expected to."""
    began = time.monotonic()
    missing = list(asked)
    with httpx.Client() as client:  # to make one for each query takes longer than to ask
        while True:
            missing = [one for one in missing if not answered(url, one, values, client)]
            waited_s = time.monotonic() - began
            if all(title in EMPTY for _, title, _ in missing) or waited_s > deadline_s:
                print(f"\n{len(asked)} queries, {len(missing)} of them without data after {waited_s:.1f} s")
                return missing
            time.sleep(0.5)  # between two looks at what is still missing


def answered(url: str, one: Asked, values: dict[str, str], client: httpx.Client) -> bool:
    """Whether a query has data; on the dashboard of one container, of any of them."""
    name, _, expr = one
    containers = ("busy", "hungry", "ends") if name == "container.json" else (".*",)
    return any(query(url, filled(young(expr), container=container, **values), client) for container in containers)
