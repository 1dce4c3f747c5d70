"""The exporter as a process: what Prometheus, `hyper stats` and an init system see of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collector.catalogue import ABSENT, BASE_LABELS, CATALOGUE, EXPORTED
from runtime import record
from runtime.healthcounts import HealthCounts
from runtime.record import Lifecycle, Quarantine
from tests.fakevm import FakeApp
from tests.fakevm.process import COMMAND, REPOSITORY, Exporter, exporter
from tests.fakevm.scenario import base_record, fake_vm, host_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakevm import FakeVm

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
STOPPED_ID = "5b" * 32
RUNTIME = {
    "schema": 1, "pid": 1, "started_at": 1.0, "updated_at": 2.0, "version": "0.1.0", "accel": "tcg",
    "operations": {"start": {"ok": 3, "failed": 1, "seconds": 4.2}},
    "starts": {"template": 3, "cold": 1}, "fallbacks": {'template "building"\n': 1},
    "templates_ready": 1, "pool_waiting": 2, "images": 2, "containers": 4,
    "reserve_missing_bytes": 262144,
}  # fmt: skip


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[FakeVm]:
    one = fake_vm(tmp_path / "state", "cgroup-v2")
    # Everything that a name may hold and a format must escape.
    one.record = replace(one.record, image='reg/"odd"\\img:1', project="a\nb", name="wéb")
    await one.start()
    stopped = base_record(STOPPED_ID, vm=None, lifecycle=Lifecycle("exited", "running", 1, 2, 3, 3, restarts=1))
    directory = tmp_path / "state/containers" / STOPPED_ID
    directory.mkdir()
    record.write(directory, stopped)
    (tmp_path / "state/runtime.json").write_text(json.dumps(RUNTIME))
    yield one
    await one.stop()


@pytest.fixture
async def running(vm: FakeVm, tmp_path: Path) -> AsyncIterator[Exporter]:
    root = host_root("cgroup-v2", tmp_path / "root")
    async with exporter(tmp_path / "state", "--root", str(root)) as process:
        yield process


async def test_every_metric_is_exported_and_every_exported_metric_is_in_the_catalogue(
    vm: FakeVm, tmp_path: Path
) -> None:
    """Of VMs that have all there can be: KVM, a balloon, a quota, an event, applications good and bad, a quarantine."""
    deep = fake_vm(tmp_path / "state", "deep-kvm", "6c" * 32)
    asked = {"hyper.metrics": "9100", "hyper.probe": "tcp:9100"}
    deep.record = replace(deep.record, cgroups=vm.record.cgroups, labels=asked)
    deep.app = FakeApp({9100: b"HTTP/1.1 200 OK\r\n\r\nup 1\n"})
    deep.qmp["qom-get /machine/peripheral/balloon0 guest-stats"]["last-update"] = int(time.time()) + 600
    vm.app = FakeApp()
    record.write(vm.directory, replace(vm.record, labels=asked, quarantine=Quarantine(1.0, "why", "me")))
    checks = HealthCounts(vm.directory, vm.record.lifecycle.epoch)
    checks.add(0.1, None)
    checks.add(0.1, "exit")
    deep.events.append({"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}})
    root = host_root("cgroup-v2", tmp_path / "root")
    await deep.start()
    alertmanager = {"HYPER_ALERTMANAGER_URL": "http://127.0.0.1:1"}
    async with exporter(tmp_path / "state", "--root", str(root), "--deep", environment=alertmanager) as process:
        # What is told of the growth between two samples needs some.
        cpu_stat = os.open(root / "sys/fs/cgroup/hyper/3f/cpu.stat", os.O_WRONLY | os.O_TRUNC)
        for used in range(20_000_000, 80_000_000, 100_000):
            os.pwrite(cpu_stat, b"usage_usec %d\n" % used, 0)  # never seen half written
            await asyncio.sleep(0.05)
            text = await process.metrics()
            late = ("microvm_overhead_cpu_ratio", "container_relay_dropped_total", "container_probe_failures_total")
            if all(f"\n{name}{{" in text for name in late):
                break
    os.close(cpu_stat)
    await deep.stop()
    found = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert found - set(CATALOGUE) == set()
    expected = {metric.name for metric in EXPORTED if metric.when is None or "influx_url" not in metric.when}
    assert expected - found == set()
    assert not set(ABSENT) & found


async def test_both_formats_say_the_same_and_parse(running: Exporter) -> None:
    headers, body = await running.get("/metrics")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = {(s.name, tuple(sorted(s.labels.items()))) for family in parse_text(body.decode()) for s in family.samples}
    headers, body = await running.get("/metrics", OPENMETRICS)
    assert headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    families = list(parse_openmetrics(body.decode()))
    openmetrics = {(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples}
    scrape = {("hyper_scrape_duration_seconds", ())}
    assert text | scrape == openmetrics | scrape
    units = {family.name: family.unit for family in families}
    assert units["container_cpu_usage_seconds"] == "seconds"
    assert units["container_memory_rss"] == ""


async def test_base_labels_are_escaped_and_complete(running: Exporter, vm: FakeVm) -> None:
    body = await running.metrics()
    families = {family.name: family for family in parse_text(body)}
    labels = families["container_memory_rss"].samples[0].labels
    assert tuple(labels) == BASE_LABELS
    assert labels["image"] == 'reg/"odd"\\img:1'
    assert labels["pod"] == "a\nb"
    assert labels["container"] == "wéb"
    for family in families.values():
        if family.name.startswith("container_"):
            assert all(set(BASE_LABELS) <= set(sample.labels) for sample in family.samples)


async def test_labels_that_are_named_are_on_container_info_and_nowhere_else(vm: FakeVm, tmp_path: Path) -> None:
    odd = fake_vm(tmp_path / "state", "cgroup-v2", "7d" * 32)
    odd.record = replace(odd.record, limits=replace(odd.record.limits, memory_bytes=100 << 20))
    odd.directory.mkdir()
    record.write(odd.directory, odd.record)
    own = {"team": 'a "b"\n', "com.example/tier": "é" * 500, "secret": "hunter2"}
    record.write(vm.directory, replace(vm.record, labels=own))
    environment = {"HYPER_INFO_LABELS": '["com.example/tier", "team", "not-there"]'}
    async with exporter(tmp_path / "state", "--root", str(tmp_path), environment=environment) as process:
        text = await process.metrics()
        _, openmetrics = await process.get("/metrics", OPENMETRICS)
    for families in (parse_text(text), parse_openmetrics(openmetrics.decode())):
        samples = {(s.labels.get("id"), s.name): s.labels for family in families for s in family.samples}
        info = samples[vm.record.id, "container_info"]
        assert info["container_label_team"] == 'a "b"\n'
        assert info["container_label_com_example_tier"] == "é" * 128
        assert info["size"] == "S2"
        assert samples[odd.record.id, "container_info"]["size"] == "other"
        stopped = samples[STOPPED_ID, "container_info"]
        assert [name for name in (*info, *stopped) if name.startswith("container_label")] == [
            "container_label_com_example_tier",
            "container_label_team",
        ]
    assert "hunter2" not in text
    assert text.count("container_label_") == 2


async def test_promtool_has_nothing_to_say(running: Exporter) -> None:
    text = await running.metrics()
    checked = subprocess.run(  # noqa: ASYNC221 -- reads a text, at once
        ["promtool", "check", "metrics"], input=text.encode(), capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_gzip_is_given_to_who_takes_it(running: Exporter) -> None:
    headers, body = await running.get("/metrics", {"Accept-Encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert b"container_memory_rss" in gzip.decompress(body)
    headers, _ = await running.get("/metrics", {"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in headers


async def test_stats(running: Exporter, vm: FakeVm) -> None:
    await running.until(r"^container_cpu_usage")
    one, stopped = sorted(await running.stats(), key=lambda c: c["state"], reverse=True)
    assert one["id"] == vm.record.id
    assert one["name"] == "wéb"
    assert one["state"] == "running"
    assert one["memory_bytes"] == 2551808
    assert one["memory_limit_bytes"] == 134217728
    assert one["network_rx_bytes"] == 110
    assert one["network_tx_bytes"] == 602
    assert one["block_read_bytes"] == 1986560 + 11264
    assert one["block_write_bytes"] == 4211712
    assert one["pids"] == 2
    assert one["overhead_bytes"] == 12126208
    assert 0 <= one["sample_age_s"] < 10
    assert stopped["state"] == "exited"
    assert stopped["memory_bytes"] is None
    assert stopped["sample_age_s"] is None
    assert set(one) == set(stopped)


async def test_cpu_ratio_is_what_was_used_between_two_samples(running: Exporter, vm: FakeVm) -> None:
    await running.until(r"^container_cpu_usage")
    path = "/sys/fs/cgroup/container/cpu.stat"
    used = int(vm.files[path].split()[1])
    ratio: Any = None
    for _ in range(100):
        used += 100_000
        vm.files[path] = b"usage_usec %d\nuser_usec %d\nsystem_usec 0\n" % (used, used)
        await running.until(rf"^container_cpu_usage_seconds_total.* {used / 1e6}$")
        ratio = (await running.stats())[-1]["cpu_ratio"] or (await running.stats())[0]["cpu_ratio"]
        if ratio:
            break
    # One interval of 0.2 s took 0.1 s of CPU; on a busy machine it is longer, and the one after it shorter.
    assert 0 < ratio < 2


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metric", "GET", 404), ("/metrics", "POST", 405)]
)
async def test_wrong_requests_get_one_line(path: str, method: str, status: int, running: Exporter) -> None:
    def fetch() -> None:
        request = urllib.request.Request(running.url + path, method=method)  # noqa: S310 -- loopback http
        urllib.request.urlopen(request, timeout=5)  # noqa: S310 -- loopback http

    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(fetch)
    with caught.value as answer:
        assert answer.code == status
        assert answer.read().count(b"\n") == 1


async def test_healthz_and_head(running: Exporter) -> None:
    assert (await running.get("/healthz"))[1] == b"ok\n"


async def test_sigterm_ends_it_cleanly(running: Exporter) -> None:
    assert await running.end(signal.SIGTERM) == 0
    assert not [line for line in running.log if "Traceback" in line]


async def test_kill_9_loses_nothing(vm: FakeVm, tmp_path: Path) -> None:
    root = str(host_root("cgroup-v2", tmp_path / "root"))
    texts = []
    for _ in range(2):
        async with exporter(tmp_path / "state", "--root", root) as process:
            text = await process.metrics()
            texts.append({line for line in text.splitlines() if line.startswith(("container_", "microvm_"))})
            assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    moving = re.compile(r"container_last_seen|sample_age|clock_skew")
    first, second = ({line for line in lines if not moving.search(line)} for lines in texts)
    assert first == second


async def test_a_wedged_vm_delays_no_scrape(vm: FakeVm, tmp_path: Path) -> None:
    other = fake_vm(tmp_path / "state", "cgroup-v2", "4a" * 32)
    await other.start()
    try:
        async with exporter(tmp_path / "state", "--root", str(host_root("cgroup-v2", tmp_path / "root"))) as process:
            await process.until(r'^microvm_source_up\{.*id="4a4a.*source="guest"\} 1')
            other.faults = {"vmm": "wedged", "guest": "wedged"}
            await process.until(r'^microvm_source_up\{.*id="4a4a.*source="guest"\} 0')
            longest_s = 0.0
            for _ in range(20):
                started = time.monotonic()
                text = await process.metrics()
                longest_s = max(longest_s, time.monotonic() - started)
            # A round now takes the deadline of 1 s; a scrape does not wait for it.
            assert longest_s < 0.5
            assert re.search(r'^microvm_source_up\{.*id="3f3f.*source="guest"\} 1', text, re.MULTILINE)
    finally:
        await other.stop()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = _run("--state-dir", str(tmp_path), "--listen", f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "--listen" in ended.stderr


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "127.0.0.1:99999", "127.0.0.1"])
def test_a_bad_address_is_one_clear_line(address: str, tmp_path: Path) -> None:
    ended = _run("--state-dir", str(tmp_path), "--listen", address)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "is not host:port" in ended.stderr


def test_a_bad_interval_is_one_clear_line(tmp_path: Path) -> None:
    ended = _run("--state-dir", str(tmp_path), "--interval", "0")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "interval_s" in ended.stderr


def test_help_and_version() -> None:
    assert "--state-dir" in _run("--help").stdout
    assert _run("--version").stdout.startswith("hyper-exporter ")


def test_once_prints_a_sample(tmp_path: Path) -> None:
    ended = _run("--state-dir", str(tmp_path), "--once")
    assert ended.returncode == 0
    assert "hyper_containers 0\n" in ended.stdout


def test_promtool_is_there() -> None:
    assert shutil.which("promtool"), "install the package prometheus"
