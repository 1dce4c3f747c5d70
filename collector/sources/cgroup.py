"""The VM's control group on the host: v1, v2, or both at once.

A controller that the host has in neither hierarchy is absent; it is never in both. v2 is preferred, as on a hybrid host
its `cpu.stat` is there without any controller; blkio is not read at all, as v1 counts nothing until a limit is set.
Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/cpuacct.rst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from collector import kerneltext
from collector.keptfile import KeptFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from collector.kerneltext import Pressure
    from runtime.record import Cgroups


@dataclass(frozen=True, slots=True)
class CgroupSample:
    """What the group used. `cpu_s` is all its CPU time in seconds, `throttled_s` how long its quota held it back.

    The deep tier alone asks for page cache, limit and pressure; `pressure` is empty without v2.
    """

    cpu_s: float | None
    throttled_s: float | None
    oom_kills: int | None
    page_cache_bytes: int | None = None
    memory_limit_bytes: int | None = None
    pressure: Mapping[str, Pressure] = field(default_factory=dict)


def parse_cpu(v2_cpu_stat: bytes | None, v1_cpuacct_usage: bytes | None) -> float | None:
    """CPU time in seconds, of v2 if there is one (µs), else of v1 (ns)."""
    if v2_cpu_stat is not None:
        usage_usec = kerneltext.parse_value(v2_cpu_stat, b"usage_usec")
        return None if usage_usec is None else usage_usec / kerneltext.USEC_PER_S
    if v1_cpuacct_usage is not None:
        return kerneltext.parse_single(v1_cpuacct_usage) / kerneltext.NSEC_PER_S
    return None


def parse_page_cache(v2_memory_stat: bytes | None, v1_memory_stat: bytes | None) -> int | None:
    """Page cache without shared memory (guest RAM in a memfd is shared memory), in bytes."""
    for text, key in ((v2_memory_stat, b"file"), (v1_memory_stat, b"cache")):
        if text is not None:
            stat = kerneltext.parse_values(text, (key, b"shmem"))
            if key in stat:
                return max(0, stat[key] - stat.get(b"shmem", 0))
    return None


def parse_throttled(v2_cpu_stat: bytes | None, v1_cpu_stat: bytes | None) -> float | None:
    """Seconds of throttling, of v2's cpu.stat (µs), else of v1's (ns); None: no controller, so no quota either."""
    for text, key, per_s in (
        (v2_cpu_stat, b"throttled_usec", kerneltext.USEC_PER_S),
        (v1_cpu_stat, b"throttled_time", kerneltext.NSEC_PER_S),
    ):
        if text is not None and (value := kerneltext.parse_value(text, key)) is not None:
            return value / per_s
    return None


def parse_memory_limit(v2_memory_max: bytes | None, v1_limit: bytes | None) -> int | None:
    """Bytes of memory.max or memory.limit_in_bytes; None: no limit."""
    text = v1_limit if v2_memory_max is None else v2_memory_max
    return None if text is None else kerneltext.parse_limit(text)


def parse_oom_kills(v2_memory_events: bytes | None, v1_oom_control: bytes | None) -> int | None:
    """`oom_kill` of memory.events or of memory.oom_control; both are flat keyed files."""
    for text in (v2_memory_events, v1_oom_control):
        if text is not None:
            kills = kerneltext.parse_value(text, b"oom_kill")
            if kills is not None:
                return kills
    return None


class CgroupReader:
    """Holds the descriptors of one VM's group. `root` stands for `/`."""

    def __init__(self, groups: Cgroups, root: Path = Path("/")) -> None:
        def v2(name: str) -> KeptFile | None:
            return KeptFile(_below(root, groups.v2) / name) if groups.v2 else None

        def v1(controller: str, name: str) -> KeptFile | None:
            directory = groups.v1.get(controller)
            return KeptFile(_below(root, directory) / name) if directory else None

        def memory(v2_name: str, v1_name: str) -> tuple[KeptFile | None, KeptFile | None]:
            # Where v1 has the controller, to look for v2's files would fail in each round.
            old = v1("memory", v1_name)
            return (v2(v2_name) if old is None else None), old

        self._cpu = (v2("cpu.stat"), v1("cpuacct", "cpuacct.usage"))
        self._stat = memory("memory.stat", "memory.stat")
        self._oom = memory("memory.events", "memory.oom_control")
        self._throttled = v1("cpu", "cpu.stat")
        self._limit = memory("memory.max", "memory.limit_in_bytes")
        self._pressure = {kind: v2(f"{kind}.pressure") for kind in ("cpu", "memory", "io")}

    def read(self, *, deep: bool = False) -> CgroupSample:
        """One sample, with what the deep tier asks for or without.

        Raises:
            SourceError: the group is gone, or a file is not what the kernel writes.
        """
        v2_cpu, v1_cpu = self._cpu
        cpu_stat = _read(v2_cpu)
        cpuacct = _read(v1_cpu) if cpu_stat is None else None
        pressure = {kind: text for kind, file in self._pressure.items() if deep and (text := _read(file))}
        return CgroupSample(
            cpu_s=parse_cpu(cpu_stat, cpuacct),
            throttled_s=parse_throttled(cpu_stat, _read(self._throttled)),
            oom_kills=parse_oom_kills(*map(_read, self._oom)),
            page_cache_bytes=parse_page_cache(*map(_read, self._stat)) if deep else None,
            memory_limit_bytes=parse_memory_limit(*map(_read, self._limit)) if deep else None,
            pressure={kind: kerneltext.parse_pressure(text) for kind, text in pressure.items()},
        )

    def close(self) -> None:
        """Give all descriptors back."""
        for file in (*self._cpu, *self._stat, *self._oom, self._throttled, *self._limit, *self._pressure.values()):
            if file is not None:
                file.close()


def _read(file: KeptFile | None) -> bytes | None:
    return None if file is None else file.read()


def _below(root: Path, path: str) -> Path:
    return root / path.lstrip("/")
