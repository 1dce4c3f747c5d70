"""`container_*`: what the workload itself uses, in cAdvisor's names, types and units."""

from __future__ import annotations

from typing import Final

from collector.metric import Metric

STATES: Final = ("created", "starting", "running", "paused", "stopping", "exited", "dead", "removing")
HEALTH_VALUES: Final = {"none": -1.0, "starting": 0.0, "unhealthy": 0.0, "healthy": 1.0}
"""cAdvisor's numbers of `container_health_state`."""

DURATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds in seconds of the histograms of probes and health checks."""
RELAY_REASONS: Final = (
    "label", "agent", "refused", "timeout", "closed", "status", "malformed", "too_large", "defect",
)  # fmt: skip
"""Why a fetch from the application came to nothing."""

_RELAY = "only with the label hyper.metrics"
_PROBE = "only with the label hyper.probe"
_CHECK = "only with a health check that was made"
_QUOTA = "only with a CPU quota"
_WRITABLE = "only with a writable layer"

CPU_USAGE_SECONDS_TOTAL = Metric(
    "container_cpu_usage_seconds_total", "counter", "seconds",
    "CPU time that the container's processes used, user and system.",
    "container_cpu", "guest: container cgroup cpu.stat usage_usec", labels=("cpu",), compat="cAdvisor",
)  # fmt: skip
CPU_USER_SECONDS_TOTAL = Metric(
    "container_cpu_user_seconds_total", "counter", "seconds", "CPU time in user mode.",
    "container_cpu", "guest: container cgroup cpu.stat user_usec", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
CPU_SYSTEM_SECONDS_TOTAL = Metric(
    "container_cpu_system_seconds_total", "counter", "seconds", "CPU time in the guest's kernel.",
    "container_cpu", "guest: container cgroup cpu.stat system_usec", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
CPU_CFS_PERIODS_TOTAL = Metric(
    "container_cpu_cfs_periods_total", "counter", "", "Enforcement periods of the CPU quota that have passed.",
    "container_cpu", "guest: container cgroup cpu.stat nr_periods", compat="cAdvisor", when=_QUOTA,
)  # fmt: skip
CPU_CFS_THROTTLED_PERIODS_TOTAL = Metric(
    "container_cpu_cfs_throttled_periods_total", "counter", "", "Periods in which the container ran into its quota.",
    "container_cpu", "guest: container cgroup cpu.stat nr_throttled", compat="cAdvisor", when=_QUOTA,
)  # fmt: skip
CPU_CFS_THROTTLED_SECONDS_TOTAL = Metric(
    "container_cpu_cfs_throttled_seconds_total", "counter", "seconds", "Time that the CPU quota kept it waiting.",
    "container_cpu", "guest: container cgroup cpu.stat throttled_usec", compat="cAdvisor", when=_QUOTA,
)  # fmt: skip
CPU_LOAD_AVERAGE_10S = Metric(
    "container_cpu_load_average_10s", "gauge", "",
    "Tasks of the guest that run or wait for CPU or disk, smoothed over 10 s, times 1000 as in cAdvisor.",
    "container_cpu", "guest: /proc/stat procs_running - 1 (the agent), procs_blocked", compat="cAdvisor", tier="deep",
)  # fmt: skip

MEMORY_USAGE_BYTES = Metric(
    "container_memory_usage_bytes", "gauge", "bytes", "Memory in use, with page cache and kernel memory.",
    "container_memory", "guest: container cgroup memory.current", compat="cAdvisor",
)  # fmt: skip
MEMORY_WORKING_SET_BYTES = Metric(
    "container_memory_working_set_bytes", "gauge", "bytes",
    "Memory in use without the page cache that can be dropped first; this is what runs into the limit.",
    "container_memory", "guest: container cgroup memory.current - memory.stat inactive_file", compat="cAdvisor",
)  # fmt: skip
MEMORY_RSS = Metric(
    "container_memory_rss", "gauge", "bytes", "Anonymous memory.",
    "container_memory", "guest: container cgroup memory.stat anon", compat="cAdvisor",
)  # fmt: skip
MEMORY_CACHE = Metric(
    "container_memory_cache", "gauge", "bytes", "Page cache, with tmpfs and shared memory.",
    "container_memory", "guest: container cgroup memory.stat file", compat="cAdvisor",
)  # fmt: skip
MEMORY_SWAP = Metric(
    "container_memory_swap", "gauge", "bytes", "Swap in use.",
    "container_memory", "guest: container cgroup memory.swap.current", compat="cAdvisor",
    when="only if the guest's kernel counts swap",
)  # fmt: skip
MEMORY_MAX_USAGE_BYTES = Metric(
    "container_memory_max_usage_bytes", "gauge", "bytes", "Most memory that was ever in use since the start.",
    "container_memory", "guest: container cgroup memory.peak", compat="cAdvisor",
    when="only with a guest kernel of 5.19 or later",
)  # fmt: skip
MEMORY_MAPPED_FILE = Metric(
    "container_memory_mapped_file", "gauge", "bytes", "Page cache that processes have mapped.",
    "container_memory", "guest: container cgroup memory.stat file_mapped", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
MEMORY_KERNEL_USAGE = Metric(
    "container_memory_kernel_usage", "gauge", "bytes", "Memory of the kernel that is charged to the container.",
    "container_memory", "guest: container cgroup memory.stat kernel", compat="cAdvisor",
    when="only with a guest kernel of 5.18 or later", tier="deep",
)  # fmt: skip
MEMORY_TOTAL_ACTIVE_FILE_BYTES = Metric(
    "container_memory_total_active_file_bytes", "gauge", "bytes", "Page cache that was used again.",
    "container_memory", "guest: container cgroup memory.stat active_file", compat="cAdvisor", tier="deep",
)  # fmt: skip
MEMORY_TOTAL_INACTIVE_FILE_BYTES = Metric(
    "container_memory_total_inactive_file_bytes", "gauge", "bytes", "Page cache that can be dropped first.",
    "container_memory", "guest: container cgroup memory.stat inactive_file", compat="cAdvisor", tier="deep",
)  # fmt: skip
MEMORY_FAILURES_TOTAL = Metric(
    "container_memory_failures_total", "counter", "",
    "Page faults: pgfault all, pgmajfault those that waited for a disk.",
    "container_memory", "guest: container cgroup memory.stat pgfault, pgmajfault; v2 counts by hierarchy alone",
    labels=("failure_type", "scope"), compat="cAdvisor", tier="deep",
)  # fmt: skip
MEMORY_FAILCNT = Metric(
    "container_memory_failcnt", "unknown", "", "How often the memory limit was hit and memory had to be reclaimed.",
    "container_memory", "guest: container cgroup memory.events max", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
OOM_EVENTS_TOTAL = Metric(
    "container_oom_events_total", "counter", "",
    "Processes of the container killed for want of memory; it goes on counting over restarts of the container.",
    "container", "collector: guest memory.events oom_kill; record oom_kills", compat="cAdvisor",
    when="once the agent has answered, or the container has ended",
)  # fmt: skip

NETWORK_RECEIVE_BYTES_TOTAL = Metric(
    "container_network_receive_bytes_total", "counter", "bytes", "Bytes received.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_RECEIVE_PACKETS_TOTAL = Metric(
    "container_network_receive_packets_total", "counter", "", "Packets received.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_RECEIVE_PACKETS_DROPPED_TOTAL = Metric(
    "container_network_receive_packets_dropped_total", "counter", "", "Received packets that were dropped.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_RECEIVE_ERRORS_TOTAL = Metric(
    "container_network_receive_errors_total", "counter", "", "Receive errors.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
    tier="deep",
)  # fmt: skip
NETWORK_TRANSMIT_BYTES_TOTAL = Metric(
    "container_network_transmit_bytes_total", "counter", "bytes", "Bytes sent.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_TRANSMIT_PACKETS_TOTAL = Metric(
    "container_network_transmit_packets_total", "counter", "", "Packets sent.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_TRANSMIT_PACKETS_DROPPED_TOTAL = Metric(
    "container_network_transmit_packets_dropped_total", "counter", "", "Packets to send that were dropped.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
)  # fmt: skip
NETWORK_TRANSMIT_ERRORS_TOTAL = Metric(
    "container_network_transmit_errors_total", "counter", "", "Transmit errors.",
    "container_network", "guest: /proc/net/dev", labels=("interface",), compat="cAdvisor",
    tier="deep",
)  # fmt: skip
NETWORK_TCP_USAGE_TOTAL = Metric(
    "container_network_tcp_usage_total", "unknown", "", "TCP sockets over IPv4 by state.",
    "container_network", "guest: /proc/net/tcp", labels=("tcp_state",), compat="cAdvisor",
    when="only while the guest's table has at most 64 KiB, some 430 sockets", tier="deep",
)  # fmt: skip

FS_READS_TOTAL = Metric(
    "container_fs_reads_total", "counter", "", "Read operations on the device.",
    "container_fs", "guest: container cgroup io.stat rios", labels=("device",), compat="cAdvisor",
)  # fmt: skip
FS_READS_BYTES_TOTAL = Metric(
    "container_fs_reads_bytes_total", "counter", "bytes", "Bytes read from the device.",
    "container_fs", "guest: container cgroup io.stat rbytes", labels=("device",), compat="cAdvisor",
)  # fmt: skip
FS_WRITES_TOTAL = Metric(
    "container_fs_writes_total", "counter", "", "Write operations on the device.",
    "container_fs", "guest: container cgroup io.stat wios", labels=("device",), compat="cAdvisor",
)  # fmt: skip
FS_WRITES_BYTES_TOTAL = Metric(
    "container_fs_writes_bytes_total", "counter", "bytes", "Bytes written to the device.",
    "container_fs", "guest: container cgroup io.stat wbytes", labels=("device",), compat="cAdvisor",
)  # fmt: skip
FS_IO_TIME_SECONDS_TOTAL = Metric(
    "container_fs_io_time_seconds_total", "counter", "seconds",
    "Time in which the device had something to do; the kernel begins again after 49.7 days of it.",
    "container_fs", "guest: /proc/diskstats, time doing I/O", labels=("device",), compat="cAdvisor", tier="deep",
    wraps=True,
)  # fmt: skip
BLKIO_DEVICE_USAGE_TOTAL = Metric(
    "container_blkio_device_usage_total", "counter", "bytes", "Bytes that the container moved, by operation.",
    "container_blkio", "guest: container cgroup io.stat rbytes, wbytes, dbytes",
    labels=("device", "major", "minor", "operation"), compat="cAdvisor", tier="deep",
)  # fmt: skip
FS_USAGE_BYTES = Metric(
    "container_fs_usage_bytes", "gauge", "bytes", "Bytes in use on the writable layer.",
    "container_fs", "guest: statvfs of /", labels=("device",), compat="cAdvisor", when=_WRITABLE,
)  # fmt: skip
FS_LIMIT_BYTES = Metric(
    "container_fs_limit_bytes", "gauge", "bytes", "Size of the writable layer.",
    "container_fs", "guest: statvfs of /", labels=("device",), compat="cAdvisor", when=_WRITABLE,
)  # fmt: skip
FS_INODES_FREE = Metric(
    "container_fs_inodes_free", "gauge", "", "Inodes left on the writable layer.",
    "container_fs", "guest: statvfs of /", labels=("device",), compat="cAdvisor", when=_WRITABLE,
    tier="deep",
)  # fmt: skip
FS_INODES_TOTAL = Metric(
    "container_fs_inodes_total", "unknown", "", "Inodes of the writable layer.",
    "container_fs", "guest: statvfs of /", labels=("device",), compat="cAdvisor", when=_WRITABLE,
    tier="deep",
)  # fmt: skip

PROCESSES = Metric(
    "container_processes", "gauge", "", "Processes in the container.",
    "container", "guest: container cgroup cgroup.procs", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
THREADS = Metric(
    "container_threads", "gauge", "", "Threads in the container.",
    "container", "guest: container cgroup pids.current", compat="cAdvisor",
)  # fmt: skip
THREADS_MAX = Metric(
    "container_threads_max", "gauge", "", "Threads that there may be: the container's limit, or the guest's if lower.",
    "container", "guest: container cgroup pids.max; /proc/sys/kernel/threads-max", compat="cAdvisor", tier="deep",
)  # fmt: skip
FILE_DESCRIPTORS = Metric(
    "container_file_descriptors", "gauge", "", "Open files of the whole guest; up to 32 a vCPU are overlooked.",
    "container", "guest: /proc/sys/fs/file-nr, the kernel's coarse count; processes are not walked", compat="cAdvisor",
    when="only while there are more than the kernel's count overlooks", tier="deep",
)  # fmt: skip
SOCKETS = Metric(
    "container_sockets", "gauge", "", "Sockets in use in the guest, of all families; the agent has one in a fetch.",
    "container", "guest: /proc/net/sockstat sockets used", compat="cAdvisor", tier="deep",
)  # fmt: skip

PRESSURE_CPU_WAITING_SECONDS_TOTAL = Metric(
    "container_pressure_cpu_waiting_seconds_total", "counter", "seconds", "Time that some task waited for a CPU.",
    "container_pressure", "guest: container cgroup cpu.pressure some", compat="cAdvisor",
)  # fmt: skip
PRESSURE_CPU_STALLED_SECONDS_TOTAL = Metric(
    "container_pressure_cpu_stalled_seconds_total", "counter", "seconds", "Time that all tasks waited for a CPU.",
    "container_pressure", "guest: container cgroup cpu.pressure full", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
PRESSURE_MEMORY_WAITING_SECONDS_TOTAL = Metric(
    "container_pressure_memory_waiting_seconds_total", "counter", "seconds", "Time that some task waited for memory.",
    "container_pressure", "guest: container cgroup memory.pressure some", compat="cAdvisor",
)  # fmt: skip
PRESSURE_MEMORY_STALLED_SECONDS_TOTAL = Metric(
    "container_pressure_memory_stalled_seconds_total", "counter", "seconds", "Time that all tasks waited for memory.",
    "container_pressure", "guest: container cgroup memory.pressure full", compat="cAdvisor",
    tier="deep",
)  # fmt: skip
PRESSURE_IO_WAITING_SECONDS_TOTAL = Metric(
    "container_pressure_io_waiting_seconds_total", "counter", "seconds", "Time that some task waited for a disk.",
    "container_pressure", "guest: container cgroup io.pressure some", compat="cAdvisor",
)  # fmt: skip
PRESSURE_IO_STALLED_SECONDS_TOTAL = Metric(
    "container_pressure_io_stalled_seconds_total", "counter", "seconds", "Time that all tasks waited for a disk.",
    "container_pressure", "guest: container cgroup io.pressure full", compat="cAdvisor",
    tier="deep",
)  # fmt: skip

SPEC_CPU_QUOTA = Metric(
    "container_spec_cpu_quota", "gauge", "", "CPU quota, microseconds per period.",
    "container_spec", "record: limits.cpu_quota", compat="cAdvisor", when=_QUOTA,
)  # fmt: skip
SPEC_CPU_PERIOD = Metric(
    "container_spec_cpu_period", "gauge", "", "Period of the CPU quota, microseconds.",
    "container_spec", "record: limits.cpu_quota", compat="cAdvisor", when=_QUOTA,
)  # fmt: skip
SPEC_MEMORY_LIMIT_BYTES = Metric(
    "container_spec_memory_limit_bytes", "gauge", "bytes", "Memory limit.",
    "container_spec", "record: limits.memory_bytes", compat="cAdvisor",
)  # fmt: skip

START_TIME_SECONDS = Metric(
    "container_start_time_seconds", "gauge", "seconds", "Time of the last start, since 1970; it moves with the epoch.",
    "container", "record: lifecycle.started_at", compat="cAdvisor", when="once it has been started",
)  # fmt: skip
QUARANTINE_START_TIME_SECONDS = Metric(
    "container_quarantine_start_time_seconds", "gauge", "seconds",
    "Since when the container is kept from working, since 1970; no series outside of quarantine.",
    "container", "record: quarantine.since", when="in quarantine",
)  # fmt: skip
LAST_SEEN = Metric(
    "container_last_seen", "gauge", "", "Time that the record was last seen, seconds since 1970.",
    "container", "collector's clock", compat="cAdvisor",
)  # fmt: skip
HEALTH_STATE = Metric(
    "container_health_state", "gauge", "", "Health check: 1 healthy, 0 unhealthy or starting, -1 no health check.",
    "container", "record: lifecycle.health", compat="cAdvisor",
)  # fmt: skip
STATE = Metric(
    "container_state", "gauge", "", "1 for the state that the container is in; the other states have no series.",
    "container", "record: lifecycle.state", labels=("state",),
)  # fmt: skip
DESIRED_RUNNING = Metric(
    "container_desired_running", "gauge", "", "1 if the container should be running, 0 if it was stopped on purpose.",
    "container", "record: lifecycle.desired",
)  # fmt: skip
EXIT_CODE = Metric(
    "container_exit_code", "gauge", "", "Exit code of the last run.",
    "container", "record: lifecycle.exit_code", when="once it has exited",
)  # fmt: skip
RESTARTS_TOTAL = Metric(
    "container_restarts_total", "counter", "", "Starts after the first, by whomever.",
    "container", "record: lifecycle.restarts",
)  # fmt: skip
INFO = Metric(
    "container_info", "gauge", "", "Always 1: what describes the container, to be joined by id.",
    "container", "record", labels=("digest", "node", "accel", "kernel", "epoch", "size"),
)  # fmt: skip

RELAY_UP = Metric(
    "container_relay_up", "gauge", "", "1 if the application's own metrics were fetched and could be read.",
    "container_relay", "application: hyper-fetch of the label's port", when=_RELAY,
)  # fmt: skip
RELAY_SERIES = Metric(
    "container_relay_series", "gauge", "", "Series of the application that are relayed.",
    "container_relay", "collector", when=_RELAY,
)  # fmt: skip
RELAY_DURATION_SECONDS = Metric(
    "container_relay_duration_seconds", "gauge", "seconds", "How long the application took for its metrics.",
    "container_relay", "application: hyper-fetched total_ns", when=_RELAY,
)  # fmt: skip
RELAY_DROPPED_TOTAL = Metric(
    "container_relay_dropped_total", "counter", "",
    "Series of the application that were left out: reserved, invalid, ambiguous, of another type, beyond the budget.",
    "container_relay", "collector", labels=("reason",), when=f"{_RELAY}, once there was one",
)  # fmt: skip
RELAY_FAILURES_TOTAL = Metric(
    "container_relay_failures_total", "counter", "", "Times that the application's metrics could not be had.",
    "container_relay", "application: hyper-fetched error; collector", labels=("reason",),
    when=f"{_RELAY}, once there was one",
)  # fmt: skip
PROBE_SUCCESS = Metric(
    "container_probe_success", "gauge", "", "1 if the last probe of the application was answered well.",
    "container_probe", "application: hyper-fetch of the label's port", when=_PROBE,
)  # fmt: skip
PROBE_DURATION_SECONDS = Metric(
    "container_probe_duration_seconds", "histogram", "seconds",
    "How long the application took to answer a probe: to its first byte, or to connect. Without an answer: not in it.",
    "container_probe", "application: hyper-fetched first_byte_ns, connect_ns", when=_PROBE,
)  # fmt: skip
PROBE_FAILURES_TOTAL = Metric(
    "container_probe_failures_total", "counter", "", "Probes of the application that failed.",
    "container_probe", "application: hyper-fetched error, status of the answer", labels=("reason",),
    when=f"{_PROBE}, once there was one",
)  # fmt: skip
HEALTHCHECK_DURATION_SECONDS = Metric(
    "container_healthcheck_duration_seconds", "histogram", "seconds",
    "How long health checks took that came to their end, with their start in the guest.",
    "container_healthcheck", "health.json buckets, seconds", when=_CHECK,
)  # fmt: skip
HEALTHCHECK_FAILURES_TOTAL = Metric(
    "container_healthcheck_failures_total", "counter", "",
    "Health checks that failed: by their exit code, their timeout, or as they could not be made.",
    "container_healthcheck", "health.json failures", labels=("reason",), when=f"{_CHECK}, once one failed",
)  # fmt: skip
