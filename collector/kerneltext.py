"""Parsers of the kernel's text files, for the host's files and for those that a guest hands over.

All are pure: bytes in, numbers out. They take nothing on trust, as a guest may write what it likes: a number has at
most 20 digits and fits 64 bits, a table is cut off at `MAX_ROWS`, and what does not parse is a `MalformedError`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_COUNT: Final = 2**64 - 1
MAX_ROWS: Final = 4096
MAX_HEADER_BYTES: Final = 4096
"""Of a line of names in snmp or netstat, which is kept; the longest, TcpExt, has 2200 bytes."""
MAX_DEVICES: Final = 1024
"""In io.stat, of which a row takes longer than of any other table."""
MSEC_PER_S: Final = 1_000
USEC_PER_S: Final = 1_000_000
NSEC_PER_S: Final = 1_000_000_000
TICKS_PER_S: Final = 100
"""Clock ticks in /proc; USER_HZ is 100 on every architecture that QEMU's microvm machine has."""

_DEVICE_NUMBER: Final = re.compile(rb"[0-9]{1,10}:[0-9]{1,10}")
_IO_STAT: Final = (b"rbytes", b"wbytes", b"rios", b"wios", b"dbytes")
_NO_LIMIT: Final = 2**63 - 65536
"""v1 writes 2^63 - 1 rounded down to a page (at most 64 KiB) where there is no limit."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """Stall times since the group was made, seconds. `full_s` is None where the kernel has no such line."""

    some_s: float
    full_s: float | None


@dataclass(frozen=True, slots=True)
class Interface:
    """One line of /proc/net/dev: counts since the interface was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """One device of io.stat."""

    rbytes: int
    wbytes: int
    rios: int
    wios: int
    dbytes: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """One line of /proc/diskstats: its name, and how long it had something to do."""

    name: bytes
    busy_s: float


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """/proc/stat: CPU seconds since boot, and tasks that run or wait now.

    Attributes:
        busy_s: user, nice, system, irq and softirq; a guest's time (of nested VMs) is in user. A kernel that looks at
            each tick what runs misses what is shorter.
        idle_s: idle and iowait, which a kernel without ticks in idleness measures; None: not told.
        steal_s: time in which the hypervisor ran something else.
        by_cpu: busy seconds of each CPU, in the file's order.
        running: runnable tasks, the reader among them.
        blocked: tasks that wait for a disk.
    """

    busy_s: float
    idle_s: float | None
    steal_s: float
    by_cpu: tuple[float, ...]
    running: int | None
    blocked: int | None


def parse_count(token: bytes) -> int:
    """A plain decimal number of at most 64 bits.

    Raises:
        MalformedError: anything else: a sign, a blank, 21 digits, 2^64.
    """
    if len(token) > 20 or not token.isdigit():
        raise MalformedError(f"not a count: {token[:24]!r}")
    value = int(token)
    if value > MAX_COUNT:
        raise MalformedError(f"not a 64 bit count: {token!r}")
    return value


def parse_single(text: bytes) -> int:
    """A file that holds one number, such as memory.current, pids.current, cpuacct.usage."""
    return parse_count(text.strip(b"\n"))


def parse_limit(text: bytes) -> int | None:
    """A file that holds a limit: None for `max` and for v1's "no limit" number."""
    token = text.strip(b"\n")
    if token == b"max":
        return None
    value = parse_count(token)
    return None if value >= _NO_LIMIT else value


def parse_flat(text: bytes) -> dict[bytes, int]:
    """A flat keyed file: `key value` lines (cpu.stat, memory.events, memory.oom_control)."""
    result = {}
    for line in _lines(text):
        key, _, value = line.partition(b" ")
        result[key] = parse_count(value)
    return result


def parse_value(text: bytes, key: bytes) -> int | None:
    """One number of a long flat keyed file, such as vmstat; None if it has no such line. Nothing else is looked at."""
    start = text.find(b"\n" + key + b" ") + 1
    if start == 0 and not text.startswith(key + b" "):
        return None
    end = text.find(b"\n", start)
    return parse_count(text[start + len(key) + 1 : end if end >= 0 else None])


def parse_values(text: bytes, keys: tuple[bytes, ...]) -> dict[bytes, int]:
    """These numbers of a long flat keyed file, such as memory.stat, as far as it has them."""
    found = ((key, parse_value(text, key)) for key in keys)
    return {key: value for key, value in found if value is not None}


def parse_meminfo(text: bytes) -> dict[bytes, int]:
    """/proc/meminfo, in bytes; its `kB` are 1024."""
    result = {}
    for line in _lines(text):
        key, colon, rest = line.partition(b":")
        if not colon:
            raise MalformedError(f"meminfo: {line[:40]!r}")
        words = rest.split()
        if not words:
            raise MalformedError(f"meminfo: {line[:40]!r}")
        result[key] = parse_count(words[0]) * (1024 if words[1:] == [b"kB"] else 1)
    return result


def parse_meminfo_value(text: bytes, key: bytes) -> int | None:
    """One line of /proc/meminfo, in bytes; None if it has no such line. Nothing else is looked at."""
    start = text.find(b"\n" + key + b":") + 1
    if start == 0 and not text.startswith(key + b":"):
        return None
    end = text.find(b"\n", start)
    words = text[start + len(key) + 1 : end if end >= 0 else None].split()
    if not words:
        raise MalformedError(f"meminfo: no number after {key!r}")
    return parse_count(words[0]) * (1024 if words[1:] == [b"kB"] else 1)


def parse_pressure(text: bytes) -> Pressure:
    """A PSI file (Documentation/accounting/psi.rst): `some avg10=… total=<µs>` and, mostly, `full …`."""
    totals = {}
    for line in _lines(text):
        kind, _, rest = line.partition(b" ")
        _, equals, total = rest.rpartition(b"total=")
        if not equals:
            raise MalformedError(f"pressure: {line[:40]!r}")
        totals[kind] = parse_count(total) / USEC_PER_S
    if b"some" not in totals:
        raise MalformedError("pressure: no line `some`")
    return Pressure(totals[b"some"], totals.get(b"full"))


def parse_net_dev(text: bytes, *, max_interfaces: int = 8) -> tuple[Interface, ...]:
    """/proc/net/dev without `lo`: at most `max_interfaces`, in the file's order."""
    result = []
    for line in _lines(text):
        name, colon, rest = line.partition(b":")
        if not colon:
            continue  # the two header lines
        label = name.strip()
        if label == b"lo":
            continue
        if not 0 < len(label) <= 15:  # IFNAMSIZ
            raise MalformedError(f"net/dev: interface {label[:24]!r}")
        words = rest.split()
        if len(words) < 16:
            raise MalformedError(f"net/dev: {len(words)} columns")
        rx = [parse_count(word) for word in words[0:4]]
        tx = [parse_count(word) for word in words[8:12]]
        result.append(Interface(label.decode("latin-1"), rx[0], rx[1], rx[2], rx[3], tx[0], tx[1], tx[2], tx[3]))
        if len(result) == max_interfaces:
            break
    return tuple(result)


def parse_net_table(text: bytes, wanted: frozenset[bytes] | None = None) -> dict[bytes, int]:
    """/proc/net/snmp and /proc/net/netstat: pairs of lines, names then numbers; keys are `Tcp.CurrEstab`.

    Negative numbers (Tcp MaxConn is -1) are left out. With `wanted`, other tables and numbers are not looked at.
    """
    if wanted is not None:
        return _wanted_of_net_table(text, wanted)
    result = {}
    lines = _lines(text)
    for names in lines:
        values = next(lines, b"")
        prefix, _, keys = names.partition(b": ")
        again, _, numbers = values.partition(b": ")
        if prefix != again:
            raise MalformedError(f"net table: {names[:24]!r} is followed by {values[:24]!r}")
        columns, cells = keys.split(), numbers.split()
        if len(columns) != len(cells):
            raise MalformedError(f"net table: {prefix[:24]!r} has {len(columns)} names, {len(cells)} numbers")
        for column, value in zip(columns, cells, strict=True):
            key = prefix + b"." + column
            if not value.startswith(b"-"):
                result[key] = parse_count(value)
    return result


def _wanted_of_net_table(text: bytes, wanted: frozenset[bytes]) -> dict[bytes, int]:
    # TcpExt has 130 columns, of which two are wanted, and its names are the same in each sample.
    result = {}
    for table in _net_tables(wanted):
        start = 0 if text.startswith(table) else text.find(b"\n" + table) + 1
        if not start and not text.startswith(table):
            continue
        names, values, *_ = [*text[start:].split(b"\n", 2), b""]
        if len(names) > MAX_HEADER_BYTES:
            raise MalformedError(f"net table: {names[:24]!r} has more than {MAX_HEADER_BYTES} bytes")
        prefix, blanks, columns = _net_columns(names, wanted)
        if not values.startswith(prefix):
            raise MalformedError(f"net table: {names[:24]!r} is followed by {values[:24]!r}")
        if not columns:
            continue
        if values.count(b" ") != blanks:
            raise MalformedError(f"net table: {prefix[:24]!r} has {blanks} names, {values.count(b' ')} numbers")
        last = columns[-1][1]
        cells = values.split(b" ", last + 1)
        for key, index in columns:
            if not cells[index].startswith(b"-"):
                result[key] = parse_count(cells[index])
    return result


@functools.lru_cache(maxsize=64)
def _net_tables(wanted: frozenset[bytes]) -> tuple[bytes, ...]:
    """How the lines of these tables begin."""
    return tuple(sorted({key.partition(b".")[0] + b": " for key in wanted}))


@functools.lru_cache(maxsize=64)
def _net_columns(names: bytes, wanted: frozenset[bytes]) -> tuple[bytes, int, tuple[tuple[bytes, int], ...]]:
    """How the line of numbers begins, how many blanks it has, and where those that are wanted stand, in its order."""
    table = names.partition(b": ")[0]
    keys = [table + b"." + word for word in names.split(b" ")]
    wanted_at = tuple((key, index) for index, key in enumerate(keys) if key in wanted)
    return table + b": ", len(keys) - 1, wanted_at


def parse_cpu_times(text: bytes, *, max_cpus: int = 64) -> CpuTimes:
    """/proc/stat (proc(5)); `by_cpu` has at most `max_cpus`."""
    total: tuple[float, float, float] | None = None
    by_cpu: list[float] = []
    tasks: dict[bytes, int] = {}
    for line in _lines(text):
        word = line[: line.find(b" ")]
        if word == b"cpu":
            total = _cpu_line(line) if total is None else total
        elif word.startswith(b"cpu"):
            if len(by_cpu) < max_cpus:
                by_cpu.append(_cpu_line(line)[0])
        elif word in {b"procs_running", b"procs_blocked"}:
            tasks[word] = parse_count(line[len(word) + 1 :])
    if total is None:
        raise MalformedError("stat: no line `cpu`")
    return CpuTimes(*total, tuple(by_cpu), tasks.get(b"procs_running"), tasks.get(b"procs_blocked"))


def _cpu_line(line: bytes) -> tuple[float, float, float]:
    """Busy, idle and steal, in seconds."""
    words = line.split(None, 9)
    if len(words) < 9:
        raise MalformedError("stat: a line `cpu` without a steal column")
    user, nice, system, idle, iowait, irq, softirq, steal = map(parse_count, words[1:9])
    busy = user + nice + system + irq + softirq
    return busy / TICKS_PER_S, (idle + iowait) / TICKS_PER_S, steal / TICKS_PER_S


def parse_tcp_states(text: bytes) -> dict[int, int]:
    """/proc/net/tcp: how many sockets are in each state, by the kernel's number (include/net/tcp_states.h)."""
    result: dict[int, int] = {}
    for line in _lines(text.partition(b"\n")[2]):
        words = line.split(None, 4)
        if len(words) < 4 or len(words[3]) != 2:
            raise MalformedError(f"net/tcp: {line[:40]!r}")
        try:
            state = int(words[3], 16)
        except ValueError as err:
            raise MalformedError(f"net/tcp: state {words[3]!r}") from err
        result[state] = result.get(state, 0) + 1
    return result


def parse_sockets(text: bytes) -> int:
    """/proc/net/sockstat: sockets in use, of all families of this network namespace."""
    words = text.partition(b"\n")[0].split()
    if len(words) != 3 or words[:2] != [b"sockets:", b"used"]:
        raise MalformedError("sockstat: no line `sockets: used`")
    return parse_count(words[2])


def parse_file_count(text: bytes) -> int:
    """/proc/sys/fs/file-nr: open files, the first number less the second (allocated, and free of these).

    The kernel adds up each CPU's count when it has changed by 32, so that a small guest reads 0.
    """
    words = text.split()
    if len(words) != 3:
        raise MalformedError(f"file-nr: {text[:40]!r}")
    return max(0, parse_count(words[0]) - parse_count(words[1]))


def parse_io_stat(text: bytes) -> dict[bytes, DeviceIo]:
    """io.stat of cgroup v2, by `major:minor`. A device that did nothing may have no numbers.

    What block policies add is not looked at: iolatency writes `depth=max`.
    """
    result = {}
    for line in _lines(text, MAX_DEVICES):
        device, _, rest = line.partition(b" ")
        try:
            pairs = dict([word.split(b"=", 1) for word in rest.split()])
        except ValueError as err:
            raise MalformedError(f"io.stat: {line[:40]!r}") from err
        result[device] = DeviceIo(*[parse_count(pairs.get(key, b"0")) for key in _IO_STAT])
    return result


def device_number(major: bytes, minor: bytes) -> bytes:
    """`major:minor`; both are labels.

    Raises:
        MalformedError: one is not of 1 to 10 digits.
    """
    number = major + b":" + minor
    if _DEVICE_NUMBER.fullmatch(number) is None:
        raise MalformedError(f"not a device number: {number[:24]!r}")
    return number


def parse_diskstats(text: bytes) -> dict[bytes, Disk]:
    """/proc/diskstats by `major:minor` (Documentation/admin-guide/iostats.rst; field 10 is milliseconds of I/O)."""
    result = {}
    for line in _lines(text):
        words = line.split(None, 13)
        if len(words) < 13:
            raise MalformedError(f"diskstats: {line[:40]!r}")
        result[device_number(words[0], words[1])] = Disk(words[2], parse_count(words[12]) / MSEC_PER_S)
    return result


def count_lines(text: bytes) -> int:
    """Number of lines, such as processes in cgroup.procs."""
    return text.count(b"\n")


def _lines(text: bytes, most: int = MAX_ROWS) -> Iterator[bytes]:
    lines = text.split(b"\n", most)
    if len(lines) > most:
        raise MalformedError(f"more than {most} lines")
    return (line for line in lines if line)
