"""The QEMU process on the host: CPU time by thread, memory by kind, storage traffic.

Source: proc(5): /proc/<pid>/stat, io, smaps and task/<tid>/schedstat (Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector import kerneltext
from collector.errors import MalformedError, UnreachableError
from collector.keptfile import KeptFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.record import Vm

SMAPS_INTERVAL_S: Final = 60.0
"""smaps walks the page tables, about a millisecond a VM, and memory of the VMM moves slowly."""
_MAX_SMAPS_BYTES: Final = 4 << 20
_MAX_THREADS: Final = 256

_MAPPING: Final = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) \S+ \S+ (\d{1,20})[^\n]*\n"
    rb"(?:(?!Rss:)[A-Z][^\n]*\n)*Rss: +(\d{1,16}) kB\n"
    rb"Pss: +(\d{1,16}) kB\n"
    rb"(?:(?!Anonymous:)[A-Z][^\n]*\n)*Anonymous: +(\d{1,16}) kB",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Fields 14, 15 and 22 of /proc/<pid>/stat; `cpu_s` is user and system time in seconds."""

    cpu_s: float
    start_ticks: int


@dataclass(frozen=True, slots=True)
class VmMemory:
    """Resident memory of the process, bytes, by what it is for; all None if the mapping of the RAM is not found.

    `vmm` is proportional (PSS): the program's text is shared by all VMs of the host, and is billed once.
    """

    guest_ram: int | None
    template_shared: int | None
    vmm: int | None


@dataclass(frozen=True, slots=True)
class ThreadIds:
    """The host's thread ids, as QMP tells them."""

    vcpus: tuple[int, ...]
    iothreads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """Seconds that threads ran, and seconds that they could have run and waited for a CPU (run delay)."""

    run_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """What the QEMU process used. Threads are None while they are not known, `iothreads` if there are none as well.

    `memory_is_new`: it was read for this sample and is not that of an earlier one.
    """

    cpu_s: float
    vcpus: ThreadTime | None
    iothreads: ThreadTime | None
    main: ThreadTime | None
    read_bytes: int | None
    written_bytes: int | None
    memory: VmMemory | None
    memory_is_new: bool = False


def parse_stat(text: bytes) -> ProcessStat:
    """Read /proc/<pid>/stat; the name in brackets may hold anything, a bracket as well."""
    fields = text.rpartition(b")")[2].split()
    if len(fields) < 20:
        raise MalformedError("stat: too few fields")
    ticks = kerneltext.parse_count(fields[11]) + kerneltext.parse_count(fields[12])
    return ProcessStat(ticks / kerneltext.TICKS_PER_S, kerneltext.parse_count(fields[19]))


def parse_schedstat(text: bytes) -> ThreadTime:
    """The first two numbers of schedstat, nanoseconds: on a CPU, and waiting for one."""
    words = text.split(None, 2)
    if len(words) < 2:
        raise MalformedError("schedstat: too few fields")
    run_ns, wait_ns = kerneltext.parse_count(words[0]), kerneltext.parse_count(words[1])
    return ThreadTime(run_ns / kerneltext.NSEC_PER_S, wait_ns / kerneltext.NSEC_PER_S)


def parse_io(text: bytes) -> tuple[int, int]:
    """Bytes read from and written to storage, of /proc/<pid>/io."""
    pairs = kerneltext.parse_flat(text.replace(b": ", b" "))
    try:
        return pairs[b"read_bytes"], pairs[b"write_bytes"]
    except KeyError as err:
        raise MalformedError("io: no line read_bytes or write_bytes") from err


def parse_smaps(text: bytes, ram_bytes: int) -> VmMemory:
    """Split resident memory into guest RAM, RAM still shared with the template, and QEMU's own.

    Guest RAM is the mapping, or the neighbours of one file, that together are as large as the VM's RAM. In a private
    mapping of a template's file, anonymous pages are the VM's own copies and the others are the template's.
    """
    sizes: dict[tuple[bytes, bytes], list[int]] = {}
    total = 0
    for start, end, mode, inode, rss, pss, anonymous in _MAPPING.findall(text):
        total += int(pss)
        key = (inode, mode[3:4]) if inode != b"0" else (start, mode[3:4])
        found = sizes.setdefault(key, [0, 0, 0, 0, 0])
        found[0] += int(end, 16) - int(start, 16)
        found[1] += int(rss)
        found[2] += int(anonymous)
        found[3] = int(inode != b"0" and mode[3:4] == b"p")
        found[4] += int(pss)
    best = max((entry for entry in sizes.values() if entry[0] == ram_bytes), key=lambda e: e[1], default=None)
    if best is None:
        return VmMemory(None, None, None)
    _, rss_kb, anonymous_kb, private_file, pss_kb = best
    own_kb = anonymous_kb if private_file else rss_kb
    return VmMemory(own_kb * 1024, max(0, rss_kb - own_kb) * 1024, max(0, total - pss_kb) * 1024)


class ProcessReader:
    """Holds the descriptors of one QEMU process. `proc` stands for /proc."""

    def __init__(self, vm: Vm, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._vm = vm
        self._directory = proc / str(vm.pid)
        self._clock = clock
        self._stat = KeptFile(self._directory / "stat")
        self._io = KeptFile(self._directory / "io")
        self._threads: dict[int, KeptFile] = {}
        self._memory: VmMemory | None = None
        self._memory_at = float("-inf")
        self._memory_paired: bool | None = None

    def read(self, threads: ThreadIds | None, *, paired: bool = False, deep: bool = False) -> ProcessSample:
        """One sample; `threads` is None as long as QMP has not told them.

        Args:
            threads: the host's thread ids.
            paired: there is a sample of the guest of this moment, to compare memory with.
            deep: read the storage traffic as well.

        Raises:
            UnreachableError: the process is gone, or the pid is another process's by now.
            SourceError: a file is not what the kernel writes.
        """
        text = self._stat.read()
        if text is None:
            raise UnreachableError(f"no process {self._vm.pid}")
        stat = parse_stat(text)
        if stat.start_ticks != self._vm.pid_start_ticks:
            raise UnreachableError(f"process {self._vm.pid} is not the VM's any more")
        io_text = self._io.read() if deep else None
        read_bytes, written_bytes = parse_io(io_text) if io_text is not None else (None, None)
        memory_is_new = self._read_memory(paired=paired)
        return ProcessSample(
            cpu_s=stat.cpu_s,
            vcpus=self._sum(threads.vcpus) if threads else None,
            iothreads=self._sum(threads.iothreads) if threads and threads.iothreads else None,
            main=self._sum((self._vm.pid,)) if threads else None,
            read_bytes=read_bytes,
            written_bytes=written_bytes,
            memory=self._memory,
            memory_is_new=memory_is_new,
        )

    def _sum(self, tids: tuple[int, ...]) -> ThreadTime | None:
        run_s = wait_s = 0.0
        for tid in tids[:_MAX_THREADS]:
            file = self._threads.get(tid)
            if file is None:
                file = self._threads[tid] = KeptFile(self._directory / "task" / str(tid) / "schedstat")
            text = file.read()
            if text is None:
                return None
            time_ = parse_schedstat(text)
            run_s += time_.run_s
            wait_s += time_.wait_s
        return ThreadTime(run_s, wait_s)

    def _read_memory(self, *, paired: bool) -> bool:
        now = self._clock()
        # The first that goes with a sample of the guest is not waited for: without it there is no overhead to tell.
        if now - self._memory_at < SMAPS_INTERVAL_S and (self._memory_paired or not paired):
            return False
        file = KeptFile(self._directory / "smaps")
        try:
            text = file.read(_MAX_SMAPS_BYTES)
        finally:
            file.close()
        self._memory = parse_smaps(text, self._vm.ram_bytes) if text is not None else None
        # Those after the first are spread over the minute: together, the walks of all VMs would hold up a round.
        self._memory_at = now - (self._vm.pid % SMAPS_INTERVAL_S if paired is not self._memory_paired else 0.0)
        self._memory_paired = paired
        return True

    def close(self) -> None:
        """Give all descriptors back."""
        for file in (self._stat, self._io, *self._threads.values()):
            file.close()
        self._threads.clear()
