"""Thirty micro-VMs at once, sampled for ten minutes: no error, no leak, and the cost beside that of `podman stats`."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

from tests.bench.measuring import goal
from tests.host import running_host, wait_for

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host

CONTAINERS = int(os.environ.get("HYPER_THIRTY_CONTAINERS", "30"))
WATCHED_S = int(os.environ.get("HYPER_THIRTY_S", "600"))
PEER_S = 60
INTERVAL_S = 1
MIB = 1024**2
# A bit of everything, once a second: CPU, a process, the disk, a line of output.
WORK = "n=0; while :; do n=$((n + 1)); echo $n; echo $n > /file; sleep 1; done"


class Look(NamedTuple):
    """The exporter at one moment: CPU seconds so far, resident bytes, open descriptors, threads."""

    cpu_s: float
    resident: int
    descriptors: int
    threads: int


def look(process: psutil.Process) -> Look:
    with process.oneshot():
        times = process.cpu_times()
        return Look(times.user + times.system, process.memory_info().rss, process.num_fds(), process.num_threads())


def values(host: Host, metric: str) -> list[float]:
    """Of all series of a metric."""
    lines = [line for line in host.metrics().splitlines() if line.partition("{")[0].partition(" ")[0] == metric]
    return [float(line.rpartition(" ")[2]) for line in lines]


def total(host: Host, metric: str) -> float:
    """Their sum."""
    return sum(values(host, metric))


@pytest.mark.timeout(WATCHED_S + 600)
def test_thirty_for_ten_minutes(images: Images, podman: list[str]) -> None:
    with running_host(images.busybox, pool_depth=2, interval_s=INTERVAL_S) as host:
        for number in range(CONTAINERS):
            host.run("--name", f"one{number}", images.busybox, "sh", "-c", WORK)
        host.start_exporter()
        wait_for(lambda: total(host, "microvm_source_up") == 3 * CONTAINERS, "all views of all are seen", 60)
        process = psutil.Process(host.hyper_exporter.pid)
        time.sleep(min(30, WATCHED_S / 10))  # it has seen all that there is to see
        first, began = look(process), time.monotonic()
        print(f"\n{CONTAINERS} micro-VMs, a sample a second for {WATCHED_S} s")
        print("  minute  resident MiB  descriptors  down  oldest sample, s")
        seen, wrong = [first], []
        while (left := WATCHED_S - (time.monotonic() - began)) > 0:
            time.sleep(min(left, WATCHED_S / 10))  # the time is what is measured
            seen.append(look(process))
            down = 3 * CONTAINERS - total(host, "microvm_source_up")
            minute = (time.monotonic() - began) / 60
            oldest = max(values(host, "microvm_sample_age_seconds"))
            figures = f"{seen[-1].resident / MIB:12.1f}  {seen[-1].descriptors:11}  {down:4.0f}  {oldest:.1f}"
            row = f"  {minute:6.1f}  {figures}"
            print(row)
            if down:
                wrong.append(row)
        elapsed, last = time.monotonic() - began, seen[-1]
        counted = ("machine_scrape_error", "hyper_records_unreadable", "hyper_collector_series_dropped_total")
        errors = {name: total(host, name) for name in counted}
        log = host.hyper_exporter.log.read_text()
        share = (last.cpu_s - first.cpu_s) / elapsed
        print(f"  {share * 100:.2f} % of one processor,", end=" ")
        print(f"{share / CONTAINERS * INTERVAL_S * 1000:.2f} ms for each container and sample")
        assert wrong == []
        assert errors == dict.fromkeys(errors, 0.0)
        assert "Traceback" not in log
        assert last.descriptors <= first.descriptors + 2
        assert last.threads == first.threads
        # The first half may still fill caches; after it there is nothing to add.
        assert last.resident <= seen[len(seen) // 2].resident + MIB / 2
        host.hyper("rm", "-f", *(f"one{number}" for number in range(CONTAINERS)), timeout_s=300)
    theirs = podman_stats(podman, images)
    print(f"  podman stats of as many containers, once a second: {theirs * 100:.2f} % of one processor")
    goal("ratio of CPU, hyper-exporter / podman stats", share / theirs, 1)


def podman_stats(podman: list[str], images: Images) -> float:
    """Share of one processor that `podman stats` takes."""
    try:
        for number in range(CONTAINERS):
            command = [*podman, "run", "-d", "--name", f"one{number}", "--network=none", images.busybox]
            subprocess.run([*command, "sh", "-c", WORK], check=True, capture_output=True)
        stats = subprocess.Popen([*podman, "stats", "--interval", str(INTERVAL_S)], stdout=subprocess.DEVNULL)
        try:
            time.sleep(5)
            process = psutil.Process(stats.pid)
            before, began = process.cpu_times(), time.monotonic()
            time.sleep(PEER_S)  # the time is what is measured
            after, elapsed = process.cpu_times(), time.monotonic() - began
            return (after.user + after.system - before.user - before.system) / elapsed
        finally:
            stats.kill()
            stats.wait()
    finally:
        subprocess.run([*podman, "rm", "-f", "-a", "-t", "0"], check=False, capture_output=True)
