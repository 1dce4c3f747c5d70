"""What a guest's agent tells: one batch of the guest's kernel files per sample. `guestport.py` asks it.

What comes is the guest's word: `docs/reference/agent-protocol.md` says what an honest one writes, and everything else
ends in `MalformedError`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from collector import kerneltext
from collector.errors import MalformedError, TooLargeError
from collector.sources import stockagent
from collector.sources.qmp import parse_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from collector.kerneltext import CpuTimes, DeviceIo, Disk, Interface, Pressure

T = TypeVar("T")

MAX_FILE_BYTES: Final = 16384
MAX_DEEP_FILE_BYTES: Final = 65536
"""A table of sockets is longer than any other file; with more sockets than fit it is absent, not cut."""
MAX_OOM_KILLS: Final = 1 << 31
"""Of one start, as in `runtime/output.py`: what a guest tells is added up over all epochs."""
_MACHINE_FILES: Final = ("meminfo", "vmstat", "diskstats", "net/dev", "net/snmp", "net/netstat")
_CGROUP_FILES: Final = (
    "cpu.stat", "memory.current", "memory.stat", "memory.peak", "memory.swap.current", "memory.events",
    "pids.current", "io.stat", "cpu.pressure", "memory.pressure", "io.pressure",
)  # fmt: skip
_DEEP_MACHINE_FILES: Final = ("stat", "net/tcp", "net/sockstat", "sys/fs/file-nr", "sys/kernel/threads-max")
_DEEP_CGROUP_FILES: Final = ("cgroup.procs", "pids.max")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """statvfs of the container's root."""

    size_bytes: int
    used_bytes: int
    inodes: int | None = None
    inodes_free: int | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """What the deep tier alone asks for; None, or empty: there is no such file, or it is too long.

    Attributes:
        threads_max: the lower of the group's limit and the kernel's.
        tcp_states: sockets by the kernel's number of their state.
        open_files: of the whole guest.
        sockets: of all families.
    """

    cpu: CpuTimes | None
    processes: int | None
    threads_max: int | None
    tcp_states: Mapping[int, int] | None
    open_files: int | None
    sockets: int | None


@dataclass(frozen=True, slots=True)
class GuestSample:
    """What the guest tells. None, or a missing key: its kernel has no such file.

    Attributes:
        time_ns: the guest's CLOCK_REALTIME.
        uptime_ns: the guest's CLOCK_BOOTTIME.
        clock_skew_s: the guest's clock minus the host's, of the middle of the exchange.
        boot_ns: time from the start of its kernel to its agent.
        io: by name of the device; a device that io.stat leaves out did nothing.
        tcp: /proc/net/snmp and netstat, keys as `Tcp.CurrEstab`.
        details: what the deep tier alone asks for.
    """

    time_ns: int
    uptime_ns: int | None
    boot_ns: int | None
    clock_skew_s: float | None
    cpu: Mapping[bytes, int] | None
    memory_bytes: int | None
    memory: Mapping[bytes, int] | None
    memory_peak_bytes: int | None
    swap_bytes: int | None
    memory_events: Mapping[bytes, int] | None
    threads: int | None
    io: Mapping[str, DeviceIo] | None
    disks: Mapping[str, tuple[bytes, Disk]]
    pressure: Mapping[str, Pressure]
    interfaces: tuple[Interface, ...]
    tcp: Mapping[bytes, int]
    memory_available_bytes: int | None
    memory_free_bytes: int | None
    oom_kills: int | None
    root: FileSystem | None
    details: Details | None


_MEMORY_STAT: Final = (
    b"anon", b"file", b"inactive_file", b"active_file", b"file_mapped", b"kernel", b"pgfault", b"pgmajfault",
)  # fmt: skip
_CHEAP_MEMORY_STAT: Final = _MEMORY_STAT[:3]
_MEMORY_EVENTS: Final = (b"max", b"oom", b"oom_kill")
_MEMINFO: Final = (b"MemAvailable", b"MemFree")
_TCP: Final = frozenset(
    {b"Tcp.CurrEstab", b"Tcp.RetransSegs", b"Tcp.EstabResets", b"TcpExt.ListenOverflows", b"TcpExt.ListenDrops"}
)
_DEEP_TCP: Final = _TCP | {b"Tcp.ActiveOpens", b"Tcp.PassiveOpens", b"Tcp.AttemptFails", b"Tcp.InSegs", b"Tcp.OutSegs"}
_NO_IO: Final = kerneltext.DeviceIo(0, 0, 0, 0)


def max_file_bytes(*, deep: bool) -> int:
    """How much of each file is asked for."""
    return MAX_DEEP_FILE_BYTES if deep else MAX_FILE_BYTES


def parse_files(answer: object, names: Mapping[str, str], max_bytes: int) -> dict[str, bytes]:
    """Contents by name, of the `files` of a `hyper-read`; `names` as of `paths`. Other paths are ignored.

    Raises:
        MalformedError: not of this shape, or a character beyond 0xFF in the data.
        TooLargeError: a file has more than `max_bytes`, which were asked for.
    """
    entries = answer.get("files") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or len(entries) > 128:
        raise MalformedError("hyper-read: no list of files")
    result = {}
    for entry in entries:
        path = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise MalformedError("hyper-read: a file without a path")
        data, name = entry.get("data"), names.get(path)
        # What was cut off is worse than nothing: a sum over it would be wrong.
        if name is None or data is None or entry.get("truncated"):
            continue
        if not isinstance(data, str):
            raise MalformedError("hyper-read: data is no string")
        if len(data) > max_bytes:
            raise TooLargeError(f"hyper-read: {name}: more than {max_bytes} bytes")
        try:
            result[name] = data.encode("latin-1")
        except UnicodeEncodeError as err:
            raise MalformedError("hyper-read: a character that is no byte") from err
    return result


def parse_boot(status: object) -> int | None:
    """Nanoseconds from the start of the guest's kernel to its agent, of a `hyper-status`; None of another agent."""
    return parse_number(status, "boot_ns") if isinstance(status, dict) and "boot_ns" in status else None


def parse_statvfs(answer: object) -> FileSystem | None:
    """The file system of `/`, of the `statvfs` of a `hyper-read`; None if it could not be asked for."""
    entries = answer.get("statvfs") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or len(entries) > 32:
        raise MalformedError("hyper-read: no list of statvfs")
    for entry in entries:
        if not isinstance(entry, dict):
            raise MalformedError("hyper-read: statvfs is no object")
        if entry.get("path") == "/" and "error" not in entry:
            size, blocks, free = (parse_number(entry, key) for key in ("frsize", "blocks", "bfree"))
            inodes, inodes_free = parse_number(entry, "files"), parse_number(entry, "ffree")
            if free > blocks or inodes_free > inodes:
                raise MalformedError("hyper-read: more free than there is")
            return FileSystem(size * blocks, size * (blocks - free), inodes, inodes_free)
    return None


def parse_sample(
    answer: object,
    cgroup: str,
    *,
    boot_ns: int | None = None,
    host_time_s: float | None = None,
    deep: bool = False,
) -> GuestSample:
    """The `return` of a `hyper-read`, whole.

    Args:
        answer: what came, as JSON.
        cgroup: directory of the container's group in the guest.
        boot_ns: of `hyper-status`.
        host_time_s: the host's clock in the middle of the exchange.
        deep: whether the files of the deep tier were asked for, too.
    """
    files = parse_files(answer, paths(cgroup, deep=deep), max_file_bytes(deep=deep))
    time_ns = parse_number(answer, "time_ns")
    available_bytes, free_bytes = (kerneltext.parse_meminfo_value(files.get("meminfo", b""), key) for key in _MEMINFO)
    memory_stat = _MEMORY_STAT if deep else _CHEAP_MEMORY_STAT
    tcp = kerneltext.parse_net_table(files.get("net/snmp", b""), _DEEP_TCP if deep else _TCP)
    netstat = kerneltext.parse_net_table(files.get("net/netstat", b""), _TCP)
    disks = _maybe(kerneltext.parse_diskstats, files.get("diskstats")) or {}
    io = _maybe(kerneltext.parse_io_stat, files.get("io.stat"))
    pressure = {kind: files.get(f"{kind}.pressure") for kind in ("cpu", "memory", "io")}
    memory_events = _maybe(lambda text: kerneltext.parse_values(text, _MEMORY_EVENTS), files.get("memory.events"))
    oom_kills = kerneltext.parse_value(files.get("vmstat", b""), b"oom_kill")
    if max(oom_kills or 0, (memory_events or {}).get(b"oom_kill", 0)) > MAX_OOM_KILLS:
        raise MalformedError(f"more than {MAX_OOM_KILLS} OOM kills")
    return GuestSample(
        time_ns=time_ns,
        uptime_ns=parse_number(answer, "uptime_ns"),
        boot_ns=boot_ns,
        clock_skew_s=None if host_time_s is None else time_ns / kerneltext.NSEC_PER_S - host_time_s,
        cpu=_maybe(kerneltext.parse_flat, files.get("cpu.stat")),
        memory_bytes=_maybe(kerneltext.parse_single, files.get("memory.current")),
        memory=_maybe(lambda text: kerneltext.parse_values(text, memory_stat), files.get("memory.stat")),
        memory_peak_bytes=_maybe(kerneltext.parse_single, files.get("memory.peak")),
        swap_bytes=_maybe(kerneltext.parse_single, files.get("memory.swap.current")),
        memory_events=memory_events,
        threads=_maybe(kerneltext.parse_single, files.get("pids.current")),
        io=None if io is None else {_name(disk): io.get(number, _NO_IO) for number, disk in disks.items()},
        disks={_name(disk): (number, disk) for number, disk in disks.items()} if deep else {},
        pressure={kind: kerneltext.parse_pressure(text) for kind, text in pressure.items() if text},
        interfaces=_maybe(kerneltext.parse_net_dev, files.get("net/dev")) or (),
        tcp={**tcp, **netstat},
        memory_available_bytes=available_bytes,
        memory_free_bytes=free_bytes,
        oom_kills=oom_kills,
        root=parse_statvfs(answer),
        details=_parse_details(files) if deep else None,
    )


def parse_stock_sample(answers: Mapping[str, object], *, host_time_s: float | None, deep: bool) -> GuestSample:
    """The answers of a stock qemu-ga by command; of a command that it does not know there is none."""
    time_ns = stockagent.parse_time(answers.get("guest-get-time"))
    interfaces, diskstats, fsinfo, cpustats = (answers.get(command) for command in stockagent.DEEP_COMMANDS[1:])
    io, disks = (None, {}) if diskstats is None else stockagent.parse_disks(diskstats)
    root = None if fsinfo is None else stockagent.parse_root(fsinfo)
    cpu = None if cpustats is None else stockagent.parse_cpus(cpustats)
    return GuestSample(
        time_ns=time_ns,
        uptime_ns=None,
        boot_ns=None,
        clock_skew_s=None if host_time_s is None else time_ns / kerneltext.NSEC_PER_S - host_time_s,
        cpu=None,
        memory_bytes=None,
        memory=None,
        memory_peak_bytes=None,
        swap_bytes=None,
        memory_events=None,
        threads=None,
        io=io,
        disks=disks if deep else {},
        pressure={},
        interfaces=() if interfaces is None else stockagent.parse_interfaces(interfaces),
        tcp={},
        memory_available_bytes=None,
        memory_free_bytes=None,
        oom_kills=None,
        root=None if root is None else FileSystem(*root),
        details=Details(cpu, None, None, None, None, None) if deep else None,
    )


def _parse_details(files: Mapping[str, bytes]) -> Details:
    limits = (
        _maybe(kerneltext.parse_limit, files.get("pids.max")),
        _maybe(kerneltext.parse_single, files.get("sys/kernel/threads-max")),
    )
    return Details(
        cpu=_maybe(kerneltext.parse_cpu_times, files.get("stat")),
        processes=_maybe(kerneltext.count_lines, files.get("cgroup.procs")),
        threads_max=min((limit for limit in limits if limit is not None), default=None),
        tcp_states=_maybe(kerneltext.parse_tcp_states, files.get("net/tcp")),
        open_files=_maybe(kerneltext.parse_file_count, files.get("sys/fs/file-nr")),
        sockets=_maybe(kerneltext.parse_sockets, files.get("net/sockstat")),
    )


def _name(disk: Disk) -> str:
    return disk.name.decode("latin-1")


def _maybe(parse: Callable[[bytes], T], text: bytes | None) -> T | None:
    return None if text is None else parse(text)


@functools.lru_cache(maxsize=64)
def paths(cgroup: str, *, deep: bool) -> Mapping[str, str]:
    """The files that a sample is made of, each with what it is called in here."""
    machine = _MACHINE_FILES + (_DEEP_MACHINE_FILES if deep else ())
    group = _CGROUP_FILES + (_DEEP_CGROUP_FILES if deep else ())
    return {f"/proc/{name}": name for name in machine} | {f"{cgroup}/{name}": name for name in group}
