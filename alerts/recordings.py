"""Recorded series, under the names of kubernetes-mixin where it has them, so that its dashboards work unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import Recording
from alerts.promql import rate, select
from collector.catalogue import container, machine, microvm

if TYPE_CHECKING:
    from collector.catalogue import Metric

_MIXIN: Final = "node_namespace_pod_container"
_BY: Final = "by (node, namespace, pod, container)"
_NODE: Final = f"* on (id) group_left (node) max by (id, node) ({container.INFO.name})"
_BY_HOST: Final = "by (instance, job)"

_MEMORY: Final[tuple[Metric, ...]] = (
    container.MEMORY_WORKING_SET_BYTES, container.MEMORY_RSS, container.MEMORY_CACHE, container.MEMORY_SWAP,
)  # fmt: skip


def recordings() -> tuple[Recording, ...]:
    """All of them."""
    cpu = container.CPU_USAGE_SECONDS_TOTAL
    used = select(cpu, cpu="total")
    taken = select(microvm.HOST_MEMORY_BYTES, part=("guest_ram", "vmm"))
    return (
        Recording(f"{_MIXIN}:{cpu.name}:sum_irate", f"sum {_BY} (irate({used}[5m]) {_NODE})"),
        *(Recording(f"{_MIXIN}:{metric.name}", f"sum {_BY} ({metric.name} {_NODE})") for metric in _MEMORY),
        Recording(f"namespace:{cpu.name}:sum_rate", f"sum by (namespace) ({rate(cpu, cpu='total')})"),
        Recording(
            f"namespace:{container.MEMORY_USAGE_BYTES.name}:sum",
            f"sum by (namespace) ({container.MEMORY_USAGE_BYTES.name})",
        ),
        Recording(
            "instance:microvm_host_cpu:ratio_rate5m",
            f"sum {_BY_HOST} ({rate(microvm.HOST_CPU_SECONDS_TOTAL)}) / on (instance, job) {machine.CPU_CORES.name}",
        ),
        Recording(
            "instance:microvm_host_memory:ratio",
            f"sum {_BY_HOST} ({taken}) / on (instance, job) {machine.MEMORY_BYTES.name}",
        ),
    )
