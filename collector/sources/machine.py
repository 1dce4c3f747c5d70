"""The host itself: CPUs and memory. Source: proc(5), /proc/stat and /proc/meminfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector import kerneltext
from collector.definitions import machine
from collector.keptfile import KeptFile
from collector.snapshot import Point

if TYPE_CHECKING:
    from pathlib import Path


def parse_cpu_count(stat: bytes) -> int:
    """Number of `cpuN` lines of /proc/stat."""
    return sum(1 for line in stat.split(b"\n") if line.startswith(b"cpu") and line[3:4].isdigit())


def read(proc: Path) -> tuple[Point, ...]:
    """The points of `machine_*`; what the kernel does not tell is left out."""
    points = []
    stat, meminfo = KeptFile(proc / "stat"), KeptFile(proc / "meminfo")
    try:
        if (text := stat.read(4 << 20)) is not None and (cpus := parse_cpu_count(text)):
            points.append(Point(machine.CPU_CORES, (), cpus))
        if (text := meminfo.read()) is not None:
            total = kerneltext.parse_meminfo(text).get(b"MemTotal")
            if total is not None:
                points.append(Point(machine.MEMORY_BYTES, (), total))
    finally:
        stat.close()
        meminfo.close()
    return tuple(points)
