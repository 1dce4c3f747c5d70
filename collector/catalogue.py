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
    "BASE_LABELS",
    "CATALOGUE",
    "CONTAINER_STATES",
    "EXPORTED",
    "HEALTH_VALUES",
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


def metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UnknownMetricError: nothing exports it.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownMetricError(name) from None
