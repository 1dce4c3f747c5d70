"""What the benchmarks share: medians of many runs, and of pairs of them, printed beside a goal.

A goal that is missed is printed as such and fails nothing: what else a machine does must not decide over a test. Where
an interval is known, a goal that lies in it is neither reached nor missed.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Pairs = Sequence[tuple[float, float]]

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


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


_RESAMPLES: Final = 2000


def change_percent(first: Pairs, second: Pairs) -> Estimate:
    """By how many percent something raises a cost, of two things that cost alike but for what each has of its own.

    Of each pair both were measured at about the same time: `first` are (without, with), where the second of the two
    things had it; `second` are the same where the first one had it. Both periods count alike, so that what one of the
    two always costs more goes out; medians, so that a stray figure does not count. The interval is bootstrapped:
    pairs are drawn anew within their period.
    """
    periods = [[math.log(having / lacking) for lacking, having in pairs] for pairs in (first, second)]
    draw = random.Random(1)  # the same figures give the same interval
    resampled = sorted(_middle([draw.choices(one, k=len(one)) for one in periods]) for _ in range(_RESAMPLES))
    low, high = resampled[_RESAMPLES // 40], resampled[-_RESAMPLES // 40 - 1]
    return Estimate(*(100 * math.expm1(figure) for figure in (_middle(periods), low, high)))


def _middle(periods: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(statistics.median(one) for one in periods)


def goal(what: str, value: float | Estimate, most: float) -> None:
    """Print a figure beside the one to stay below."""
    if isinstance(value, Estimate):
        verdict = "reached" if value.high <= most else "MISSED" if value.low > most else "not resolved"
        print(f"{what}: {value.value:.2f} [{value.low:.2f}, {value.high:.2f}], at most {most:g}: {verdict}")
    else:
        print(f"{what}: {value:.2f}, at most {most:g}: {'reached' if value <= most else 'MISSED'}")


def reach(what: str, value: float, least: float) -> None:
    """Print a figure beside the one to reach."""
    print(f"{what}: {value:.2f}, at least {least:g}: {'reached' if value >= least else 'MISSED'}")
