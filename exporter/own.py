"""What the exporter costs, told by itself."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from collector.catalogue import hyper
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES = resource.getpagesize()


def points(version: str, series: int, last_scrape_s: float | None) -> Iterator[Point]:
    """CPU time, memory, descriptors and series of this process; source: getrusage(2), /proc/self."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 -- a path object costs more than the read
        resident_pages = int(statm.read().split()[1])
    yield Point(hyper.EXPORTER_INFO, (version,), 1)
    yield Point(hyper.EXPORTER_SERIES, (), series)
    yield Point(hyper.EXPORTER_CPU_SECONDS_TOTAL, (), usage.ru_utime + usage.ru_stime)
    yield Point(hyper.EXPORTER_RESIDENT_MEMORY_BYTES, (), resident_pages * _PAGE_BYTES)
    yield Point(hyper.EXPORTER_OPEN_FDS, (), len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208 -- as above
    if last_scrape_s is not None:
        yield Point(hyper.SCRAPE_DURATION_SECONDS, (), last_scrape_s)
