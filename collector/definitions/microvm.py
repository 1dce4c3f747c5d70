"""`microvm_*`: what only a micro-VM has: the host's bill, the hypervisor's counters, the guest as a machine."""

from __future__ import annotations

from typing import Final

from collector.metric import Metric

SOURCES: Final = ("host", "vmm", "guest")
STATUSES: Final = ("running", "paused", "internal-error", "io-error", "guest-panicked", "shutdown", "other")
"""QMP run states that operations tell apart; the remaining ones are `other`."""
CPU_PARTS: Final = ("vcpu", "iothread", "main", "other")
MEMORY_PARTS: Final = ("guest_ram", "template_shared", "vmm", "page_cache")
OOM_LAYERS: Final = ("container", "guest", "host")
STARVERS: Final = ("none", "limit", "host", "self")
EVENT_NAMES: Final = {
    "GUEST_PANICKED": "guest_panicked",
    "GUEST_CRASHLOADED": "guest_panicked",
    "WATCHDOG": "watchdog",
    "BLOCK_IO_ERROR": "block_io_error",
    "MEMORY_FAILURE": "memory_failure",
    "RESET": "reset",
    "SHUTDOWN": "shutdown",
}
"""QMP events that are counted, by the value of the label; a shutdown has its reason behind it."""
SHUTDOWN_REASONS: Final = frozenset(
    {"host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui", "guest-shutdown", "guest-reset",
     "guest-panic", "subsystem-reset", "snapshot-load"}
)  # fmt: skip

_V2 = "only where the host has cgroup v2"
_BALLOON = "only with a balloon; the runtime's VMs have none, as it would punch holes into the template they share"
_BALLOON_STATS = "only with a balloon whose driver in the guest answers"
_TAP = "only where the collector sees the VM's tap"
_KVM = "only under KVM"
_SAME_ROUND = "once host and guest have answered in one round"

HOST_CPU_SECONDS_TOTAL = Metric(
    "microvm_host_cpu_seconds_total", "counter", "seconds",
    "CPU time of the host that the VM cost, by QEMU's threads.",
    "microvm_host", "host: /proc/<pid>/task/<tid>/schedstat, cgroup cpu.stat or cpuacct.usage; QMP query-cpus-fast",
    labels=("part",),
)  # fmt: skip
HOST_MEMORY_BYTES = Metric(
    "microvm_host_memory_bytes", "gauge", "bytes",
    "Memory of the host that the VM takes: its own RAM, RAM shared with a template, QEMU itself (PSS), page cache.",
    "microvm_host", "host: /proc/<pid>/smaps, once a minute; cgroup memory.stat", labels=("part",),
)  # fmt: skip
HOST_MEMORY_LIMIT_BYTES = Metric(
    "microvm_host_memory_limit_bytes", "gauge", "bytes", "Memory that the host allows the VM, QEMU included.",
    "microvm_host", "host: cgroup memory.max or memory.limit_in_bytes",
    when="only with a limit on the host", tier="deep",
)  # fmt: skip
HOST_VCPU_WAIT_SECONDS_TOTAL = Metric(
    "microvm_host_vcpu_wait_seconds_total", "counter", "seconds",
    "Time that runnable vCPU threads waited for a CPU of the host: steal, as the host sees it.",
    "microvm_host", "host: /proc/<pid>/task/<tid>/schedstat, run delay; QMP query-cpus-fast",
)  # fmt: skip
HOST_OOM_KILLS_TOTAL = Metric(
    "microvm_host_oom_kills_total", "counter", "", "Processes of the VM that the host killed for want of memory.",
    "microvm_host", "host: cgroup memory.events or memory.oom_control oom_kill", tier="deep",
    when="only where the host counts memory by group",
)  # fmt: skip
HOST_PRESSURE_CPU_WAITING_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_cpu_waiting_seconds_total", "counter", "seconds",
    "Time that some thread of QEMU waited for a CPU on the host.",
    "microvm_host", "host: cgroup cpu.pressure some", when=_V2, tier="deep",
)  # fmt: skip
HOST_PRESSURE_CPU_STALLED_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_cpu_stalled_seconds_total", "counter", "seconds",
    "Time that all threads of QEMU waited for a CPU on the host.",
    "microvm_host", "host: cgroup cpu.pressure full", when=_V2, tier="deep",
)  # fmt: skip
HOST_PRESSURE_MEMORY_WAITING_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_memory_waiting_seconds_total", "counter", "seconds",
    "Time that some thread of QEMU waited for memory on the host.",
    "microvm_host", "host: cgroup memory.pressure some", when=_V2, tier="deep",
)  # fmt: skip
HOST_PRESSURE_MEMORY_STALLED_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_memory_stalled_seconds_total", "counter", "seconds",
    "Time that all threads of QEMU waited for memory on the host.",
    "microvm_host", "host: cgroup memory.pressure full", when=_V2, tier="deep",
)  # fmt: skip
HOST_PRESSURE_IO_WAITING_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_io_waiting_seconds_total", "counter", "seconds",
    "Time that some thread of QEMU waited for a disk on the host.",
    "microvm_host", "host: cgroup io.pressure some", when=_V2, tier="deep",
)  # fmt: skip
HOST_PRESSURE_IO_STALLED_SECONDS_TOTAL = Metric(
    "microvm_host_pressure_io_stalled_seconds_total", "counter", "seconds",
    "Time that all threads of QEMU waited for a disk on the host.",
    "microvm_host", "host: cgroup io.pressure full", when=_V2, tier="deep",
)  # fmt: skip
HOST_IO_BYTES_TOTAL = Metric(
    "microvm_host_io_bytes_total", "counter", "bytes", "Bytes that QEMU read from and wrote to storage.",
    "microvm_host", "host: /proc/<pid>/io", labels=("op",),
    tier="deep",
)  # fmt: skip
BLOCK_OPERATIONS_TOTAL = Metric(
    "microvm_block_operations_total", "counter", "", "Operations on the virtual disk.",
    "microvm_block", "vmm: QMP query-blockstats", labels=("device", "op"), when="only with disks",
    tier="deep",
)  # fmt: skip
BLOCK_BYTES_TOTAL = Metric(
    "microvm_block_bytes_total", "counter", "bytes", "Bytes moved by the virtual disk.",
    "microvm_block", "vmm: QMP query-blockstats", labels=("device", "op"), when="only with disks",
    tier="deep",
)  # fmt: skip
BLOCK_ERRORS_TOTAL = Metric(
    "microvm_block_errors_total", "counter", "", "Operations on the virtual disk that failed.",
    "microvm_block", "vmm: QMP query-blockstats failed_*_operations", labels=("device", "op"), when="only with disks",
    tier="deep",
)  # fmt: skip
BLOCK_MERGED_TOTAL = Metric(
    "microvm_block_merged_total", "counter", "", "Operations that QEMU took together with the one before.",
    "microvm_block", "vmm: QMP query-blockstats *_merged", labels=("device", "op"), when="only with disks", tier="deep",
)  # fmt: skip
BLOCK_LATENCY_SECONDS = Metric(
    "microvm_block_latency_seconds", "histogram", "seconds",
    "How long operations of the virtual disk took, from when the deep tier was first asked for; buckets alone.",
    "microvm_block", "vmm: QMP block-latency-histogram-set, query-blockstats", labels=("device", "op"),
    when="only with disks", tier="deep",
)  # fmt: skip
VIRTQUEUE_INFLIGHT = Metric(
    "microvm_virtqueue_inflight", "gauge", "", "Requests that the guest has queued and QEMU has not finished.",
    "microvm_virtqueue", "vmm: QMP x-query-virtio-queue-status inuse", labels=("device", "queue"),
    when="only with a QEMU of 7.2 or later", tier="deep",
)  # fmt: skip
BALLOON_ACTUAL_BYTES = Metric(
    "microvm_balloon_actual_bytes", "gauge", "bytes", "Memory that the balloon leaves to the guest.",
    "microvm_balloon", "vmm: QMP query-balloon", when=_BALLOON, tier="deep",
)  # fmt: skip
BALLOON_MEMORY_BYTES = Metric(
    "microvm_balloon_memory_bytes", "gauge", "bytes", "Memory of the guest, as its balloon driver tells it.",
    "microvm_balloon", "vmm: QOM guest-stats of the balloon", labels=("kind",), when=_BALLOON_STATS, tier="deep",
)  # fmt: skip
BALLOON_SWAP_BYTES_TOTAL = Metric(
    "microvm_balloon_swap_bytes_total", "counter", "bytes",
    "Memory that the guest swapped in and out, as its balloon driver tells it.",
    "microvm_balloon", "vmm: QOM guest-stats of the balloon", labels=("direction",), when=_BALLOON_STATS, tier="deep",
)  # fmt: skip
BALLOON_PAGE_FAULTS_TOTAL = Metric(
    "microvm_balloon_page_faults_total", "counter", "",
    "Page faults of the guest, major and minor, as its balloon driver tells it.",
    "microvm_balloon", "vmm: QOM guest-stats of the balloon", labels=("kind",), when=_BALLOON_STATS, tier="deep",
)  # fmt: skip
BALLOON_OOM_KILLS_TOTAL = Metric(
    "microvm_balloon_oom_kills_total", "counter", "",
    "Processes that the guest's kernel killed for want of memory, as its balloon driver tells it.",
    "microvm_balloon", "vmm: QOM guest-stats of the balloon",
    when=f"{_BALLOON_STATS}, of QEMU 9.2 and Linux 6.12 or later", tier="deep",
)  # fmt: skip
KVM_EXITS_TOTAL = Metric(
    "microvm_kvm_exits_total", "counter", "", "Times that a vCPU left the guest, by KVM's reason, or other.",
    "microvm_kvm", "vmm: QMP query-stats, provider kvm", labels=("reason",), when=_KVM, tier="deep",
)  # fmt: skip
EVENTS_TOTAL = Metric(
    "microvm_events_total", "counter", "",
    "Events that QEMU told of while the collector listened; it goes on counting over restarts of the container.",
    "microvm", "vmm: QMP events", labels=("event",), when="once there was one",
)  # fmt: skip
VMM_STATUS = Metric(
    "microvm_vmm_status", "gauge", "", "1 for the run state that QEMU is in; the other states have no series.",
    "microvm", "vmm: QMP query-status", labels=("status",),
)  # fmt: skip
GUEST_BOOT_SECONDS = Metric(
    "microvm_guest_boot_seconds", "gauge", "seconds",
    "Time from the guest kernel's start to its agent; of a clone, that of its template.",
    "microvm_guest", "guest: hyper-status boot_ns",
    tier="deep",
)  # fmt: skip
GUEST_MEMORY_AVAILABLE_BYTES = Metric(
    "microvm_guest_memory_available_bytes", "gauge", "bytes", "Memory that the guest could still give out.",
    "microvm_guest", "guest: /proc/meminfo MemAvailable",
)  # fmt: skip
GUEST_CPU_STEAL_SECONDS_TOTAL = Metric(
    "microvm_guest_cpu_steal_seconds_total", "counter", "seconds",
    "Time that the guest saw its vCPUs wait for the host.",
    "microvm_guest", "guest: /proc/stat steal",
    tier="deep",
)  # fmt: skip
GUEST_CPU_SECONDS_TOTAL = Metric(
    "microvm_guest_cpu_seconds_total", "counter", "seconds", "Time that a vCPU was busy, by the guest's word.",
    "microvm_guest", "guest: /proc/stat cpuN: user, nice, system, irq, softirq", labels=("cpu",), tier="deep",
)  # fmt: skip
GUEST_OOM_KILLS_TOTAL = Metric(
    "microvm_guest_oom_kills_total", "counter", "", "Processes that the guest's kernel killed for want of memory.",
    "microvm_guest", "guest: /proc/vmstat oom_kill", tier="deep",
)  # fmt: skip
GUEST_CLOCK_SKEW_SECONDS = Metric(
    "microvm_guest_clock_skew_seconds", "gauge", "seconds", "Guest's clock minus the host's.",
    "microvm_guest", "guest: hyper-read time_ns",
    tier="deep",
)  # fmt: skip
OOM_TOTAL = Metric(
    "microvm_oom_total", "counter", "",
    "OOM kills by where memory ran out: in the container's limit, in the guest, or in QEMU's cgroup on the host.",
    "microvm", "collector: guest memory.events, /proc/vmstat oom_kill; host memory.events or memory.oom_control",
    labels=("layer",), when="the layer that was asked has answered",
)  # fmt: skip
OVERHEAD_CPU_RATIO = Metric(
    "microvm_overhead_cpu_ratio", "gauge", "",
    "Share of the host's CPU time between two samples that was not the container's own work; 0 to 1.",
    "microvm_overhead", "reconciled: microvm_host_cpu_seconds_total, container_cpu_usage_seconds_total",
    when="from the second sample on, if the VM used CPU",
)  # fmt: skip
OVERHEAD_MEMORY_BYTES = Metric(
    "microvm_overhead_memory_bytes", "gauge", "bytes",
    "Memory that the VM takes for itself alone, beyond what its container uses.",
    "microvm_overhead", "reconciled: microvm_host_memory_bytes guest_ram + vmm - container_memory_usage_bytes",
    when=_SAME_ROUND,
)  # fmt: skip
VIEW_RESIDUAL_SECONDS = Metric(
    "microvm_view_residual_seconds", "gauge", "seconds",
    "CPU time on which host and guest disagree, and that no wait for host or QEMU explains; since the first sample.",
    "microvm_view", "reconciled: time and wait of vCPUs and main loop, uptime of the guest less its idle time",
    when="from the second sample on", tier="deep",
)  # fmt: skip
VIEW_RESIDUAL_BYTES = Metric(
    "microvm_view_residual_bytes", "gauge", "bytes", "Memory that the host holds for the guest and the guest has free.",
    "microvm_view", "reconciled: guest RAM of /proc/<pid>/smaps, MemFree of the guest", when=_SAME_ROUND, tier="deep",
)  # fmt: skip
STARVED_BY = Metric(
    "microvm_starved_by", "gauge", "", "1 for what keeps it from the CPU: its limit, the host, itself, or none.",
    "microvm", "reconciled: guest PSI cpu, throttling of guest and host, run delay of the vCPUs", labels=("by",),
    when="from the second sample on",
)  # fmt: skip
START_PHASE_SECONDS = Metric(
    "microvm_start_phase_seconds", "gauge", "seconds", "How long each phase of the last start took.",
    "microvm_start", "record: start_phases", labels=("phase",),
    when='`phase="pull"`: at the first start, if the image was pulled for it; `phase="healthy"`: once a health check '
    "has succeeded", tier="deep",
)  # fmt: skip
START_PATH = Metric(
    "microvm_start_path", "gauge", "", "Always 1: the path that the last start took, and why not a faster one.",
    "microvm_start", "record: vm.start_path", labels=("path", "reason"),
)  # fmt: skip
START_SECONDS = Metric(
    "microvm_start_seconds", "gauge", "seconds",
    "How long the last start took, all phases together but `pull`, which is before it, and `healthy`, which is after.",
    "microvm_start", "record: start_phases", when="once it has been started",
)  # fmt: skip
SOURCE_UP = Metric(
    "microvm_source_up", "gauge", "", "1 if the source gave a good sample in the last round.",
    "microvm_source", "collector", labels=("source",),
)  # fmt: skip
SAMPLE_AGE_SECONDS = Metric(
    "microvm_sample_age_seconds", "gauge", "seconds", "Age of the source's last good sample.",
    "microvm_sample", "collector", labels=("source",), when="once the source has given a sample",
)  # fmt: skip
HOST_NETWORK_BYTES_TOTAL = Metric(
    "microvm_host_network_bytes_total", "counter", "bytes",
    "Bytes on the VM's tap, as the host counts them: received or transmitted by the VM.",
    "microvm_host", "host: /proc/net/dev of the tap", labels=("direction",), when=_TAP, tier="deep",
)  # fmt: skip
HOST_NETWORK_PACKETS_TOTAL = Metric(
    "microvm_host_network_packets_total", "counter", "",
    "Packets on the VM's tap, as the host counts them: received or transmitted by the VM.",
    "microvm_host", "host: /proc/net/dev of the tap", labels=("direction",), when=_TAP, tier="deep",
)  # fmt: skip
HOST_NETWORK_DROPPED_TOTAL = Metric(
    "microvm_host_network_dropped_total", "counter", "",
    "Packets on the VM's tap that the host dropped: on their way to the VM, or from it.",
    "microvm_host", "host: /proc/net/dev of the tap", labels=("direction",), when=_TAP, tier="deep",
)  # fmt: skip
TCP_CONNECTIONS = Metric(
    "microvm_tcp_connections", "gauge", "", "TCP connections that are established.",
    "microvm_tcp", "guest: /proc/net/snmp Tcp CurrEstab",
)  # fmt: skip
TCP_RETRANSMITS_TOTAL = Metric(
    "microvm_tcp_retransmits_total", "counter", "", "TCP segments sent again.",
    "microvm_tcp", "guest: /proc/net/snmp Tcp RetransSegs",
)  # fmt: skip
TCP_RESETS_TOTAL = Metric(
    "microvm_tcp_resets_total", "counter", "", "Established TCP connections that ended by a reset.",
    "microvm_tcp", "guest: /proc/net/snmp Tcp EstabResets",
    tier="deep",
)  # fmt: skip
TCP_LISTEN_OVERFLOWS_TOTAL = Metric(
    "microvm_tcp_listen_overflows_total", "counter", "", "Connections refused as an accept queue was full.",
    "microvm_tcp", "guest: /proc/net/netstat TcpExt ListenOverflows",
)  # fmt: skip
TCP_LISTEN_DROPS_TOTAL = Metric(
    "microvm_tcp_listen_drops_total", "counter", "", "Connection attempts that a listening socket dropped.",
    "microvm_tcp", "guest: /proc/net/netstat TcpExt ListenDrops",
    tier="deep",
)  # fmt: skip
TCP_OPENS_TOTAL = Metric(
    "microvm_tcp_opens_total", "counter", "", "TCP connections that came in (accepted) or were made (connected).",
    "microvm_tcp", "guest: /proc/net/snmp Tcp PassiveOpens, ActiveOpens", labels=("side",), tier="deep",
)  # fmt: skip
TCP_ATTEMPT_FAILS_TOTAL = Metric(
    "microvm_tcp_attempt_fails_total", "counter", "", "TCP connections that failed before they were established.",
    "microvm_tcp", "guest: /proc/net/snmp Tcp AttemptFails", tier="deep",
)  # fmt: skip
TCP_SEGMENTS_TOTAL = Metric(
    "microvm_tcp_segments_total", "counter", "", "TCP segments; those that were sent again are not in it.",
    "microvm_tcp", "guest: /proc/net/snmp Tcp InSegs, OutSegs", labels=("direction",), tier="deep",
)  # fmt: skip
