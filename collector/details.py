"""The points of the deep tier, from the same samples. Pure; only called for what is sampled deep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.definitions import container, microvm
from collector.kerneltext import NSEC_PER_S, USEC_PER_S
from collector.reconcile import label, some
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.kerneltext import Interface
    from collector.sources.cgroup import CgroupSample
    from collector.sources.guest import GuestSample
    from collector.sources.process import ProcessSample
    from collector.sources.qmp import BlockDevice, Latency
    from collector.sources.vmm import VmmSample
    from runtime.record import Record

_MEMORY: Final = (
    (container.MEMORY_MAPPED_FILE, b"file_mapped"),
    (container.MEMORY_KERNEL_USAGE, b"kernel"),
    (container.MEMORY_TOTAL_ACTIVE_FILE_BYTES, b"active_file"),
    (container.MEMORY_TOTAL_INACTIVE_FILE_BYTES, b"inactive_file"),
)
_STALLED: Final = (
    ("cpu", container.PRESSURE_CPU_STALLED_SECONDS_TOTAL),
    ("memory", container.PRESSURE_MEMORY_STALLED_SECONDS_TOTAL),
    ("io", container.PRESSURE_IO_STALLED_SECONDS_TOTAL),
)
_HOST_PRESSURE: Final = (
    ("cpu", microvm.HOST_PRESSURE_CPU_WAITING_SECONDS_TOTAL, microvm.HOST_PRESSURE_CPU_STALLED_SECONDS_TOTAL),
    ("memory", microvm.HOST_PRESSURE_MEMORY_WAITING_SECONDS_TOTAL, microvm.HOST_PRESSURE_MEMORY_STALLED_SECONDS_TOTAL),
    ("io", microvm.HOST_PRESSURE_IO_WAITING_SECONDS_TOTAL, microvm.HOST_PRESSURE_IO_STALLED_SECONDS_TOTAL),
)
_TCP: Final = (
    (microvm.TCP_OPENS_TOTAL, "accepted", b"Tcp.PassiveOpens"),
    (microvm.TCP_OPENS_TOTAL, "connected", b"Tcp.ActiveOpens"),
    (microvm.TCP_ATTEMPT_FAILS_TOTAL, "", b"Tcp.AttemptFails"),
    (microvm.TCP_SEGMENTS_TOTAL, "received", b"Tcp.InSegs"),
    (microvm.TCP_SEGMENTS_TOTAL, "sent", b"Tcp.OutSegs"),
)
TCP_STATES: Final = (
    "established", "synsent", "synrecv", "finwait1", "finwait2", "timewait", "close", "closewait", "lastack", "listen",
    "closing",
)  # fmt: skip
"""cAdvisor's words, in the order of the kernel's numbers, which begin at 1 (include/net/tcp_states.h)."""
_BALLOON: Final = (
    (microvm.BALLOON_MEMORY_BYTES, ("total",), "stat-total-memory"),
    (microvm.BALLOON_MEMORY_BYTES, ("free",), "stat-free-memory"),
    (microvm.BALLOON_MEMORY_BYTES, ("available",), "stat-available-memory"),
    (microvm.BALLOON_MEMORY_BYTES, ("disk_caches",), "stat-disk-caches"),
    (microvm.BALLOON_SWAP_BYTES_TOTAL, ("in",), "stat-swap-in"),
    (microvm.BALLOON_SWAP_BYTES_TOTAL, ("out",), "stat-swap-out"),
    (microvm.BALLOON_PAGE_FAULTS_TOTAL, ("major",), "stat-major-faults"),
    (microvm.BALLOON_PAGE_FAULTS_TOTAL, ("minor",), "stat-minor-faults"),
    (microvm.BALLOON_OOM_KILLS_TOTAL, (), "stat-oom-kills"),
)
_LATENCY_BUCKET: Final = microvm.BLOCK_LATENCY_SECONDS.part("bucket", "le")


def guest_details(record: Record, guest: GuestSample) -> Iterator[Point]:
    """What a guest tells beyond the default tier."""
    cpu = guest.cpu or {}
    yield from some(container.CPU_USER_SECONDS_TOTAL, cpu.get(b"user_usec"), USEC_PER_S)
    yield from some(container.CPU_SYSTEM_SECONDS_TOTAL, cpu.get(b"system_usec"), USEC_PER_S)
    memory = guest.memory or {}
    for metric, key in _MEMORY:
        yield from some(metric, memory.get(key))
    for kind in ("pgfault", "pgmajfault"):
        for scope in ("container", "hierarchy"):
            yield from some(container.MEMORY_FAILURES_TOTAL, memory.get(kind.encode()), labels=(kind, scope))
    yield from some(container.MEMORY_FAILCNT, (guest.memory_events or {}).get(b"max"))
    for interface in guest.interfaces:
        name = (label(interface.name),)
        yield Point(container.NETWORK_RECEIVE_ERRORS_TOTAL, name, interface.rx_errors)
        yield Point(container.NETWORK_TRANSMIT_ERRORS_TOTAL, name, interface.tx_errors)
    yield from _disk_details(record, guest)
    for kind, stalled in _STALLED:
        pressure = guest.pressure.get(kind)
        if pressure is not None:
            yield from some(stalled, pressure.full_s)
    yield from some(microvm.TCP_RESETS_TOTAL, guest.tcp.get(b"Tcp.EstabResets"))
    yield from some(microvm.TCP_LISTEN_DROPS_TOTAL, guest.tcp.get(b"TcpExt.ListenDrops"))
    for metric, value, key in _TCP:
        yield from some(metric, guest.tcp.get(key), labels=(value,) if value else ())
    yield from some(microvm.GUEST_BOOT_SECONDS, guest.boot_ns, NSEC_PER_S)
    yield from some(microvm.GUEST_CLOCK_SKEW_SECONDS, guest.clock_skew_s)
    yield from some(microvm.GUEST_OOM_KILLS_TOTAL, guest.oom_kills)
    details = guest.details
    if details is None:
        return
    yield from some(container.PROCESSES, details.processes)
    yield from some(container.THREADS_MAX, details.threads_max)
    yield from some(container.FILE_DESCRIPTORS, details.open_files or None)
    yield from some(container.SOCKETS, details.sockets)
    if details.tcp_states is not None:
        for number, state in enumerate(TCP_STATES, 1):
            yield Point(container.NETWORK_TCP_USAGE_TOTAL, (state,), details.tcp_states.get(number, 0))
    if details.cpu is not None:
        yield Point(microvm.GUEST_CPU_STEAL_SECONDS_TOTAL, (), details.cpu.steal_s)
        for number, busy_s in enumerate(details.cpu.by_cpu):
            yield Point(microvm.GUEST_CPU_SECONDS_TOTAL, (f"cpu{number:02}",), busy_s)


def _disk_details(record: Record, guest: GuestSample) -> Iterator[Point]:
    writable = record.guest.writable_device
    for device in (record.guest.image_device, writable):
        io = guest.io.get(device) if device and guest.io else None
        if io is None or device is None:
            continue
        name = f"/dev/{device}"
        if device != writable:
            yield Point(container.FS_WRITES_TOTAL, (name,), io.wios)
            yield Point(container.FS_WRITES_BYTES_TOTAL, (name,), io.wbytes)
        if device not in guest.disks:
            continue
        number, disk = guest.disks[device]
        yield Point(container.FS_IO_TIME_SECONDS_TOTAL, (name,), disk.busy_s)
        major, _, minor = number.decode("latin-1").partition(":")
        for operation, size in (("Read", io.rbytes), ("Write", io.wbytes), ("Discard", io.dbytes)):
            yield Point(container.BLKIO_DEVICE_USAGE_TOTAL, (name, major, minor, operation), size)
    if guest.root is not None and writable:
        yield from some(container.FS_INODES_TOTAL, guest.root.inodes, labels=(f"/dev/{writable}",))
        yield from some(container.FS_INODES_FREE, guest.root.inodes_free, labels=(f"/dev/{writable}",))


def vmm_details(vmm: VmmSample) -> Iterator[Point]:
    """What QEMU tells beyond the default tier."""
    details = vmm.details
    if details is None:
        return
    # A template has disks to spare, for volumes: those that nothing was ever asked of are not there for a user.
    spare = {device.qdev for device in details.devices if not device.reads + device.writes + device.flushes}
    for device in details.devices:
        if device.qdev not in spare:
            yield from _block_points(device)
    for (name, queue), count in details.inflight.items():
        if name in spare:
            continue
        yield Point(microvm.VIRTQUEUE_INFLIGHT, (label(name), str(queue)), count)
    yield from some(microvm.BALLOON_ACTUAL_BYTES, details.balloon_bytes)
    for metric, labels, stat in _BALLOON:
        yield from some(metric, details.balloon_stats.get(stat), labels=labels)
    for reason, count in details.kvm_exits.items():
        yield Point(microvm.KVM_EXITS_TOTAL, (reason,), count)


def _block_points(device: BlockDevice) -> Iterator[Point]:
    name = label(device.name)
    yield Point(microvm.BLOCK_OPERATIONS_TOTAL, (name, "read"), device.reads)
    yield Point(microvm.BLOCK_OPERATIONS_TOTAL, (name, "write"), device.writes)
    yield Point(microvm.BLOCK_OPERATIONS_TOTAL, (name, "flush"), device.flushes)
    yield Point(microvm.BLOCK_BYTES_TOTAL, (name, "read"), device.read_bytes)
    yield Point(microvm.BLOCK_BYTES_TOTAL, (name, "write"), device.written_bytes)
    for op, count in device.errors.items():
        yield Point(microvm.BLOCK_ERRORS_TOTAL, (name, op), count)
    for op, count in device.merged.items():
        yield Point(microvm.BLOCK_MERGED_TOTAL, (name, op), count)
    for op, latency in device.latency.items():
        yield from _latency_points(name, op, latency)


def _latency_points(name: str, op: str, latency: Latency) -> Iterator[Point]:
    # QEMU's bins hold what took less than their bound, Prometheus' also what took exactly so long: a nanosecond.
    # OpenMetrics allows no count without a sum; the last bucket is the count.
    total = 0
    for bound_ns, count in zip(latency.bounds_ns, latency.bins[:-1], strict=True):
        total += count
        yield Point(_LATENCY_BUCKET, (name, op, repr(bound_ns / NSEC_PER_S)), total)
    yield Point(_LATENCY_BUCKET, (name, op, "+Inf"), total + latency.bins[-1])


def tap_points(tap: Interface) -> Iterator[Point]:
    """The VM's network seen from outside. What the host receives on a tap is what the VM transmitted."""
    for direction, octets, packets, dropped in (
        ("receive", tap.tx_bytes, tap.tx_packets, tap.tx_dropped),
        ("transmit", tap.rx_bytes, tap.rx_packets, tap.rx_dropped),
    ):
        yield Point(microvm.HOST_NETWORK_BYTES_TOTAL, (direction,), octets)
        yield Point(microvm.HOST_NETWORK_PACKETS_TOTAL, (direction,), packets)
        yield Point(microvm.HOST_NETWORK_DROPPED_TOTAL, (direction,), dropped)


def host_details(process: ProcessSample, cgroup: CgroupSample) -> Iterator[Point]:
    """What the host's files tell beyond the default tier."""
    yield from some(microvm.HOST_MEMORY_BYTES, cgroup.page_cache_bytes, labels=("page_cache",))
    yield from some(microvm.HOST_MEMORY_LIMIT_BYTES, cgroup.memory_limit_bytes)
    yield from some(microvm.HOST_IO_BYTES_TOTAL, process.read_bytes, labels=("read",))
    yield from some(microvm.HOST_IO_BYTES_TOTAL, process.written_bytes, labels=("write",))
    yield from some(microvm.HOST_OOM_KILLS_TOTAL, cgroup.oom_kills)
    for kind, waiting, stalled in _HOST_PRESSURE:
        pressure = cgroup.pressure.get(kind)
        if pressure is not None:
            yield Point(waiting, (), pressure.some_s)
            yield from some(stalled, pressure.full_s)
