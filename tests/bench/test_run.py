"""`hyper run --rm IMAGE true`, whole command and by phase: pool, template, cold; beside podman with the same image."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.host import Host, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

RUNS = int(os.environ.get("HYPER_BENCH_RUNS", "20"))
COLD_RUNS = max(3, RUNS // 4)


def wall(command: Callable[[], object], runs: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds that each run took; `before` is not counted."""
    command()  # the first one pays for caches
    found = []
    for _ in range(runs):
        before()
        began = time.perf_counter()
        command()
        found.append(time.perf_counter() - began)
    return found


def show(name: str, runs: list[float]) -> None:
    median, least, most = (1000 * figure for figure in (statistics.median(runs), min(runs), max(runs)))
    print(f"{name:>28}  median {median:7.1f} ms  min {least:7.1f}  max {most:7.1f}  ({len(runs)} runs)")


@pytest.fixture
def podman(tmp_path: Path, images: Images) -> Iterator[list[str]]:
    """podman with runc, its storage in the test's directory, the image loaded."""
    program = shutil.which("podman")
    assert program, "podman is missing: apt-get install podman runc"
    config = tmp_path / "containers.conf"
    config.write_text('[containers]\ndefault_ulimits=["nofile=1024:4096","nproc=1024:4096"]\n')
    os.environ["CONTAINERS_CONF"] = str(config)
    command = [program, "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--runtime", "runc"]
    command += ["--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"]
    subprocess.run([*command, "pull", "-q", "--tls-verify=false", images.busybox], check=True, capture_output=True)
    yield command
    subprocess.run([*command, "rmi", "-f", "-a"], check=False, capture_output=True)
    del os.environ["CONTAINERS_CONF"]


def phases(host: Host, image: str, path: str, before: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds by phase of a few starts, which must have taken the path."""
    found: dict[str, list[float]] = {}
    for _ in range(5):
        before()
        host.run("--name", "phases", image, "sleep", "600")
        one = host.inspect("phases")
        assert one["vm"]["start_path"] == path, one["vm"]
        for name, seconds in {**one["start_phases"], "sum": sum(one["start_phases"].values())}.items():
            found.setdefault(name, []).append(seconds)
        host.hyper("rm", "-f", "phases")
    return found


@pytest.mark.timeout(900)
def test_run_true(images: Images, podman: list[str]) -> None:
    medians: dict[str, float] = {}
    print()
    for path, settings in {
        "pool": {"pool_depth": 3},
        "template": {"pool_depth": 0},
        "cold": {"template": "false"},
    }.items():
        host = Host(accel="tcg", **settings)
        try:
            host.start()
            host.hyper("pull", images.busybox)

            def settled(host: Host = host, path: str = path) -> None:
                wanted = {"pool": "pool waiting: 3", "template": "templates ready: 1", "cold": "version"}[path]
                wait_for(lambda: wanted in host.hyper("info").stdout, f"{path} is ready", 60)

            settled()
            runs = COLD_RUNS if path == "cold" else RUNS
            times = wall(lambda host=host: host.hyper("run", "--rm", images.busybox, "true"), runs, settled)
            medians[path] = statistics.median(times)
            show(f"hyper run --rm, {path}", times)
            by_phase = phases(host, images.busybox, path, settled)
            print(
                " " * 30
                + "  ".join(f"{name} {statistics.median(t) * 1000:.1f}" for name, t in by_phase.items())
                + "  (ms)"
            )
        finally:
            host.close()
    for network in ("none", "bridge"):
        command = [*podman, "run", "--rm", f"--network={network}", images.busybox, "true"]
        times = wall(lambda command=command: subprocess.run(command, check=True, capture_output=True), RUNS)
        medians[f"podman {network}"] = statistics.median(times)
        show(f"podman run --rm, {network}", times)
    for path in ("pool", "template", "cold"):
        for peer in ("podman none", "podman bridge"):
            print(f"ratio {path} / {peer}: {medians[path] / medians[peer]:.2f}")
