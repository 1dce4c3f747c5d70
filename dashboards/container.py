"""The Container dashboard, for someone woken at night: is it us, its limit, or the host?"""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, machine, microvm
from dashboards import links, marks, states
from dashboards.layout import dashboard
from dashboards.panels import (
    ORANGE,
    RED,
    SHORT_DIGESTS,
    Column,
    Panel,
    Query,
    stat,
    state_timeline,
    steps,
    table,
    time_series,
)
from dashboards.promql import Chosen
from dashboards.variables import chain

UID: Final = links.CONTAINER

_NAMES: Final = ("instance", "namespace", "pod", "container")
_IT: Final = Chosen(_NAMES)
_NONE: Final = "No such container is seen"
_SILENT: Final = "Its guest does not answer"
_NO_QUOTA: Final = "No CPU quota"

_HOST: Final = Chosen(("instance",))


def container_dashboard() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        "One container: what state it is in, and whether it is itself, its limit or the host that holds it up.",
        chain(_NAMES, single=True),
        [
            ("Is it us, its limit, or the host?", _verdict()),
            ("What happened to it?", _life()),
            ("How does it serve? (golden signals)", _golden()),
            ("Do container, guest and host tell the same? (three views)", _views()),
            ("What does the micro-VM cost beside the container?", _overhead()),
            ("What does it wait for?", _pressure()),
            ("What fills it up?", _capacity()),
            ("How did it start?", _start()),
            ("What is it, and is it seen?", _identity()),
        ],
        [
            marks.starts(_IT),
            marks.states(_IT),
            marks.oom_kills(_IT),
            marks.silent_sources(_IT),
            marks.digests(_IT),
            marks.actions(),
        ],
    )


def _of_memory_limit() -> str:
    return f"{_IT.select(container.MEMORY_WORKING_SET_BYTES)} / {_IT.select(container.SPEC_MEMORY_LIMIT_BYTES)}"


def _throttled(window: str = "$__rate_interval") -> str:
    return (f"{_IT.rate(container.CPU_CFS_THROTTLED_PERIODS_TOTAL, window)} / "
            f"({_IT.rate(container.CPU_CFS_PERIODS_TOTAL, window)} > 0)")  # fmt: skip


def _verdict() -> list[Panel]:
    errors = " + ".join(
        f"sum({_IT.rate(metric, '5m')})"
        for metric in (microvm.TCP_RETRANSMITS_TOTAL, microvm.TCP_LISTEN_OVERFLOWS_TOTAL)
    )
    return [
        stat(
            "State",
            "The state that it is in. Red: nothing of it runs; the log (`hyper logs NAME`) has its last words.",
            states.state(_IT), unit="none", codes=states.STATES, empty=_NONE, filled=True, width=3,
        ),
        stat(
            "Us: health check", "What its own health check says. Unhealthy while nothing beside it is red: it is the "
            "application.",
            _IT.select(container.HEALTH_STATE), unit="none", codes=states.HEALTH, empty=_NONE, width=3,
        ),
        stat(
            "Us: network trouble", "TCP segments sent again and connections refused, a second, over 5 minutes: what "
            "clients notice first.",
            errors, unit="short", empty=_SILENT, thresholds=steps((1, ORANGE), (10, RED)), width=3,
        ),
        stat(
            "Limit: memory", "Working set of the memory limit. At 100 % its processes are killed: raise the limit, or "
            "find what grows.",
            _of_memory_limit(), unit="percentunit", empty=_SILENT, thresholds=steps((0.8, ORANGE), (0.9, RED)),
            filled=True, width=3,
        ),
        stat(
            "Limit: CPU", "Share of the periods of the last 5 minutes in which its CPU quota stopped it.",
            _throttled("5m"), unit="percentunit", empty=_NO_QUOTA, thresholds=steps((0.1, ORANGE), (0.5, RED)),
            filled=True, width=3,
        ),
        stat(
            "Limit: OOM kills, 1 h", "Its processes that were killed for want of memory in the last hour.",
            f"sum({_IT.increase(container.OOM_EVENTS_TOTAL, '1h')})", empty=_NONE, thresholds=steps((0.5, RED)),
            width=3,
        ),
        stat(
            "Host: CPU taken",
            "CPU time of all micro-VMs of this host, of its CPUs, over 5 minutes. Near 100 % they are "
            "in each other's way.",
            f"sum({_HOST.rate(microvm.HOST_CPU_SECONDS_TOTAL, '5m')}) / sum({_HOST.select(machine.CPU_CORES)})",
            unit="percentunit", empty=_NONE, thresholds=steps((0.8, ORANGE), (0.95, RED)), filled=True,
            links=[links.from_choice(links.HOST, _NAMES[:1])], width=3,
        ),
        stat(
            "Host: sources up", "Of host, vmm and guest, how many gave a good sample in the last round. Fewer "
            "than 3: the guest or QEMU hangs, and what is shown is old.",
            f"sum({_IT.select(microvm.SOURCE_UP)})", empty=_NONE,
            thresholds=[*steps((3, "green"), base=RED)], filled=True, width=3,
        ),
    ]  # fmt: skip


def _life() -> list[Panel]:
    return [
        state_timeline(
            "State over time", "The state that it was in. A gap: it was not seen.",
            [Query(states.state(_IT), "{{container}}")], codes=states.STATES, empty=_NONE, width=12,
        ),
        state_timeline(
            "Sources over time", "Which of its sources answered.",
            [Query(_IT.select(microvm.SOURCE_UP), "{{source}}")], codes=states.UP, empty=_NONE, width=12,
        ),
        stat(
            "Running since", "When it was started last.", f"max({_IT.select(container.START_TIME_SECONDS)}) * 1000",
            unit="dateTimeFromNow", empty="Never started",
        ),
        stat(
            "Restarts", "Starts after the first, by whomever, since it was created.",
            f"sum({_IT.select(container.RESTARTS_TOTAL)})", empty=_NONE, thresholds=steps((1, ORANGE), (10, RED)),
        ),
        stat(
            "Last exit code", "How its last run ended. 137: killed, often for want of memory; 143: asked to end.",
            f"max({_IT.select(container.EXIT_CODE)})", unit="none", empty="It has not ended yet",
            thresholds=steps((1, RED)),
        ),
        stat(
            "OOM kills", "Processes killed for want of memory, over all its runs.",
            f"sum({_IT.select(container.OOM_EVENTS_TOTAL)})", empty=_SILENT, thresholds=steps((1, RED)),
        ),
        stat(
            "Should it run?", "Whether it was stopped on purpose.",
            f"max({_IT.select(container.DESIRED_RUNNING)})", unit="none", codes=states.WANTED, empty=_NONE,
        ),
        stat(
            "Threads", "Threads in the container.", f"sum({_IT.select(container.THREADS)})", empty=_SILENT,
        ),
    ]  # fmt: skip


def _golden() -> list[Panel]:
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
            "Errors",
            "A second: segments sent again (the network, or the peer), connections refused as its accept queue "
            "was full (it is too slow), packets dropped.",
            [Query(f"sum({_IT.rate(microvm.TCP_RETRANSMITS_TOTAL)})", "sent again"),
             Query(f"sum({_IT.rate(microvm.TCP_LISTEN_OVERFLOWS_TOTAL)})", "refused, queue full"),
             Query(f"sum({_IT.rate(container.NETWORK_RECEIVE_PACKETS_DROPPED_TOTAL)}) + "
                   f"sum({_IT.rate(container.NETWORK_TRANSMIT_PACKETS_DROPPED_TOTAL)})", "dropped")],
            unit="short", empty=_SILENT, width=8,
        ),
        time_series(
            "Saturation", "Memory of its limit, and share of time in which it waited for CPU, memory or disk.",
            [Query(f"sum({_of_memory_limit()})", "memory of the limit"),
             Query(f"sum({_IT.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)})", "waited for CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)})", "waited for memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)})", "waited for disk")],
            unit="percentunit", empty=_SILENT, maximum=1, thresholds=steps((0.9, RED)),
        ),
        time_series(
            "Errors: resets and drops of listening sockets", "A second: established connections that ended by a reset, "
            "and connection attempts that a listening socket dropped.",
            [Query(f"sum({_IT.rate(microvm.TCP_RESETS_TOTAL)})", "reset"),
             Query(f"sum({_IT.rate(microvm.TCP_LISTEN_DROPS_TOTAL)})", "dropped attempts")],
            unit="short", empty=_SILENT,
        ),
    ]  # fmt: skip


def _views() -> list[Panel]:
    return [
        time_series(
            "CPU, three views", "By the container's own control group, by QEMU's vCPU threads, and by all of QEMU. "
            "Container well below vCPU: the guest's kernel works; vCPU well below all: the hypervisor does.",
            [Query(f"sum({_IT.rate(container.CPU_USAGE_SECONDS_TOTAL)})", "container"),
             Query(f"sum({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL, part='vcpu')})", "vCPUs, by the host"),
             Query(f"sum({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL)})", "all of QEMU, by the host")],
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
            "Disk, three views",
            "Bytes a second by the container's control group, by QEMU's virtual disks, and by what "
            "QEMU moved to and from storage. Less at the end: a cache served it.",
            [Query(f"sum({_IT.rate(container.FS_READS_BYTES_TOTAL)}) + "
                   f"sum({_IT.rate(container.FS_WRITES_BYTES_TOTAL)})", "container"),
             Query(f"sum({_IT.rate(microvm.BLOCK_BYTES_TOTAL)})", "virtual disks"),
             Query(f"sum({_IT.rate(microvm.HOST_IO_BYTES_TOTAL)})", "storage of the host")],
            unit="Bps", empty=_NONE, width=8,
        ),
    ]  # fmt: skip


def _overhead() -> list[Panel]:
    return [
        time_series(
            "CPU of QEMU by part", "vcpu: the guest's instructions; iothread: its disks; main and other: QEMU itself.",
            [Query(f"sum by (part) ({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL)})", "{{part}}")],
            unit="suffix: CPUs", empty=_NONE, stacked=True,
        ),
        time_series(
            "Memory of QEMU by part",
            "RAM of its own, RAM shared with its template, QEMU itself, page cache of the host.",
            [Query(f"sum by (part) ({_IT.select(microvm.HOST_MEMORY_BYTES)})", "{{part}}")],
            unit="bytes", empty=_NONE, stacked=True,
        ),
    ]  # fmt: skip


def _pressure() -> list[Panel]:
    return [
        time_series(
            "Waiting",
            "Share of time in which some task of it waited: for a CPU, for memory to be reclaimed, for a disk.",
            [Query(f"sum({_IT.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)})", "CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)})", "memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)})", "disk")],
            unit="percentunit", empty=_SILENT, maximum=1, width=8,
        ),
        time_series(
            "Stalled", "Share of time in which all tasks of it waited at once: it did nothing at all.",
            [Query(f"sum({_IT.rate(container.PRESSURE_CPU_STALLED_SECONDS_TOTAL)})", "CPU"),
             Query(f"sum({_IT.rate(container.PRESSURE_MEMORY_STALLED_SECONDS_TOTAL)})", "memory"),
             Query(f"sum({_IT.rate(container.PRESSURE_IO_STALLED_SECONDS_TOTAL)})", "disk")],
            unit="percentunit", empty=_SILENT, maximum=1, width=8,
        ),
        time_series(
            "Stopped by its CPU quota", "Share of periods in which it ran into its quota, and seconds a second that it "
            "was kept waiting by it.",
            [Query(f"sum({_throttled()})", "periods"),
             Query(f"sum({_IT.rate(container.CPU_CFS_THROTTLED_SECONDS_TOTAL)})", "seconds a second")],
            unit="percentunit", empty=_NO_QUOTA, width=8,
        ),
    ]  # fmt: skip


def _capacity() -> list[Panel]:
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
            "Writable layer", "Bytes and inodes in use on its writable layer. At 100 % it can write no more.",
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


def _start() -> list[Panel]:
    return [
        table(
            "Phases of the last start", "How long each phase took: the longest is what to look at.",
            [Column("Phase", label="phase"),
             Column("Time", unit="s", expr=f"sort_desc(sum by (phase) ({_IT.select(microvm.START_PHASE_SECONDS)}))")],
            empty="It was never started", width=8,
        ),
        time_series(
            "Phases of its starts", "The same over time: each start is a step.",
            [Query(f"sum by (phase) ({_IT.select(microvm.START_PHASE_SECONDS)})", "{{phase}}")],
            unit="s", empty="It was never started", stacked=True, width=8,
        ),
        table(
            "Path of the last start", "From the pool, from a template, or cold; and why not by a faster one.",
            [Column("Path", label="path"), Column("Reason", label="reason"),
             Column("Containers", expr=f"count by (path, reason) ({_IT.select(microvm.START_PATH)})")],
            empty="It was never started", width=8,
        ),
    ]  # fmt: skip


def _identity() -> list[Panel]:
    info = _IT.select(container.INFO)
    return [
        table(
            "What it is", "Image and digest, the node, what runs its guest's instructions, its guest's kernel, and how "
            "often it was started (epoch).",
            [*(Column(heading, label=label) for label, heading in (
                ("container", "Container"), ("image", "Image"), ("digest", "Digest"), ("node", "Node"),
                ("accel", "Accel"), ("kernel", "Kernel"), ("epoch", "Epoch"), ("id", "Id"))),
             Column("Seen", expr=info)],
            empty=_NONE, links=[links.from_row(links.IMAGES, {"image": "Image", "digest": "Digest"})], width=24,
            height=4,
        ),
        time_series(
            "Age of its samples", "How old its numbers are, by source.",
            [Query(f"max by (source) ({_IT.select(microvm.SAMPLE_AGE_SECONDS)})", "{{source}}")],
            unit="s", empty=_NONE, thresholds=steps((30, RED)),
        ),
        state_timeline(
            "Image over time", "Which image digest it ran: a change of colour is a change of image.",
            [Query(f"count by (digest) ({info})", "{{digest}}")],
            codes=states.SEEN, empty=_NONE, width=12, height=8, transformations=[SHORT_DIGESTS],
        ),
    ]  # fmt: skip
