"""Parsers of the kernel's text files, for the host's files and for those that a guest hands over.

All are pure: bytes in, numbers out. They take nothing on trust, as a guest may write what it likes: a number has at
most 20 digits and fits 64 bits, a table is cut off at `MAX_ROWS`, and what does not parse is a `MalformedError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_COUNT: Final = 2**64 - 1
MAX_ROWS: Final = 4096
USEC_PER_S: Final = 1_000_000
NSEC_PER_S: Final = 1_000_000_000
TICKS_PER_S: Final = 100
"""Clock ticks in /proc; USER_HZ is 100 on every architecture that QEMU's microvm machine has."""

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


def parse_flat(text: bytes, wanted: frozenset[bytes] | None = None) -> dict[bytes, int]:
    """A flat keyed file: `key value` lines (cpu.stat, memory.stat, memory.events, vmstat, memory.oom_control).

    With `wanted`, numbers of other keys are not looked at: most of vmstat and memory.stat is nobody's metric.
    """
    result = {}
    for line in _lines(text):
        key, _, value = line.partition(b" ")
        if wanted is None or key in wanted:
            result[key] = parse_count(value)
    return result


def parse_meminfo(text: bytes, wanted: frozenset[bytes] | None = None) -> dict[bytes, int]:
    """/proc/meminfo, in bytes; its `kB` are 1024. With `wanted`, other lines are not looked at."""
    result = {}
    for line in _lines(text):
        key, colon, rest = line.partition(b":")
        if not colon:
            raise MalformedError(f"meminfo: {line[:40]!r}")
        if wanted is not None and key not in wanted:
            continue
        words = rest.split()
        if not words:
            raise MalformedError(f"meminfo: {line[:40]!r}")
        result[key] = parse_count(words[0]) * (1024 if words[1:] == [b"kB"] else 1)
    return result


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
        columns = [parse_count(word) for word in words[:16]]
        rx = columns[0:4]
        tx = columns[8:12]
        result.append(Interface(label.decode("latin-1"), rx[0], rx[1], rx[2], rx[3], tx[0], tx[1], tx[2], tx[3]))
        if len(result) == max_interfaces:
            break
    return tuple(result)


def parse_net_table(text: bytes, wanted: frozenset[bytes] | None = None) -> dict[bytes, int]:
    """/proc/net/snmp and /proc/net/netstat: pairs of lines, names then numbers; keys are `Tcp.CurrEstab`.

    Negative numbers (Tcp MaxConn is -1) are left out. With `wanted`, other tables and numbers are not looked at.
    """
    tables = None if wanted is None else {key.partition(b".")[0] for key in wanted}
    result = {}
    lines = _lines(text)
    for names in lines:
        values = next(lines, b"")
        prefix, _, keys = names.partition(b": ")
        again, _, numbers = values.partition(b": ")
        if prefix != again:
            raise MalformedError(f"net table: {names[:24]!r} is followed by {values[:24]!r}")
        if tables is not None and prefix not in tables:
            continue
        columns, cells = keys.split(), numbers.split()
        if len(columns) != len(cells):
            raise MalformedError(f"net table: {prefix[:24]!r} has {len(columns)} names, {len(cells)} numbers")
        for column, value in zip(columns, cells, strict=True):
            key = prefix + b"." + column
            if (wanted is None or key in wanted) and not value.startswith(b"-"):
                result[key] = parse_count(value)
    return result


def parse_steal(text: bytes) -> float:
    """Seconds of steal in /proc/stat: the eighth number of its first line."""
    line = text.partition(b"\n")[0].split()
    if len(line) < 9 or line[0] != b"cpu":
        raise MalformedError("stat: no line `cpu` with a steal column")
    return parse_count(line[8]) / TICKS_PER_S


def parse_io_stat(text: bytes) -> dict[bytes, DeviceIo]:
    """io.stat of cgroup v2, by `major:minor`. A device that did nothing may have no numbers."""
    result = {}
    for line in _lines(text):
        device, _, rest = line.partition(b" ")
        pairs = dict(_pair(word) for word in rest.split())
        result[device] = DeviceIo(*(pairs.get(key, 0) for key in (b"rbytes", b"wbytes", b"rios", b"wios")))
    return result


def parse_diskstats_names(text: bytes) -> dict[bytes, bytes]:
    """/proc/diskstats: name of each device by `major:minor`."""
    result = {}
    for line in _lines(text):
        words = line.split(None, 3)
        if len(words) < 3:
            raise MalformedError(f"diskstats: {line[:40]!r}")
        result[words[0] + b":" + words[1]] = words[2]
    return result


def count_lines(text: bytes) -> int:
    """Number of lines, such as processes in cgroup.procs."""
    return text.count(b"\n")


def _pair(word: bytes) -> tuple[bytes, int]:
    key, equals, value = word.partition(b"=")
    if not equals:
        raise MalformedError(f"io.stat: {word[:24]!r}")
    return key, parse_count(value)


def _lines(text: bytes) -> Iterator[bytes]:
    lines = text.split(b"\n", MAX_ROWS)
    if len(lines) > MAX_ROWS:
        raise MalformedError(f"more than {MAX_ROWS} lines")
    return (line for line in lines if line)
