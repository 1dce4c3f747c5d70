"""A stock qemu-ga in place of our agent: what its own commands tell, which is less.

It knows no control group and no PSI: CPU, memory and pressure of the container are absent. Network and disks are the
whole guest's, which is the container and the guest's own init.
Source: QEMU guest agent protocol reference: guest-get-time, guest-network-get-interfaces, guest-get-diskstats,
guest-get-fsinfo, guest-get-cpustats (the last and diskstats from 7.1 on). An interface without an address has no
counters there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.errors import MalformedError
from collector.kerneltext import MSEC_PER_S, CpuTimes, DeviceIo, Disk, Interface, device_number
from collector.sources.qmp import parse_number

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Final = ("guest-get-time", "guest-network-get-interfaces", "guest-get-diskstats", "guest-get-fsinfo")
DEEP_COMMANDS: Final = (*COMMANDS, "guest-get-cpustats")
SECTOR_BYTES: Final = 512
"""Of the kernel's disk statistics, whatever the device's own sectors are."""
MAX_INTERFACES: Final = 8
_MAX_ENTRIES: Final = 256
_IFNAMSIZ: Final = 15


def parse_time(answer: object) -> int:
    """The guest's clock, nanoseconds since 1970."""
    return parse_number({"time": answer}, "time")


def parse_interfaces(answer: object) -> tuple[Interface, ...]:
    """Interfaces that have counters, without `lo`, at most `MAX_INTERFACES`."""
    result: list[Interface] = []
    for entry in _entries(answer, "guest-network-get-interfaces"):
        name, counts = entry.get("name"), entry.get("statistics")
        if not isinstance(name, str) or not 0 < len(name) <= _IFNAMSIZ:
            raise MalformedError("guest-network-get-interfaces: an interface without a name")
        if name == "lo" or counts is None or len(result) == MAX_INTERFACES:
            continue
        rx, tx = (
            [parse_number(counts, f"{way}-{what}") for what in ("bytes", "packets", "errs", "dropped")]
            for way in ("rx", "tx")
        )
        result.append(Interface(name, rx[0], rx[1], rx[2], rx[3], tx[0], tx[1], tx[2], tx[3]))
    return tuple(result)


def parse_disks(answer: object) -> tuple[dict[str, DeviceIo], dict[str, tuple[bytes, Disk]]]:
    """Traffic, and number and busy time, of each disk by its name."""
    io: dict[str, DeviceIo] = {}
    disks: dict[str, tuple[bytes, Disk]] = {}
    for entry in _entries(answer, "guest-get-diskstats"):
        name, stats = entry.get("name"), entry.get("stats")
        if not isinstance(name, str) or not name or len(name) > 64 or not isinstance(stats, dict):
            raise MalformedError("guest-get-diskstats: a disk without a name or counts")
        read, written, discarded = (
            parse_number(stats, f"{op}-sectors") * SECTOR_BYTES if f"{op}-sectors" in stats else 0
            for op in ("read", "write", "discard")
        )
        rios, wios = parse_number(stats, "read-ios"), parse_number(stats, "write-ios")
        io[name] = DeviceIo(read, written, rios, wios, discarded)
        if "total-ticks" in stats:
            number = device_number(*(str(parse_number(entry, key)).encode() for key in ("major", "minor")))
            disks[name] = (number, Disk(name.encode(errors="replace"), parse_number(stats, "total-ticks") / MSEC_PER_S))
    return io, disks


def parse_root(answer: object) -> tuple[int, int] | None:
    """Size and use of the file system of `/`, bytes; None if the agent does not tell them.

    `total-bytes` leaves out what is kept for root, `total-bytes-privileged` (from 9.1 on) does not.
    """
    for entry in _entries(answer, "guest-get-fsinfo"):
        total = next((key for key in ("total-bytes-privileged", "total-bytes") if key in entry), None)
        if entry.get("mountpoint") == "/" and total is not None and "used-bytes" in entry:
            return parse_number(entry, total), parse_number(entry, "used-bytes")
    return None


def parse_cpus(answer: object) -> CpuTimes:
    """CPU times of the guest; they come in milliseconds, and without the tasks that run or wait."""
    busy, steal = [], 0
    for entry in _entries(answer, "guest-get-cpustats"):
        busy.append(sum(parse_number(entry, key) for key in ("user", "nice", "system", "irq", "softirq")) / MSEC_PER_S)
        steal += parse_number(entry, "steal")
    return CpuTimes(sum(busy), None, steal / MSEC_PER_S, tuple(busy[:64]), None, None)


def _entries(answer: object, command: str) -> list[Mapping[str, object]]:
    if not isinstance(answer, list) or len(answer) > _MAX_ENTRIES or not all(isinstance(one, dict) for one in answer):
        raise MalformedError(f"{command}: not a list of objects")
    return answer
