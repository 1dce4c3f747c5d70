"""The few numbers of `hyper stats`, taken from the points, and what is carried on from sample to sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from collector.definitions import container, microvm
from collector.snapshot import Summary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.snapshot import Point


class CpuMeter:
    """CPUs used between the last two samples; None until there are two, and after the counter went back."""

    def __init__(self) -> None:
        self.ratio: float | None = None
        self._usage_s: float | None = None
        self._at_s = 0.0

    def observe(self, points: Iterable[Point], at_s: float) -> None:
        """Take the CPU time of a sample; `at_s` is a monotonic clock."""
        usage_s = next((p.value for p in points if p.metric is container.CPU_USAGE_SECONDS_TOTAL), None)
        self.ratio = None
        if usage_s is not None and self._usage_s is not None and at_s > self._at_s and usage_s >= self._usage_s:
            self.ratio = (usage_s - self._usage_s) / (at_s - self._at_s)
        self._usage_s, self._at_s = usage_s, at_s


class LoadMeter:
    """cAdvisor's load average of 10 s, times 1000: a mean that forgets by half in 7 s; None before the first sample."""

    def __init__(self) -> None:
        self.load: float | None = None
        self._at_s = 0.0

    def observe(self, tasks: int, at_s: float) -> float:
        """Take the number of tasks that run or wait now; `at_s` is a monotonic clock."""
        kept = math.exp(-max(0.0, at_s - self._at_s) / LOAD_WINDOW_S) if self.load is not None else 0.0
        self.load = (self.load or 0.0) * kept + 1000.0 * tasks * (1.0 - kept)
        self._at_s = at_s
        return self.load


def summarize(points: Iterable[Point], cpu_ratio: float | None) -> Summary:
    """Sum up over interfaces and devices; what no point tells is None."""
    sums: dict[str, float] = {}
    for metric, values, value in points:
        name = metric.name
        if name in _SUMMED and (name != _OVERHEAD or values == ("vmm",)):
            sums[name] = sums.get(name, 0) + value
    return Summary(
        cpu_ratio=cpu_ratio if container.CPU_USAGE_SECONDS_TOTAL.name in sums else None,
        memory_bytes=sums.get(container.MEMORY_WORKING_SET_BYTES.name),
        network_rx_bytes=sums.get(container.NETWORK_RECEIVE_BYTES_TOTAL.name),
        network_tx_bytes=sums.get(container.NETWORK_TRANSMIT_BYTES_TOTAL.name),
        block_read_bytes=sums.get(container.FS_READS_BYTES_TOTAL.name),
        block_write_bytes=sums.get(container.FS_WRITES_BYTES_TOTAL.name),
        pids=sums.get(container.THREADS.name),
        overhead_bytes=sums.get(_OVERHEAD),
    )


LOAD_WINDOW_S: Final = 10.0
_OVERHEAD: Final = microvm.HOST_MEMORY_BYTES.name
_SUMMED: Final = frozenset(
    metric.name
    for metric in (
        container.CPU_USAGE_SECONDS_TOTAL,
        container.MEMORY_WORKING_SET_BYTES,
        container.NETWORK_RECEIVE_BYTES_TOTAL,
        container.NETWORK_TRANSMIT_BYTES_TOTAL,
        container.FS_READS_BYTES_TOTAL,
        container.FS_WRITES_BYTES_TOTAL,
        container.THREADS,
        microvm.HOST_MEMORY_BYTES,
    )
)
