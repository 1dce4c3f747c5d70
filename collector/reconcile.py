"""From record and samples to the points of the default tier. Pure: samples and record in, points out.

Each view fills the metrics that are its own; none stands in for another. `details.py` has the deep tier, `views.py`
what only two views together tell.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from collector.definitions import container, microvm
from collector.kerneltext import USEC_PER_S
from collector.snapshot import Point
from runtime.record import PHASES_BESIDE
from runtime.spec import SIZES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from collector.metric import Metric
    from collector.sources.cgroup import CgroupSample
    from collector.sources.guest import GuestSample
    from collector.sources.process import ProcessSample
    from collector.sources.vmm import VmmSample
    from runtime.record import Record

CPU_PERIOD_US: Final = 100_000
MAX_LABEL_LENGTH: Final = 64
MAX_OWN_LABEL_LENGTH: Final = 128
MAX_PHASES: Final = 16
_SIZES: Final = {(cores, megabytes << 20): name for name, (cores, megabytes) in SIZES.items()}
_UNPRINTABLE: Final = re.compile(r"[^ -~]")

_NETWORK: Final = (
    (container.NETWORK_RECEIVE_BYTES_TOTAL, "rx_bytes"),
    (container.NETWORK_RECEIVE_PACKETS_TOTAL, "rx_packets"),
    (container.NETWORK_RECEIVE_PACKETS_DROPPED_TOTAL, "rx_dropped"),
    (container.NETWORK_TRANSMIT_BYTES_TOTAL, "tx_bytes"),
    (container.NETWORK_TRANSMIT_PACKETS_TOTAL, "tx_packets"),
    (container.NETWORK_TRANSMIT_PACKETS_DROPPED_TOTAL, "tx_dropped"),
)
_PRESSURE: Final = (
    ("cpu", container.PRESSURE_CPU_WAITING_SECONDS_TOTAL),
    ("memory", container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL),
    ("io", container.PRESSURE_IO_WAITING_SECONDS_TOTAL),
)
_TCP: Final = (
    (microvm.TCP_CONNECTIONS, b"Tcp.CurrEstab"),
    (microvm.TCP_RETRANSMITS_TOTAL, b"Tcp.RetransSegs"),
    (microvm.TCP_LISTEN_OVERFLOWS_TOTAL, b"TcpExt.ListenOverflows"),
)


def label(value: str) -> str:
    """A label value from a guest or a VMM: printable ASCII of at most 64 characters."""
    return _UNPRINTABLE.sub("_", value[:MAX_LABEL_LENGTH])


def base_values(record: Record) -> tuple[str, ...]:
    """Values of the base labels; a container without a project is its own pod."""
    return (record.id, record.name, record.image, record.tenant, record.project or record.name, record.name)


def info_point(record: Record, node: str, shown: Mapping[str, str]) -> Point:
    """What describes the container. `shown`: which of its own labels, and what each is called there."""
    vm, limits = record.vm, record.limits
    accel, kernel = (vm.accel, vm.kernel) if vm else ("", "")
    size = _SIZES.get((limits.vcpus, limits.memory_bytes), "other")
    labels = record.labels
    own = {called: labels[name][:MAX_OWN_LABEL_LENGTH] for name, called in shown.items() if name in labels}
    metric = replace(container.INFO, labels=(*container.INFO.labels, *own)) if own else container.INFO
    values = (record.image_digest, node, accel, kernel, str(record.lifecycle.epoch), size)
    return Point(metric, (*values, *own.values()), 1.0)


def record_points(
    record: Record, node: str, shown: Mapping[str, str], *, removed: bool = False, deep: bool = False
) -> Iterator[Point]:
    """What the record says: state, wish, limits, how the start went. It says the same until there is a new record."""
    life = record.lifecycle
    state = "removing" if removed else life.state
    vm = record.vm
    yield info_point(record, node, shown)
    yield Point(container.STATE, (state,), 1.0)
    yield Point(container.DESIRED_RUNNING, (), float(life.desired == "running" and not removed))
    yield Point(container.RESTARTS_TOTAL, (), life.restarts)
    if life.exit_code is not None:
        yield Point(container.EXIT_CODE, (), life.exit_code)
    if life.started_at is not None:
        yield Point(container.START_TIME_SECONDS, (), life.started_at)
    if removed:
        return
    if record.quarantine is not None:
        yield Point(container.QUARANTINE_START_TIME_SECONDS, (), record.quarantine.since)
    yield Point(container.HEALTH_STATE, (), container.HEALTH_VALUES.get(life.health, -1.0))
    yield Point(container.SPEC_MEMORY_LIMIT_BYTES, (), record.limits.memory_bytes)
    if record.limits.cpu_quota is not None:
        yield Point(container.SPEC_CPU_QUOTA, (), record.limits.cpu_quota * CPU_PERIOD_US)
        yield Point(container.SPEC_CPU_PERIOD, (), CPU_PERIOD_US)
    phases = {
        label(phase): seconds
        for phase, seconds in sorted(record.start_phases.items())[:MAX_PHASES]
        if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0
    }
    itself = [seconds for phase, seconds in phases.items() if phase not in PHASES_BESIDE]
    if itself:
        yield Point(microvm.START_SECONDS, (), sum(itself))
    if deep:
        for phase, seconds in phases.items():
            yield Point(microvm.START_PHASE_SECONDS, (phase,), seconds)
    if vm is not None:
        yield Point(microvm.START_PATH, (vm.start_path, label(vm.start_path_reason or "")), 1.0)


def oom_points(totals: Mapping[str, int]) -> Iterator[Point]:
    """OOM kills by layer; `container_oom_events_total` is every process of the container that was killed."""
    if "container" in totals:
        yield Point(container.OOM_EVENTS_TOTAL, (), totals["container"] + totals.get("guest", 0))
    for layer, kills in totals.items():
        yield Point(microvm.OOM_TOTAL, (layer,), kills)


def guest_oom_kills(guest: GuestSample) -> Mapping[str, int]:
    """Kills of this epoch by layer, as far as the guest counts them.

    `oom_kill` of memory.events counts the group's processes whoever killed them, and `oom` how often the group's own
    limit was the reason; vmstat counts all kills of the guest.
    """
    if guest.memory_events is None:
        return {}
    killed = guest.memory_events.get(b"oom_kill", 0)
    by_limit = min(killed, guest.memory_events.get(b"oom", 0))
    in_guest = max(killed, guest.oom_kills or 0) - by_limit
    return {"container": by_limit, "guest": max(0, in_guest)}


def guest_points(record: Record, guest: GuestSample) -> Iterator[Point]:
    """What the workload used, by the guest's word; a file that it has not is a metric that is not there."""
    yield from _cpu_points(guest, quota=record.limits.cpu_quota is not None)
    yield from _memory_points(guest)
    yield from some(container.THREADS, guest.threads)
    for interface in guest.interfaces:
        name = (label(interface.name),)
        for metric, member in _NETWORK:
            yield Point(metric, name, getattr(interface, member))
    yield from _disk_points(record, guest)
    for kind, waiting in _PRESSURE:
        pressure = guest.pressure.get(kind)
        if pressure is not None:
            yield Point(waiting, (), pressure.some_s)
    for metric, key in _TCP:
        yield from some(metric, guest.tcp.get(key))
    yield from some(microvm.GUEST_MEMORY_AVAILABLE_BYTES, guest.memory_available_bytes)


def _cpu_points(guest: GuestSample, *, quota: bool) -> Iterator[Point]:
    cpu = guest.cpu or {}
    if b"usage_usec" in cpu:
        yield Point(container.CPU_USAGE_SECONDS_TOTAL, ("total",), cpu[b"usage_usec"] / USEC_PER_S)
    if quota:
        yield from some(container.CPU_CFS_PERIODS_TOTAL, cpu.get(b"nr_periods"))
        yield from some(container.CPU_CFS_THROTTLED_PERIODS_TOTAL, cpu.get(b"nr_throttled"))
        yield from some(container.CPU_CFS_THROTTLED_SECONDS_TOTAL, cpu.get(b"throttled_usec"), USEC_PER_S)


def _memory_points(guest: GuestSample) -> Iterator[Point]:
    memory = guest.memory or {}
    yield from some(container.MEMORY_USAGE_BYTES, guest.memory_bytes)
    inactive = memory.get(b"inactive_file")
    if guest.memory_bytes is not None and inactive is not None:
        yield Point(container.MEMORY_WORKING_SET_BYTES, (), max(0, guest.memory_bytes - inactive))
    yield from some(container.MEMORY_RSS, memory.get(b"anon"))
    yield from some(container.MEMORY_CACHE, memory.get(b"file"))
    yield from some(container.MEMORY_SWAP, guest.swap_bytes)
    yield from some(container.MEMORY_MAX_USAGE_BYTES, guest.memory_peak_bytes)


def _disk_points(record: Record, guest: GuestSample) -> Iterator[Point]:
    for device in (record.guest.image_device, record.guest.writable_device):
        io = guest.io.get(device) if device and guest.io else None
        if io is None:
            continue
        name = (f"/dev/{device}",)
        yield Point(container.FS_READS_TOTAL, name, io.rios)
        yield Point(container.FS_READS_BYTES_TOTAL, name, io.rbytes)
        if device == record.guest.writable_device:
            yield Point(container.FS_WRITES_TOTAL, name, io.wios)
            yield Point(container.FS_WRITES_BYTES_TOTAL, name, io.wbytes)
    if guest.root is not None and record.guest.writable_device:
        name = (f"/dev/{record.guest.writable_device}",)
        yield Point(container.FS_USAGE_BYTES, name, guest.root.used_bytes)
        yield Point(container.FS_LIMIT_BYTES, name, guest.root.size_bytes)


def vmm_points(vmm: VmmSample) -> Iterator[Point]:
    """What QEMU tells: its run state."""
    yield Point(microvm.VMM_STATUS, (vmm.status if vmm.status in microvm.STATUSES else "other",), 1.0)


def event_points(events: Mapping[str, int]) -> Iterator[Point]:
    """What QEMU told unasked, of this VM and those that the container had before."""
    for name, count in events.items():
        yield Point(microvm.EVENTS_TOTAL, (name,), count)


def host_points(process: ProcessSample, cgroup: CgroupSample) -> Iterator[Point]:
    """The host's bill. CPU by part only when QMP has told the threads, as the parts must add up."""
    if process.vcpus is not None and process.main is not None:
        parts = {"vcpu": process.vcpus.run_s, "main": process.main.run_s}
        if process.iothreads is not None:
            parts["iothread"] = process.iothreads.run_s
        total_s = process.cpu_s if cgroup.cpu_s is None else cgroup.cpu_s
        parts["other"] = max(0.0, total_s - sum(parts.values()))
        for part, seconds in parts.items():
            yield Point(microvm.HOST_CPU_SECONDS_TOTAL, (part,), seconds)
        yield Point(microvm.HOST_VCPU_WAIT_SECONDS_TOTAL, (), process.vcpus.wait_s)
    if process.memory is not None:
        memory = process.memory
        sizes = (memory.guest_ram, memory.template_shared, memory.vmm)
        for part, size in zip(microvm.MEMORY_PARTS[:3], sizes, strict=True):
            yield from some(microvm.HOST_MEMORY_BYTES, size, labels=(part,))


def some(metric: Metric, value: float | None, per: float = 1, *, labels: tuple[str, ...] = ()) -> Iterator[Point]:
    """A point, or none of a value that is not known."""
    if value is not None:
        yield Point(metric, labels, value / per if per != 1 else value)
