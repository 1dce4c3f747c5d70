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

HOST_CPU_SECONDS_TOTAL = Metric(
    "microvm_host_cpu_seconds_total", "counter", "seconds",
    "CPU time of the host that the VM cost, by QEMU's threads.",
    "microvm_host", "host: /proc/<pid>/task/<tid>/schedstat, cgroup cpu.stat or cpuacct.usage; QMP query-cpus-fast",
    labels=("part",),
)  # fmt: skip
HOST_MEMORY_BYTES = Metric(
    "microvm_host_memory_bytes", "gauge", "bytes",
    "Memory of the host that the VM takes: its own RAM, RAM shared with a template, QEMU itself (PSS), page cache.",
    "microvm_host", "host: /proc/<pid>/smaps, at most once a minute; cgroup memory.stat", labels=("part",),
)  # fmt: skip
HOST_IO_BYTES_TOTAL = Metric(
    "microvm_host_io_bytes_total", "counter", "bytes", "Bytes that QEMU read from and wrote to storage.",
    "microvm_host", "host: /proc/<pid>/io", labels=("op",),
)  # fmt: skip
BLOCK_OPERATIONS_TOTAL = Metric(
    "microvm_block_operations_total", "counter", "", "Operations on the virtual disk.",
    "microvm_block", "vmm: QMP query-blockstats", labels=("device", "op"), when="only with disks",
)  # fmt: skip
BLOCK_BYTES_TOTAL = Metric(
    "microvm_block_bytes_total", "counter", "bytes", "Bytes moved by the virtual disk.",
    "microvm_block", "vmm: QMP query-blockstats", labels=("device", "op"), when="only with disks",
)  # fmt: skip
VMM_STATUS = Metric(
    "microvm_vmm_status", "gauge", "", "1 for the run state that QEMU is in, 0 for the others.",
    "microvm", "vmm: QMP query-status", labels=("status",),
)  # fmt: skip
GUEST_BOOT_SECONDS = Metric(
    "microvm_guest_boot_seconds", "gauge", "seconds",
    "Time from the guest kernel's start to its agent; of a clone, that of its template.",
    "microvm_guest", "guest: hyper-status boot_ns",
)  # fmt: skip
GUEST_MEMORY_AVAILABLE_BYTES = Metric(
    "microvm_guest_memory_available_bytes", "gauge", "bytes", "Memory that the guest could still give out.",
    "microvm_guest", "guest: /proc/meminfo MemAvailable",
)  # fmt: skip
GUEST_CPU_STEAL_SECONDS_TOTAL = Metric(
    "microvm_guest_cpu_steal_seconds_total", "counter", "seconds",
    "Time that the guest saw its vCPUs wait for the host.",
    "microvm_guest", "guest: /proc/stat steal",
)  # fmt: skip
GUEST_CLOCK_SKEW_SECONDS = Metric(
    "microvm_guest_clock_skew_seconds", "gauge", "seconds", "Guest's clock minus the host's.",
    "microvm_guest", "guest: hyper-read time_ns",
)  # fmt: skip
OOM_TOTAL = Metric(
    "microvm_oom_total", "counter", "",
    "OOM kills by where memory ran out: in the container's limit, in the guest, or in QEMU's cgroup on the host.",
    "microvm", "guest: memory.events, /proc/vmstat oom_kill; host: memory.events or memory.oom_control",
    labels=("layer",), when="the layer that was asked has answered",
)  # fmt: skip
START_PHASE_SECONDS = Metric(
    "microvm_start_phase_seconds", "gauge", "seconds", "How long each phase of the last start took.",
    "microvm_start", "record: start_phases", labels=("phase",),
)  # fmt: skip
START_PATH = Metric(
    "microvm_start_path", "gauge", "", "Always 1: the path that the last start took, and why not a faster one.",
    "microvm_start", "record: vm.start_path", labels=("path", "reason"),
)  # fmt: skip
SOURCE_UP = Metric(
    "microvm_source_up", "gauge", "", "1 if the source gave a good sample in the last round.",
    "microvm_source", "collector", labels=("source",),
)  # fmt: skip
SAMPLE_AGE_SECONDS = Metric(
    "microvm_sample_age_seconds", "gauge", "seconds", "Age of the source's last good sample.",
    "microvm_sample", "collector", labels=("source",), when="once the source has given a sample",
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
)  # fmt: skip
TCP_LISTEN_OVERFLOWS_TOTAL = Metric(
    "microvm_tcp_listen_overflows_total", "counter", "", "Connections refused as an accept queue was full.",
    "microvm_tcp", "guest: /proc/net/netstat TcpExt ListenOverflows",
)  # fmt: skip
TCP_LISTEN_DROPS_TOTAL = Metric(
    "microvm_tcp_listen_drops_total", "counter", "", "Connection attempts that a listening socket dropped.",
    "microvm_tcp", "guest: /proc/net/netstat TcpExt ListenDrops",
)  # fmt: skip
