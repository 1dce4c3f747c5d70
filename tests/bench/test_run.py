"""`hyper run --rm IMAGE true`, whole command and by phase: pool, template, cold; beside podman with the same image.

Medians of `HYPER_BENCH_RUNS` runs each, in one run on one machine.
"""

from __future__ import annotations

import statistics
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import kernels
from tests.bench.measuring import RUNS, goal, show, wall
from tests.host import Host, about, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Images

POOL_DEPTH = 3


def phases(host: Host, image: str, path: str, before: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds by phase of starts that must have taken the path; `to exec` is from the request to hyperd on."""
    found: dict[str, list[float]] = {}
    for _ in range(RUNS):
        before()
        host.hyper("create", "--name", "phases", image, "sleep", "600")
        host.hyper("start", "phases")
        one = host.inspect("phases")
        assert one["vm"]["start_path"] == path, one["vm"]
        for name, seconds in {**one["start_phases"], "to exec": sum(one["start_phases"].values())}.items():
            found.setdefault(name, []).append(seconds)
        host.hyper("rm", "-f", "phases")
    return found


def measure(name: str, path: str, image: str, settings: dict[str, object]) -> tuple[float, float]:
    """Medians, in milliseconds: of the whole command, and of the start in the daemon up to exec."""
    with running_host(image, **settings) as host:

        def settled() -> None:
            depth = int(host.env["HYPER_POOL_DEPTH"])
            wait_for(lambda: about(host)["pool_waiting_for_images"] >= depth, "the pool is full", 60)
            if host.env["HYPER_TEMPLATE_IMAGES"] != "0":
                wait_for(lambda: about(host)["templates_ready"] == 2, "the image has a template", 60)

        for _ in range(2):  # an image that is started again gets what is for it alone
            host.hyper("run", "--rm", image, "true")
        whole = show(f"hyper run --rm, {name}", wall(lambda: host.hyper("run", "--rm", image, "true"), settled))
        medians = {phase: statistics.median(runs) * 1000 for phase, runs in phases(host, image, path, settled).items()}
        print(" " * 36 + "  ".join(f"{phase} {median:.1f}" for phase, median in medians.items()) + "  (ms)")
        return whole, medians["to exec"]


@pytest.mark.timeout(1500)
def test_run_true(images: Images, podman: list[str]) -> None:
    with running_host(accel="auto") as host:
        accel, why = about(host)["accel"], about(host)["accel_reason"]
    print(f"\nhyper run --rm busybox true; {accel}: {why}")
    whole: dict[str, float] = {}
    to_exec: dict[str, float] = {}
    cases: dict[str, tuple[str, dict[str, object]]] = {
        "pool": ("pool", {"pool_depth": POOL_DEPTH}),
        "template": ("template", {"template_images": 1}),
        "template, an image that is new": ("template", {}),
    }
    for path in kernels.present():
        cases[f"cold, {kernels.name(path)} kernel"] = ("cold", {"template": "false", "kernel": path})
    for name, (path, settings) in cases.items():
        whole[name], to_exec[name] = measure(name, path, images.busybox, {"accel": accel, **settings})
    for network in ("none", "bridge"):
        command = [*podman, "run", "--rm", f"--network={network}", images.busybox, "true"]
        times = wall(lambda command=command: subprocess.run(command, check=True, capture_output=True))
        whole[f"podman {network}"] = show(f"podman run --rm, {network}", times)
    goal("pool, ms to exec", to_exec["pool"], 60)
    goal("template, ms to exec", to_exec["template"], 300)
    for peer in ("podman none", "podman bridge"):
        goal(f"ratio pool / {peer}, whole command", whole["pool"] / whole[peer], 0.5)
    ours, theirs = (f"cold, {name} kernel" for name in ("ours", "distribution"))
    if ours in whole:
        goal("ratio cold, our kernel / the distribution's, to exec", to_exec[ours] / to_exec[theirs], 0.4)
    else:
        print("no ratio of kernels: there is one only; 'make kernel' builds ours")
