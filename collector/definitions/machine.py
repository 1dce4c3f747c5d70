"""`machine_*`: the host itself, in cAdvisor's names."""

from __future__ import annotations

from collector.metric import Metric

CPU_CORES = Metric(
    "machine_cpu_cores", "gauge", "", "Logical CPUs of the host.",
    "machine", "host: /proc/stat", scope="host", compat="cAdvisor",
)  # fmt: skip
MEMORY_BYTES = Metric(
    "machine_memory_bytes", "gauge", "bytes", "Memory of the host.",
    "machine", "host: /proc/meminfo MemTotal", scope="host", compat="cAdvisor",
)  # fmt: skip
