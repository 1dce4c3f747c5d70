"""The few numbers of `hyper stats`, taken from the points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.definitions import container, microvm
from collector.snapshot import Summary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from collector.metric import Metric
    from collector.snapshot import Point


class CpuMeter:
    """CPUs used between the last two samples; None until there are two, and after the counter went back."""

    def __init__(self) -> None:
        self.ratio: float | None = None
        self._usage_s: float | None = None
        self._at_s = 0.0

    def observe(self, points: Iterable[Point], at_s: float) -> None:
        """Take the CPU time of a sample; `at_s` is a monotonic clock."""
        usage_s = _sum(points, container.CPU_USAGE_SECONDS_TOTAL)
        self.ratio = None
        if usage_s is not None and self._usage_s is not None and at_s > self._at_s and usage_s >= self._usage_s:
            self.ratio = (usage_s - self._usage_s) / (at_s - self._at_s)
        self._usage_s, self._at_s = usage_s, at_s


def summarize(points: Iterable[Point], cpu_ratio: float | None) -> Summary:
    """Sum up over interfaces and devices; what no point tells is None."""
    kept = [point for point in points if point.metric in _SUMMED]
    return Summary(
        cpu_ratio=cpu_ratio if any(point.metric is container.CPU_USAGE_SECONDS_TOTAL for point in kept) else None,
        memory_bytes=_sum(kept, container.MEMORY_WORKING_SET_BYTES),
        network_rx_bytes=_sum(kept, container.NETWORK_RECEIVE_BYTES_TOTAL),
        network_tx_bytes=_sum(kept, container.NETWORK_TRANSMIT_BYTES_TOTAL),
        block_read_bytes=_sum(kept, container.FS_READS_BYTES_TOTAL),
        block_write_bytes=_sum(kept, container.FS_WRITES_BYTES_TOTAL),
        pids=_sum(kept, container.THREADS),
        overhead_bytes=_sum((p for p in kept if p.label_values == ("vmm",)), microvm.HOST_MEMORY_BYTES),
    )


_SUMMED = frozenset(
    {
        container.CPU_USAGE_SECONDS_TOTAL,
        container.MEMORY_WORKING_SET_BYTES,
        container.NETWORK_RECEIVE_BYTES_TOTAL,
        container.NETWORK_TRANSMIT_BYTES_TOTAL,
        container.FS_READS_BYTES_TOTAL,
        container.FS_WRITES_BYTES_TOTAL,
        container.THREADS,
        microvm.HOST_MEMORY_BYTES,
    }
)


def _sum(points: Iterable[Point], metric: Metric) -> float | None:
    values = [point.value for point in points if point.metric is metric]
    return sum(values) if values else None
