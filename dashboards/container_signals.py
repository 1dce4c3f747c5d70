"""What one container does, uses, costs and waits for: the middle rows of the Container dashboard."""

from __future__ import annotations

from typing import Final

from collector.catalogue import container, microvm
from dashboards import verdict
from dashboards.panels import NOT_DEEP, RED, Panel, Query, steps, time_series
from dashboards.promql import Chosen

_IT: Final = Chosen(("instance", "namespace", "pod", "container"))
_NONE: Final = "No such container is seen"
_SILENT: Final = "Its guest does not answer"
_NO_QUOTA: Final = "No CPU quota"


def throttled(chosen: Chosen, window: str = "$__rate_interval") -> str:
    """Share of the periods in which the CPU quota stopped it."""
    stopped = chosen.rate(container.CPU_CFS_THROTTLED_PERIODS_TOTAL, window)
    return f"{stopped} / ({chosen.rate(container.CPU_CFS_PERIODS_TOTAL, window)} > 0)"


def golden() -> list[Panel]:
    """How does it serve?"""
    dropped = " + ".join(
        f"sum({_IT.rate(metric)})"
        for metric in (
            container.NETWORK_RECEIVE_PACKETS_DROPPED_TOTAL, container.NETWORK_TRANSMIT_PACKETS_DROPPED_TOTAL,
        )
    )  # fmt: skip
    return [
        time_series(
            "Traffic", "Bytes a second that it receives and sends.",
            [Query(f"sum({_IT.rate(container.NETWORK_RECEIVE_BYTES_TOTAL)})", "received"),
             Query(f"sum({_IT.rate(container.NETWORK_TRANSMIT_BYTES_TOTAL)})", "sent")],
            unit="Bps", empty=_SILENT, width=8,
        ),
        time_series(
            "Traffic: packets and connections", "Packets a second, and TCP connections that are established.",
            [Query(f"sum({_IT.rate(container.NETWORK_RECEIVE_PACKETS_TOTAL)})", "packets received a second"),
             Query(f"sum({_IT.rate(container.NETWORK_TRANSMIT_PACKETS_TOTAL)})", "packets sent a second"),
             Query(f"sum({_IT.select(microvm.TCP_CONNECTIONS)})", "connections")],
            unit="short", empty=_SILENT, width=8,
        ),
        time_series(
            "Errors", "A second: segments sent again (the network, or the peer), connections refused as its accept "
            "queue was full (it is too slow), packets dropped.",
            [Query(f"sum({_IT.rate(microvm.TCP_RETRANSMITS_TOTAL)})", "sent again"),
             Query(f"sum({_IT.rate(microvm.TCP_LISTEN_OVERFLOWS_TOTAL)})", "refused, queue full"),
             Query(dropped, "dropped")],
            unit="short", empty=_SILENT, width=8,
        ),
        time_series(
            "Saturation", "Memory of its limit, and share of time in which it waited for CPU, memory or disk.",
            [Query(f"sum({verdict.of_limit(_IT)})", "memory of the limit"),
             Query(f"sum({_IT.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)})", "waited for CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)})", "waited for memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)})", "waited for disk")],
            unit="percentunit", empty=_SILENT, maximum=1, thresholds=steps((0.9, RED)),
        ),
        time_series(
            "Latency of its disks", "Half of the operations took less, and 99 of 100 did, by virtual disk.",
            [Query(_IT.quantile(share, microvm.BLOCK_LATENCY_SECONDS, "device, op"), "{{device}} {{op}}, " + name)
             for share, name in ((0.5, "half"), (0.99, "99 of 100"))],
            unit="s", empty=NOT_DEEP,
        ),
        time_series(
            "Errors of its network", "A second: established connections that ended by a reset, and connection attempts "
            "that a listening socket dropped.",
            [Query(f"sum({_IT.rate(microvm.TCP_RESETS_TOTAL)})", "reset"),
             Query(f"sum({_IT.rate(microvm.TCP_LISTEN_DROPS_TOTAL)})", "dropped attempts")],
            unit="short", empty=NOT_DEEP,
        ),
        time_series(
            "Errors of its disks", "Operations a second of its virtual disks that failed, and requests in flight.",
            [Query(f"sum by (device, op) ({_IT.rate(microvm.BLOCK_ERRORS_TOTAL)})", "{{device}} {{op}} failed"),
             Query(f"sum by (device) ({_IT.select(microvm.VIRTQUEUE_INFLIGHT)})", "{{device}} in flight")],
            unit="short", empty=NOT_DEEP,
        ),
    ]  # fmt: skip


def application() -> list[Panel]:
    """Does its application answer?"""
    asked = (("probes", container.PROBE_DURATION_SECONDS), ("health checks", container.HEALTHCHECK_DURATION_SECONDS))
    failures = (
        ("probe", container.PROBE_FAILURES_TOTAL), ("health check", container.HEALTHCHECK_FAILURES_TOTAL),
        ("own metrics", container.RELAY_FAILURES_TOTAL),
    )  # fmt: skip
    return [
        time_series(
            "Answers", "1 while its probe is answered well, and while its own metrics can be read, otherwise 0.",
            [Query(f"min({_IT.select(container.PROBE_SUCCESS)})", "probe"),
             Query(f"min({_IT.select(container.RELAY_UP)})", "its own metrics")],
            unit="short", empty="No label hyper.probe or hyper.metrics", width=8, maximum=1,
        ),
        time_series(
            "Latency of its answers", "Half of the probes and health checks took less, and 99 of 100 did. Without an "
            "answer there is no latency.",
            [Query(_IT.quantile(share, metric, "container"), f"{name}, {words}")
             for name, metric in asked for share, words in ((0.5, "half"), (0.99, "99 of 100"))],
            unit="s", empty="No label hyper.probe, and no health check", width=8,
        ),
        time_series(
            "Series of its own", "Series of the application that are relayed.",
            [Query(f"sum({_IT.select(container.RELAY_SERIES)})", "relayed")],
            unit="short", empty="No label hyper.metrics", width=8,
        ),
        time_series(
            "Failures by reason", "Probes, health checks and readings of its own metrics that came to nothing.",
            [Query(f"sum by (reason) ({_IT.increase(metric)})", f"{name}: {{{{reason}}}}")
             for name, metric in failures],
            unit="short", empty="None has failed", bars=True, stacked=True,
        ),
        time_series(
            "Series of its own that are left out", "By reason; each reading counts them again.",
            [Query(f"sum by (reason) ({_IT.increase(container.RELAY_DROPPED_TOTAL)})", "{{reason}}")],
            unit="short", empty="None is left out", bars=True, stacked=True,
        ),
    ]  # fmt: skip


def views() -> list[Panel]:
    """Do container, guest and host tell the same?"""
    disk = (container.FS_READS_BYTES_TOTAL, container.FS_WRITES_BYTES_TOTAL)
    return [
        time_series(
            "CPU, three views", "By the container's own control group, by its guest (in the deep tier), by QEMU's vCPU "
            "threads and all of QEMU. Container well below vCPUs: the guest's kernel works; vCPUs well below all: the "
            "hypervisor does.",
            [Query(f"sum({_IT.rate(container.CPU_USAGE_SECONDS_TOTAL)})", "container"),
             Query(f"sum({_IT.rate(microvm.GUEST_CPU_SECONDS_TOTAL)})", "guest"),
             Query(f"sum({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL, part='vcpu')})", "host: vCPUs"),
             Query(f"sum({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL)})", "host: all of QEMU")],
            unit="suffix: CPUs", empty=_NONE, width=8,
        ),
        time_series(
            "Memory, three views", "By the container, by the guest (what it could still give out), and what the host "
            "holds for it. The host holds more than the container uses: freed memory stays with the guest.",
            [Query(f"sum({_IT.select(container.MEMORY_USAGE_BYTES)})", "container"),
             Query(f"sum({_IT.select(microvm.GUEST_MEMORY_AVAILABLE_BYTES)})", "guest: available"),
             Query(f"sum({_IT.select(microvm.HOST_MEMORY_BYTES, part='guest_ram')})", "host: RAM of its own"),
             Query(f"sum({_IT.select(microvm.HOST_MEMORY_BYTES)})", "host: all")],
            unit="bytes", empty=_NONE, width=8,
        ),
        time_series(
            "Disk, three views", "Bytes a second by the container's control group, and in the deep tier by QEMU's "
            "virtual disks and by what QEMU moved to and from storage. Less at the end: a cache served it.",
            [Query(" + ".join(f"sum({_IT.rate(metric)})" for metric in disk), "container"),
             Query(f"sum({_IT.rate(microvm.BLOCK_BYTES_TOTAL)})", "virtual disks"),
             Query(f"sum({_IT.rate(microvm.HOST_IO_BYTES_TOTAL)})", "storage of the host")],
            unit="Bps", empty=_NONE, width=8,
        ),
        time_series(
            "CPU that the views cannot explain", "CPU seconds on which host and guest disagree since the first sample, "
            "and that no wait for the host explains. It should not grow.",
            [Query(f"sum({_IT.select(microvm.VIEW_RESIDUAL_SECONDS)})", "unexplained")], unit="s", empty=NOT_DEEP,
        ),
        time_series(
            "Memory that the views cannot explain", "Memory that the host holds for the guest and the guest has free.",
            [Query(f"sum({_IT.select(microvm.VIEW_RESIDUAL_BYTES)})", "unexplained")], unit="bytes", empty=NOT_DEEP,
        ),
    ]  # fmt: skip


def overhead() -> list[Panel]:
    """What does the micro-VM cost beside the container?"""
    return [
        time_series(
            "Overhead of CPU", "Share of the host's CPU time for it that was not the container's own work.",
            [Query(f"sum({_IT.select(microvm.OVERHEAD_CPU_RATIO)})", "overhead")],
            unit="percentunit", empty="It used no CPU, or its guest does not answer", maximum=1,
        ),
        time_series(
            "Overhead of memory", "Memory that the VM takes for itself alone, beyond what its container uses.",
            [Query(f"sum({_IT.select(microvm.OVERHEAD_MEMORY_BYTES)})", "overhead")], unit="bytes", empty=_SILENT,
        ),
        time_series(
            "CPU of QEMU by part", "vcpu: the guest's instructions; iothread: its disks; main and other: QEMU itself.",
            [Query(f"sum by (part) ({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL)})", "{{part}}")],
            unit="suffix: CPUs", empty=_NONE, stacked=True,
        ),
        time_series(
            "Memory of QEMU by part", "RAM of its own, RAM shared with its template, QEMU itself, page cache.",
            [Query(f"sum by (part) ({_IT.select(microvm.HOST_MEMORY_BYTES)})", "{{part}}")],
            unit="bytes", empty=_NONE, stacked=True,
        ),
    ]  # fmt: skip


def pressure() -> list[Panel]:
    """What does it wait for?"""
    of_host = {
        "vCPUs: CPU": microvm.HOST_VCPU_WAIT_SECONDS_TOTAL,
        "QEMU: CPU": microvm.HOST_PRESSURE_CPU_WAITING_SECONDS_TOTAL,
        "QEMU: memory": microvm.HOST_PRESSURE_MEMORY_WAITING_SECONDS_TOTAL,
        "QEMU: disk": microvm.HOST_PRESSURE_IO_WAITING_SECONDS_TOTAL,
    }
    return [
        time_series(
            "Waiting in the guest", "Share of time in which some task of it waited: for a CPU, for memory to be "
            "reclaimed, for a disk.",
            [Query(f"sum({_IT.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)})", "CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)})", "memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)})", "disk")],
            unit="percentunit", empty=_SILENT, maximum=1,
        ),
        time_series(
            "Waiting on the host", "Seconds a second that its vCPUs waited for a CPU of the host; and in the deep "
            "tier, "
            "where the host has cgroup v2, that some thread of QEMU waited for CPU, memory or disk of the host.",
            [Query(f"sum({_IT.rate(metric)})", name) for name, metric in of_host.items()],
            unit="percentunit", empty=_NONE,
        ),
        time_series(
            "Stalled", "Share of time in which all tasks of it waited at once: it did nothing at all.",
            [Query(f"sum({_IT.rate(container.PRESSURE_CPU_STALLED_SECONDS_TOTAL)})", "CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_STALLED_SECONDS_TOTAL)})", "memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_STALLED_SECONDS_TOTAL)})", "disk")],
            unit="percentunit", empty=NOT_DEEP, maximum=1,
        ),
        time_series(
            "Stopped by its CPU quota", "Share of periods in which it ran into its quota, and seconds a second that it "
            "was kept waiting by it.",
            [Query(f"sum({throttled(_IT)})", "periods"),
             Query(f"sum({_IT.rate(container.CPU_CFS_THROTTLED_SECONDS_TOTAL)})", "seconds a second")],
            unit="percentunit", empty=_NO_QUOTA,
        ),
    ]  # fmt: skip


def capacity() -> list[Panel]:
    """What fills it up?"""
    fs = f"sum({_IT.select(container.FS_USAGE_BYTES)}) / sum({_IT.select(container.FS_LIMIT_BYTES)})"
    inodes = f"1 - sum({_IT.select(container.FS_INODES_FREE)}) / sum({_IT.select(container.FS_INODES_TOTAL)})"
    return [
        time_series(
            "Memory", "Working set (what runs into the limit), anonymous memory, page cache, the peak, and the limit.",
            [Query(f"sum({_IT.select(container.MEMORY_WORKING_SET_BYTES)})", "working set"),
             Query(f"sum({_IT.select(container.MEMORY_RSS)})", "anonymous"),
             Query(f"sum({_IT.select(container.MEMORY_CACHE)})", "page cache"),
             Query(f"sum({_IT.select(container.MEMORY_MAX_USAGE_BYTES)})", "peak"),
             Query(f"sum({_IT.select(container.SPEC_MEMORY_LIMIT_BYTES)})", "limit")],
            unit="bytes", empty=_NONE,
        ),
        time_series(
            "OOM kills by layer", "Where memory ran out: in the container's limit, in the guest, or on the host.",
            [Query(f"sum by (layer) ({_IT.increase(microvm.OOM_TOTAL)})", "{{layer}}")],
            unit="short", empty=_SILENT, bars=True, stacked=True,
        ),
        time_series(
            "Writable layer", "Bytes and, in the deep tier, inodes in use on its writable layer. At 100 % it can write "
            "no more.",
            [Query(fs, "bytes"), Query(inodes, "inodes")],
            unit="percentunit", empty="No writable layer", maximum=1, thresholds=steps((0.9, RED)),
        ),
        time_series(
            "Disk operations", "Operations a second by device, as the container's control group counts them.",
            [Query(f"sum by (device) ({_IT.rate(container.FS_READS_TOTAL)})", "{{device}} reads"),
             Query(f"sum by (device) ({_IT.rate(container.FS_WRITES_TOTAL)})", "{{device}} writes")],
            unit="iops", empty=_SILENT,
        ),
    ]  # fmt: skip
