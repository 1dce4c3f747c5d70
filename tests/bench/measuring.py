"""What the benchmarks share: medians of many runs, printed beside a goal.

A goal that is missed is printed as such and fails nothing: what else a machine does must not decide over a test.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = int(os.environ.get("HYPER_BENCH_RUNS", "20"))


def wall(command: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds that each of `RUNS` runs took; `before` is not counted."""
    command()  # the first one pays for caches
    found = []
    for _ in range(RUNS):
        before()
        began = time.perf_counter()
        command()
        found.append(time.perf_counter() - began)
    return found


def show(name: str, runs: list[float]) -> float:
    """Print a row; returns the median in milliseconds."""
    median, least, most = (1000 * figure for figure in (statistics.median(runs), min(runs), max(runs)))
    print(f"{name:>36}  median {median:7.1f} ms  min {least:7.1f}  max {most:7.1f}  ({len(runs)} runs)")
    return median


def goal(what: str, value: float, most: float) -> None:
    """Print a figure beside the one to stay below."""
    print(f"{what}: {value:.2f}, at most {most:g}: {'reached' if value <= most else 'MISSED'}")


def reach(what: str, value: float, least: float) -> None:
    """Print a figure beside the one to reach."""
    print(f"{what}: {value:.2f}, at least {least:g}: {'reached' if value >= least else 'MISSED'}")
