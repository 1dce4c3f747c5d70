"""What QEMU's answers mean: QMP in, numbers out. Pure; `vmm.py` asks.

Source: QEMU's QMP reference: query-status, query-blockstats, query-cpus-fast, query-iothreads, query-balloon,
query-stats, x-query-virtio, x-query-virtio-status, x-query-virtio-queue-status; of the balloon's statistics
docs/interop/virtio-balloon-stats.rst.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from collector.errors import MalformedError
from collector.kerneltext import MAX_COUNT
from collector.sources.process import ThreadIds

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEVICES: Final = 16
MAX_QUEUES: Final = 4
"""Of a device: as many as there are vCPUs, or two of a network card, and one has few of either."""
MAX_BINS: Final = 32
_OPS: Final = (("read", "rd"), ("write", "wr"), ("flush", "flush"))
_QUEUED: Final = {"virtio-blk", "virtio-net"}
_ID: Final = re.compile(r"/machine/peripheral/([^/]+)")
_EXITS: Final = re.compile(r"(?:([a-z_]{1,32})_)?exits")
_MAX_STATS: Final = 512
_BALLOON: Final = re.compile(r"child<virtio-balloon[a-z-]{0,32}>")
BALLOON_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
"""Where devices are in QEMU's object tree: those with an id, those without."""
BALLOON_STATS: Final = (
    "stat-total-memory", "stat-free-memory", "stat-available-memory", "stat-disk-caches", "stat-swap-in",
    "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-oom-kills",
)  # fmt: skip
"""Sizes in bytes, swap too; the last one since QEMU 9.2."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram: upper bounds of all bins but the last, nanoseconds, and how many operations fell into each."""

    bounds_ns: tuple[int, ...]
    bins: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """Counts of one virtual disk since QEMU began. `name` is its node name, `qdev` the device's id or path.

    `errors` and `latency` go by operation: read, write, flush; merged reads and writes have no flush.
    """

    name: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    flushes: int
    qdev: str = ""
    errors: Mapping[str, int] = field(default_factory=dict)
    merged: Mapping[str, int] = field(default_factory=dict)
    latency: Mapping[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtioDevice:
    """One virtio device by its path in QEMU's object tree; `name` is its id, or its kind if it has none."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class BalloonStats:
    """What the guest's balloon driver told last, at `updated_at`, seconds since 1970 by the host's clock.

    `values` go by the names of `BALLOON_STATS`; what the guest did not tell is not in it.
    """

    updated_at: int
    values: Mapping[str, int]


def parse_status(answer: object) -> str:
    """Run state of `query-status`."""
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, str) or len(status) > 64:
        raise MalformedError("query-status: no status")
    return status


def parse_blockstats(answer: object) -> tuple[BlockDevice, ...]:
    """Devices of `query-blockstats` that have a guest device, at most `MAX_DEVICES`."""
    if not isinstance(answer, list):
        raise MalformedError("query-blockstats: not a list")
    result = []
    for entry in answer[:MAX_DEVICES]:
        stats = entry.get("stats") if isinstance(entry, dict) else None
        if not isinstance(stats, dict):
            raise MalformedError("query-blockstats: no stats")
        name = entry.get("node-name") or entry.get("device") or entry.get("qdev")
        if not isinstance(name, str) or not name:
            raise MalformedError("query-blockstats: a device without a name")
        qdev = entry.get("qdev")
        result.append(
            BlockDevice(
                name,
                read_bytes=parse_number(stats, "rd_bytes"),
                written_bytes=parse_number(stats, "wr_bytes"),
                reads=parse_number(stats, "rd_operations"),
                writes=parse_number(stats, "wr_operations"),
                flushes=parse_number(stats, "flush_operations"),
                qdev=qdev if isinstance(qdev, str) and len(qdev) <= 256 else "",
                errors=_counts(stats, "failed_{}_operations"),
                merged=_counts(stats, "{}_merged"),
                latency={
                    op: _latency(stats[key]) for op, short in _OPS if (key := f"{short}_latency_histogram") in stats
                },
            )
        )
    return tuple(result)


def _counts(stats: Mapping[str, object], pattern: str) -> dict[str, int]:
    return {op: parse_number(stats, key) for op, short in _OPS if (key := pattern.format(short)) in stats}


def _latency(histogram: object) -> Latency:
    bounds, bins = (histogram.get(key) if isinstance(histogram, dict) else None for key in ("boundaries", "bins"))
    if not isinstance(bounds, list) or not isinstance(bins, list) or len(bins) != len(bounds) + 1:
        raise MalformedError("latency histogram: bins do not go with boundaries")
    if len(bins) > MAX_BINS or not all(type(n) is int and 0 <= n <= MAX_COUNT for n in (*bounds, *bins)):
        raise MalformedError("latency histogram: not counts")
    if any(low >= high for low, high in itertools.pairwise(bounds)):
        raise MalformedError("latency histogram: boundaries do not grow")
    return Latency(tuple(bounds), tuple(bins))


def parse_thread_ids(cpus: object, iothreads: object) -> ThreadIds:
    """Thread ids of `query-cpus-fast` and `query-iothreads`."""
    return ThreadIds(_thread_ids(cpus), _thread_ids(iothreads))


def _thread_ids(answer: object) -> tuple[int, ...]:
    if not isinstance(answer, list) or len(answer) > 1024:
        raise MalformedError("thread ids: not a list")
    return tuple(parse_number(entry, "thread-id") for entry in answer)


def parse_balloon(answer: object) -> int:
    """Bytes that the balloon leaves to the guest, of `query-balloon`."""
    return parse_number(answer, "actual")


def parse_balloon_path(place: str, answer: object) -> str | None:
    """The path of the first balloon device of `qom-list`, asked for `place`; None if there is none."""
    if not isinstance(answer, list) or len(answer) > 1024:
        raise MalformedError("qom-list: not a list")
    for entry in answer:
        name, kind = (entry.get(key) if isinstance(entry, dict) else None for key in ("name", "type"))
        if not isinstance(name, str) or not isinstance(kind, str) or len(name) > 256:
            raise MalformedError("qom-list: a property without name or type")
        if _BALLOON.fullmatch(kind):
            return f"{place}/{name}"
    return None


def parse_balloon_interval(answer: object) -> int:
    """Seconds between two times that QEMU asks the guest, of `qom-get`; 0: it does not."""
    return parse_number({"guest-stats-polling-interval": answer}, "guest-stats-polling-interval")


def parse_balloon_stats(answer: object) -> BalloonStats | None:
    """What the guest's balloon driver told, of `qom-get guest-stats`; None if it never has.

    What it does not tell is 2^64 - 1, and the time of what was never told is 0.
    """
    updated_at = parse_number(answer, "last-update")
    stats = answer.get("stats") if isinstance(answer, dict) else None
    if not isinstance(stats, dict):
        raise MalformedError("guest-stats: no stats")
    values = {name: parse_number(stats, name) for name in BALLOON_STATS if name in stats}
    known = {name: value for name, value in values.items() if value != MAX_COUNT}
    return BalloonStats(updated_at, known) if updated_at else None


def parse_kvm_exits(answer: object) -> dict[str, int]:
    """Exits by reason over all vCPUs, of `query-stats`. KVM tells their sum, too: what is left over is `other`."""
    if not isinstance(answer, list) or len(answer) > 1024:
        raise MalformedError("query-stats: not a list")
    total = 0
    result: dict[str, int] = {}
    for entry in answer:
        stats = entry.get("stats") if isinstance(entry, dict) else None
        if not isinstance(stats, list) or len(stats) > _MAX_STATS:
            raise MalformedError("query-stats: no stats")
        for one in stats:
            name = one.get("name") if isinstance(one, dict) else None
            if not isinstance(name, str) or not (found := _EXITS.fullmatch(name)):
                continue
            value = parse_number(one, "value")
            if found[1] is None:
                total += value
            elif found[1] in result or len(result) < MAX_BINS:
                result[found[1]] = result.get(found[1], 0) + value
    if answer:
        result["other"] = max(0, total - sum(result.values()))
    return result


def parse_virtio(answer: object) -> tuple[VirtioDevice, ...]:
    """Disks and network cards of `x-query-virtio`, at most `MAX_DEVICES`."""
    if not isinstance(answer, list):
        raise MalformedError("x-query-virtio: not a list")
    result: list[VirtioDevice] = []
    for entry in answer[:64]:
        path, kind = (entry.get(key) if isinstance(entry, dict) else None for key in ("path", "name"))
        if not isinstance(path, str) or not isinstance(kind, str) or len(path) > 256:
            raise MalformedError("x-query-virtio: a device without a path")
        if kind in _QUEUED and len(result) < MAX_DEVICES:
            found = _ID.match(path)
            result.append(VirtioDevice(path, found[1] if found else kind))
    return tuple(result)


def parse_queue_count(answer: object) -> int:
    """How many queues a device of `x-query-virtio-status` has, at most `MAX_QUEUES`."""
    return min(MAX_QUEUES, parse_number(answer, "num-vqs"))


def parse_inflight(answer: object) -> int:
    """Requests that are not finished, of `x-query-virtio-queue-status`."""
    return parse_number(answer, "inuse")


def parse_number(members: object, key: str) -> int:
    """A member that is a whole number of 64 bits.

    Raises:
        MalformedError: it is missing, negative, larger, a fraction, or no number.
    """
    value = members.get(key) if isinstance(members, dict) else None
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise MalformedError(f"{key} is not a count")
    return value
