"""`machine_*`: the host itself, in cAdvisor's names."""

from __future__ import annotations

from collector.metric import Metric

CPU_CORES = Metric(
    "machine_cpu_cores", "gauge", "", "Logical CPUs of the host.",
    "machine", "host: /proc/stat", scope="host", compat="cAdvisor",
)  # fmt: skip
CPU_PHYSICAL_CORES = Metric(
    "machine_cpu_physical_cores", "gauge", "", "Physical cores of the host.",
    "machine", "host: /sys/devices/system/cpu/cpuN/topology", scope="host", compat="cAdvisor",
    when="only where the kernel tells the topology",
)  # fmt: skip
CPU_SOCKETS = Metric(
    "machine_cpu_sockets", "gauge", "", "CPU sockets of the host.",
    "machine", "host: /sys/devices/system/cpu/cpuN/topology", scope="host", compat="cAdvisor",
    when="only where the kernel tells the topology",
)  # fmt: skip
MEMORY_BYTES = Metric(
    "machine_memory_bytes", "gauge", "bytes", "Memory of the host.",
    "machine", "host: /proc/meminfo MemTotal", scope="host", compat="cAdvisor",
)  # fmt: skip
SWAP_BYTES = Metric(
    "machine_swap_bytes", "gauge", "bytes", "Swap space of the host.",
    "machine", "host: /proc/meminfo SwapTotal", scope="host", compat="cAdvisor",
)  # fmt: skip
SCRAPE_ERROR = Metric(
    "machine_scrape_error", "gauge", "", "1 if the host's own files could not be read in the last round, else 0.",
    "machine", "collector", scope="host", compat="cAdvisor",
)  # fmt: skip
