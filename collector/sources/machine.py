"""The host itself: CPUs and memory.

Source: proc(5), /proc/stat and /proc/meminfo; Documentation/admin-guide/cputopology.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector import kerneltext
from collector.definitions import machine
from collector.errors import MalformedError
from collector.keptfile import KeptFile
from collector.snapshot import Point

if TYPE_CHECKING:
    from pathlib import Path

_MAX_CPUS: Final = 8192
_MAX_STAT_BYTES: Final = 4 << 20


def parse_cpu_count(stat: bytes) -> int:
    """Number of `cpuN` lines of /proc/stat."""
    return sum(1 for line in stat.split(b"\n") if line.startswith(b"cpu") and line[3:4].isdigit())


def parse_topology_id(text: bytes) -> int:
    """physical_package_id or core_id of a CPU; -1 where the firmware tells none.

    Raises:
        MalformedError: no number.
    """
    token = text.strip()
    return -1 if token == b"-1" else kerneltext.parse_count(token)


class MachineReader:
    """Reads the host's files, and how its CPUs are laid out when their number changes. `root` stands for `/`."""

    def __init__(self, root: Path) -> None:
        self._stat = KeptFile(root / "proc/stat")
        self._meminfo = KeptFile(root / "proc/meminfo")
        self._cpus = root / "sys/devices/system/cpu"
        self._topology: tuple[int, tuple[Point, ...]] = (0, ())

    def read(self) -> tuple[Point, ...]:
        """The points of `machine_*`; what the kernel does not tell is left out.

        Raises:
            SourceError: a file is not what the kernel writes.
        """
        points: list[Point] = []
        if (text := self._stat.read(_MAX_STAT_BYTES)) is not None and (cpus := parse_cpu_count(text)):
            points.append(Point(machine.CPU_CORES, (), cpus))
            if self._topology[0] != cpus:
                self._topology = (cpus, self._read_topology())
            points += self._topology[1]
        if (text := self._meminfo.read()) is not None:
            for metric, key in ((machine.MEMORY_BYTES, b"MemTotal"), (machine.SWAP_BYTES, b"SwapTotal")):
                value = kerneltext.parse_meminfo_value(text, key)
                if value is not None:
                    points.append(Point(metric, (), value))
        return tuple(points)

    def _read_topology(self) -> tuple[Point, ...]:
        sockets, cores = set(), set()
        for directory in sorted(self._cpus.glob("cpu[0-9]*/topology"))[:_MAX_CPUS]:
            try:
                socket, core = (
                    parse_topology_id((directory / name).read_bytes()) for name in ("physical_package_id", "core_id")
                )
            except (OSError, MalformedError):
                return ()
            sockets.add(socket)
            cores.add((socket, core))
        if not cores:
            return ()
        return (Point(machine.CPU_PHYSICAL_CORES, (), len(cores)), Point(machine.CPU_SOCKETS, (), len(sockets)))

    def close(self) -> None:
        """Give all descriptors back."""
        self._stat.close()
        self._meminfo.close()
