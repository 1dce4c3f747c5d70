"""The one catalogue: every metric there is, by name.

Metrics are constants of the modules in `collector.definitions`, named as the metric is without its first word:
`container.CPU_USAGE_SECONDS_TOTAL` is `container_cpu_usage_seconds_total`. Who needs a metric takes the constant, so
that a metric that does not exist fails the type check, or calls `metric(name)`, which fails at import.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from collector.definitions import container, hyper, machine, microvm, remediation
from collector.errors import UnknownMetricError
from collector.metric import Metric, Scope, Tier, Type

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ABSENT",
    "BASE_LABELS",
    "CATALOGUE",
    "CONTAINER_STATES",
    "EXPORTED",
    "HEALTH_VALUES",
    "OF_STOCK_AGENT",
    "SOURCES",
    "VMM_STATUSES",
    "Metric",
    "Scope",
    "Tier",
    "Type",
    "container",
    "hyper",
    "machine",
    "metric",
    "microvm",
    "remediation",
]

BASE_LABELS = ("id", "name", "image", "namespace", "pod", "container")

CONTAINER_STATES = container.STATES
HEALTH_VALUES = container.HEALTH_VALUES
VMM_STATUSES = microvm.STATUSES
SOURCES = microvm.SOURCES

CATALOGUE: Mapping[str, Metric] = MappingProxyType(
    {
        value.name: value
        for module in (container, microvm, machine, hyper, remediation)
        for value in vars(module).values()
        if isinstance(value, Metric)
    }
)

EXPORTED: tuple[Metric, ...] = tuple(m for m in CATALOGUE.values() if m.scope != "remediation")
"""What `hyper-exporter` exports, in the order of its output."""

OF_STOCK_AGENT: tuple[Metric, ...] = (
    container.NETWORK_RECEIVE_BYTES_TOTAL,
    container.NETWORK_RECEIVE_PACKETS_TOTAL,
    container.NETWORK_RECEIVE_PACKETS_DROPPED_TOTAL,
    container.NETWORK_RECEIVE_ERRORS_TOTAL,
    container.NETWORK_TRANSMIT_BYTES_TOTAL,
    container.NETWORK_TRANSMIT_PACKETS_TOTAL,
    container.NETWORK_TRANSMIT_PACKETS_DROPPED_TOTAL,
    container.NETWORK_TRANSMIT_ERRORS_TOTAL,
    container.FS_READS_TOTAL,
    container.FS_READS_BYTES_TOTAL,
    container.FS_WRITES_TOTAL,
    container.FS_WRITES_BYTES_TOTAL,
    container.FS_IO_TIME_SECONDS_TOTAL,
    container.BLKIO_DEVICE_USAGE_TOTAL,
    container.FS_USAGE_BYTES,
    container.FS_LIMIT_BYTES,
    microvm.GUEST_CPU_STEAL_SECONDS_TOTAL,
    microvm.GUEST_CPU_SECONDS_TOTAL,
    microvm.GUEST_CLOCK_SKEW_SECONDS,
)
"""What the view of a guest tells that has a stock qemu-ga, of either tier."""

ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "container_spec_cpu_shares": "a record has no CPU weight: containers share no kernel that could weigh them",
        "container_spec_memory_swap_limit_bytes": "a guest has no swap, whatever is asked for",
        "container_spec_memory_reservation_limit_bytes": "a record has no reservation: a VM's memory is its own",
        'container_cpu_usage_seconds_total{cpu="cpu00"}': (
            "cgroup v2 does not count CPUs apart, and beside `total` every sum would be doubled; "
            "`microvm_guest_cpu_seconds_total` has the guest's vCPUs"
        ),
        "container_network_tcp6_usage_total": "containers have IPv4 alone",
        'microvm_start_phase_seconds{phase="listen"}': (
            "without tracing a kernel tells nobody when a socket begins to listen; a look in each sample would be "
            "wrong by up to `interval_s`, mostly more than it takes, and every guest would pay for looking more often"
        ),
        "container_tasks_state": "it takes a walk over all processes; `container_processes` counts them",
    }
)
"""Names that others export and people look for, and why we do not."""


def metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UnknownMetricError: nothing exports it.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownMetricError(name) from None
