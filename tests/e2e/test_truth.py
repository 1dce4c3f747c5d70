"""What Prometheus has is what independent tools inside and outside the guest say."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector.catalogue import CATALOGUE
from collector.definitions.microvm import OOM_LAYERS
from tests.fakeguest import build_program
from tests.host import free_port, get, wait_for
from tests.monitoring import prometheus, query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

TICKS_PER_S = 100  # the guest kernel's USER_HZ
BURN_S = 30


@pytest.fixture
def url(host: Host, tmp_path: Path) -> Iterator[str]:
    with prometheus(tmp_path, host.exporter, "http://127.0.0.1:1") as one:
        yield one


def number(url: str, expression: str) -> float:
    result = query(url, expression)
    assert len(result) == 1, f"{expression}: {result}"
    return float(result[0]["value"][1])


def seconds_in_proc(host: Host, name: str) -> float:
    """CPU time of the container's process by proc(5): utime and stime, fields 14 and 15."""
    fields = host.hyper("exec", name, "cat", "/proc/1/stat").stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def test_cpu_of_a_container_that_burns_one(host: Host, images: Images, url: str) -> None:
    host.run("--name", "burns", images.busybox, "sh", "-c", "while :; do :; done")
    wait_for(lambda: query(url, 'container_cpu_usage_seconds_total{name="burns"}'), "scraped")
    before, began = seconds_in_proc(host, "burns"), time.monotonic()
    time.sleep(BURN_S)  # the load is what is measured
    after, ended = seconds_in_proc(host, "burns"), time.monotonic()
    inside = (after - before) / (ended - began)
    rate = number(url, f'rate(container_cpu_usage_seconds_total{{name="burns"}}[{BURN_S}s])')
    bill = number(url, f'sum(rate(microvm_host_cpu_seconds_total{{name="burns"}}[{BURN_S}s]))')
    print(f"\ncpu: {inside:.3f} by /proc in the guest, {rate:.3f} by Prometheus, {bill:.3f} billed by the host")
    assert inside > 0.5
    assert rate == pytest.approx(inside, rel=0.10)
    assert bill > 0  # on a busy host less than the guest believes: it cannot see the time that it was not run


def test_memory_is_that_of_the_guests_control_group(host: Host, images: Images, url: str) -> None:
    script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null; exec sleep 600"
    host.run("--name", "holds", images.busybox, "sh", "-c", script)
    wait_for(
        lambda: host.hyper("exec", "holds", "stat", "-c", "%s", "/dev/shm/held").stdout.strip() == "41943040", "held"
    )
    usage = 'container_memory_usage_bytes{name="holds"}'
    wait_for(lambda: (found := query(url, usage)) and float(found[0]["value"][1]) > 4e7, "scraped")
    inside = int(host.hyper("exec", "holds", "cat", "/sys/fs/cgroup/memory.current").stdout)
    told = number(url, usage)
    print(f"\nmemory: {inside} by the guest's cgroup, {told:.0f} by Prometheus")
    assert told == pytest.approx(inside, rel=0.05)
    limit = number(url, 'container_spec_memory_limit_bytes{name="holds"}')
    assert limit == host.inspect("holds")["limits"]["memory_bytes"]


def test_what_ran_out_of_memory_is_counted_whoever_was_there_to_see_it(
    host: Host, images: Images, tmp_path: Path
) -> None:
    def squeeze(name: str) -> None:
        """Leave the VM little more memory than it has now."""
        groups = host.inspect(name)["cgroups"]
        group = Path(groups["v1"].get("memory") or groups["v2"])
        used, limit = ("memory.current", "memory.max")
        if "memory" in groups["v1"]:
            used, limit = ("memory.usage_in_bytes", "memory.limit_in_bytes")
        (group / limit).write_text(str(int((group / used).read_text()) + 8 * 1024**2))

    host.hyper_exporter.stop()  # nobody looks while it happens
    host.run("--name", "beyond", "--restart", "on-failure:2", "-m", "32m", images.busybox, "tail", "/dev/zero")
    host.hyper("create", "--name", "hog", "-m", "32m", images.busybox, "/hog")
    host.hyper("cp", str(build_program("hog", tmp_path)), "hog:/hog")
    host.hyper("start", "hog")
    script = "until [ -e /go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/shm/held bs=1M count=60; sleep 600"
    host.run("--name", "squeezed", "--shm-size", "64m", images.busybox, "sh", "-c", script)
    squeeze("squeezed")
    host.hyper("exec", "squeezed", "touch", "/go", check=False)  # which may be too much already
    names = ("beyond", "hog", "squeezed")
    wait_for(lambda: host.inspect("beyond")["restarts"] == 2, "the restarts", 60)
    wait_for(lambda: {host.inspect(name)["state"] for name in names} == {"exited"}, "the ends", 60)
    ends = {name: host.inspect(name) for name in names}
    assert all(one["oom_killed"] for one in ends.values())
    assert "the host killed the VM" in ends["squeezed"]["error"]
    host.start_exporter()
    told = {
        name: {layer: host.value("microvm_oom_total", name=name, layer=layer) for layer in OOM_LAYERS}
        for name in ("beyond", "hog", "squeezed")
    }
    assert told["beyond"] == {"container": 3, "guest": 0, "host": 0}
    assert told["hog"] == {"container": 0, "guest": 1, "host": 0}
    assert told["squeezed"]["host"] == 1
    assert host.value("container_oom_events_total", name="beyond") == 3
    host.hyper("start", "beyond")  # a start takes nothing back
    wait_for(lambda: (host.value("microvm_oom_total", name="beyond", layer="container") or 0) > 3, "one more kill", 30)
    host.hyper("rm", "-f", *names)


def test_network_bytes_of_a_counted_transfer(host: Host, images: Images, url: str) -> None:
    port = free_port()
    host.run("--name", "sends", "-p", f"{port}:80", images.nginx)
    wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "nginx answers")
    blob = "/usr/share/nginx/html/blob"
    host.hyper("exec", "sends", "dd", "if=/dev/zero", f"of={blob}", "bs=1M", "count=20")
    sent = 'container_network_transmit_bytes_total{name="sends",interface="eth0"}'
    wait_for(lambda: query(url, sent), "scraped")
    before = number(url, sent)
    body = len(get(f"http://127.0.0.1:{port}/blob", timeout_s=60).encode())
    assert body == 20 * 1024**2
    wait_for(lambda: number(url, sent) - before > 0.9 * body, "scraped again")
    time.sleep(3)  # two more samples: the last packets
    told = number(url, sent) - before
    print(f"\nnetwork: {body} bytes of body, {told:.0f} by Prometheus")
    assert told == pytest.approx(body, rel=0.02)


# What dashboards and rules for Kubernetes ask of cAdvisor, per container, with the labels that they select and sum by.
BY = "sum by (namespace, pod, container)"
REAL = 'container!="", image!="", pod="asked"'
QUERIES = {
    "CPU against the quota": f"{BY} (rate(container_cpu_usage_seconds_total{{{REAL}}}[10s]))"
    f" / {BY} (container_spec_cpu_quota{{{REAL}}} / container_spec_cpu_period{{{REAL}}})",
    "periods that were throttled": f"{BY} (increase(container_cpu_cfs_throttled_periods_total{{{REAL}}}[10s]))"
    f" / {BY} (increase(container_cpu_cfs_periods_total{{{REAL}}}[10s]))",
    "working set against the limit": f"{BY} (container_memory_working_set_bytes{{{REAL}}})"
    f" / {BY} (container_spec_memory_limit_bytes{{{REAL}}})",
    "received": 'sum by (namespace, pod) (rate(container_network_receive_bytes_total{pod="asked"}[10s]))',
    "sent": 'sum by (namespace, pod) (rate(container_network_transmit_bytes_total{pod="asked"}[10s]))',
    "dropped": 'sum by (namespace, pod) (rate(container_network_receive_packets_dropped_total{pod="asked"}[10s]))',
    "reads and writes": f'ceil({BY} (rate(container_fs_reads_total{{{REAL}, device=~"/dev/.+"}}[10s])'
    f' + rate(container_fs_writes_total{{{REAL}, device=~"/dev/.+"}}[10s])))',
    "bytes read and written": f"{BY} (rate(container_fs_reads_bytes_total{{{REAL}}}[10s])"
    f" + rate(container_fs_writes_bytes_total{{{REAL}}}[10s]))",
    "memory that cannot be given back": f"{BY} (container_memory_rss{{{REAL}}})",
    "memory that can be given back": f"{BY} (container_memory_cache{{{REAL}}})",
}


def test_what_is_asked_of_containers_in_kubernetes_is_answered(host: Host, images: Images, url: str) -> None:
    work = "while :; do dd if=/dev/zero of=/file bs=64k count=16 conv=fsync 2>/dev/null; done"
    host.run("--name", "asked", "--cpus", "0.3", "-m", "64m", images.busybox, "sh", "-c", work)
    wait_for(lambda: all(query(url, one) for one in QUERIES.values()), "every query has data", 60)
    wait_for(lambda: number(url, QUERIES["CPU against the quota"]) > 0.5, "it has run for as long as a rate looks back")
    found = {name: query(url, expression) for name, expression in QUERIES.items()}
    assert {name: len(one) for name, one in found.items()} == dict.fromkeys(QUERIES, 1)
    labels = found["CPU against the quota"][0]["metric"]
    assert labels == {"namespace": "default", "pod": "asked", "container": "asked"}
    values = {name: float(one[0]["value"][1]) for name, one in found.items()}
    print("\n" + "\n".join(f"{name}: {value:.3f}" for name, value in values.items()))
    assert values["CPU against the quota"] < 1.2
    assert 0.2 < values["periods that were throttled"] <= 1
    assert 0 < values["working set against the limit"] <= 1
    assert values["reads and writes"] > 0
    assert values["bytes read and written"] > 1e5
    assert values["dropped"] == 0


def test_metrics_are_the_catalogue_and_pass_promtool(host: Host, images: Images) -> None:
    host.run(
        "--name", "whole", "--cpus", "1", "--memory", "64m", images.busybox, "sh", "-c", "while :; do sleep 1; done"
    )
    host.run("--name", "over", images.busybox, "sh", "-c", "exit 3")
    wait_for(lambda: host.value("container_cpu_usage_seconds_total", name="whole"), "sampled")
    wait_for(lambda: host.value("container_exit_code", name="over") == 3, "its end is seen")
    wait_for(lambda: host.value("hyper_starts_total"), "hyperd's own counters, which it writes once a second")
    text = host.metrics()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    exported = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    known = {one.name for one in CATALOGUE.values() if one.scope != "remediation"}
    assert exported <= known, "everything exported is in the catalogue"
    default = {name for name in known if CATALOGUE[name].tier == "default"}
    missing = {name for name in default - exported if not CATALOGUE[name].when}
    assert missing == set(), "everything of the default tier is exported, or says when it is not"
    assert {"hyper_operations_total", "hyper_starts_total", "hyper_pool_waiting"} <= exported
    ours = sum('name="whole"' in line for line in text.splitlines())
    print(f"\n{ours} series of one container, {len(exported)} metrics")
    quota = sum(CATALOGUE[name].when == "only with a CPU quota" for name in exported)
    assert ours - quota <= 60


def test_a_container_with_the_label_has_the_deep_tier(host: Host, images: Images) -> None:
    script = "while :; do sleep 1; done"
    host.run("--name", "deep", "--label", "hyper.metrics.tier=deep", images.busybox, "sh", "-c", script)
    host.run("--name", "shallow", images.busybox, "sh", "-c", script)
    wait_for(lambda: host.value("microvm_view_residual_seconds", name="deep") is not None, "sampled twice")
    wait_for(lambda: host.value("container_threads", name="shallow"), "the other is sampled")
    text = host.metrics()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    of = {
        name: {line.partition("{")[0] for line in text.splitlines() if f'name="{name}"' in line}
        for name in ("deep", "shallow")
    }
    names = {re.sub("_(bucket|count)$", "", name) for name in of["deep"]}
    assert names <= set(CATALOGUE)
    missing = {one.name for one in CATALOGUE.values() if one.tier == "deep" and not one.when and one.name not in names}
    assert missing == set(), "everything of the deep tier is exported, or says when it is not"
    assert {"microvm_block_latency_seconds", "microvm_virtqueue_inflight", "container_network_tcp_usage_total"} <= names
    assert not [name for name in of["shallow"] if CATALOGUE[name].tier == "deep"]


def test_how_qemu_ended_is_told_when_the_container_is_over_and_gone(host: Host, images: Images) -> None:
    """QEMU says it and closes at once; who asks after that finds nobody."""
    ends = {"name": "leaves", "event": "shutdown: guest-reset"}  # the guest's init resets, however its container ended

    def listened() -> None:
        wait_for(lambda: host.value("microvm_source_up", name="leaves", source="vmm") == 1, "QEMU is listened to")

    def ended() -> bool:
        return host.value("container_state", name="leaves", state="exited") == 1

    host.run("--name", "leaves", images.busybox, "sh", "-c", "rm -f /go; until [ -e /go ]; do sleep 0.1; done")
    listened()
    host.hyper("exec", "leaves", "touch", "/go")
    wait_for(ended, "it has ended by itself")
    assert host.value("microvm_events_total", **ends) == 1
    host.hyper("start", "leaves")
    listened()
    host.hyper("kill", "leaves")
    wait_for(ended, "it was ended")
    assert host.value("microvm_events_total", **ends) == 2
    host.hyper("rm", "leaves")
    wait_for(lambda: host.value("container_state", name="leaves", state="removing") == 1, "it is gone")
    assert host.value("microvm_events_total", **ends) == 2


def test_stats_table(host: Host, images: Images) -> None:
    host.run("--name", "shown", images.busybox, "sh", "-c", "while :; do :; done")
    wait_for(lambda: "shown" in host.hyper("stats", "--no-stream").stdout, "in the table")
    wait_for(lambda: "%" in host.hyper("stats", "--no-stream").stdout, "with figures")
    table = host.hyper("stats", "--no-stream").stdout
    print("\n" + table)
    assert "CPU %" in table.splitlines()[0]
