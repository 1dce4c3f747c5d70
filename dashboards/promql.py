"""Selectors of PromQL, made from metrics of the catalogue and checked against their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from collector.catalogue import BASE_LABELS, container

if TYPE_CHECKING:
    from collector.catalogue import Metric

PER_CONTAINER = "instance, namespace, pod, container"
"""Labels that tell containers apart for people, and that a link to one of them carries."""

NOT_RUNNING = "created|exited|dead"
"""States in which nothing of the container runs, as a regular expression."""

OF_ITS_OWN = "guest_ram|vmm"
"""Parts of a micro-VM's memory on the host that are its own: what it shares with others would count once for each."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a dashboard's variables choose; every selector made by it is narrowed to that.

    Attributes:
        variables: names of the variables that are labels of containers; `instance` is also one of the host's metrics.
    """

    variables: tuple[str, ...]

    def select(self, metric: Metric, **matchers: str) -> str:
        """A selector of a metric.

        Args:
            metric: What to select.
            **matchers: Label and the regular expression that its value has to match, anchored.

        Raises:
            ValueError: the metric has no such label.
        """
        parts = [f'{name}=~"${name}"' for name in self.variables if name in _narrowed_by(metric)]
        for label, pattern in matchers.items():
            if label not in {*metric.labels, *_narrowed_by(metric)}:
                raise ValueError(f"{metric.name} has no label {label}")
            parts.append(f'{label}=~"{pattern}"')
        return f"{metric.name}{{{', '.join(parts)}}}" if parts else metric.name

    def alerts(self, **matchers: str) -> str:
        """A selector of the alerts that fire, of Prometheus' own series; `matchers` are regular expressions."""
        parts = [f'{name}=~"${name}"' for name in self.variables]
        parts += ['alertstate="firing"', *(f'{label}=~"{pattern}"' for label, pattern in matchers.items())]
        return f"ALERTS{{{', '.join(parts)}}}"

    def rate(self, metric: Metric, window: str = "$__rate_interval", **matchers: str) -> str:
        """Growth of a counter a second, over the interval that suits the zoom unless told otherwise."""
        return f"rate({self.select(metric, **matchers)}[{window}])"

    def increase(self, metric: Metric, window: str = "$__rate_interval", **matchers: str) -> str:
        """Growth of a counter over a window, a Prometheus duration or `$__rate_interval`."""
        return f"increase({self.select(metric, **matchers)}[{window}])"

    def quantile(self, share: float, metric: Metric, by: str, window: str = "$__rate_interval") -> str:
        """Below what this share of a histogram's observations of the window were; without any there is no series."""
        bucket = self.select(metric).replace(metric.name, f"{metric.name}_bucket", 1)
        return f"histogram_quantile({share:g}, sum by ({by}, le) (increase({bucket}[{window}]))) >= 0"

    def events(self, metric: Metric, window: str = "$__rate_interval", **matchers: str) -> str:
        """Growth of a counter whose series begin with their first event: a new one counts with all it has."""
        # The form of alerts.promql, which says why; a dashboard and an alert are not to count otherwise.
        series = self.select(metric, **matchers)
        same = f"on ({', '.join(('id', *metric.labels))}) " if metric.scope == "container" else ""
        lately = f"last_over_time({series}[1d:5m] offset {window}) unless on (instance, job) up offset {window} == 1"
        new = f"max_over_time({series}[{window}]) unless {same}({series} offset {window} or {lately})"
        return f"({new} or increase({series}[{window}]))"

    def count(self, expr: str, among: Metric) -> str:
        """How many series the expression has, and 0 only if there is a series of `among` at all: unseen is not zero."""
        return f"count({expr}) or count({self.select(among)}) * 0"

    @property
    def running(self) -> str:
        """The containers whose process runs."""
        return f"({self.select(container.STATE, state='running')} == 1)"

    @property
    def wanted(self) -> str:
        """The containers that should be running."""
        return f"({self.select(container.DESIRED_RUNNING)} == 1)"

    @property
    def quarantined(self) -> str:
        """The containers that are kept from working."""
        return f"({self.select(container.QUARANTINE_START_TIME_SECONDS)} > 0)"

    @property
    def down(self) -> str:
        """The containers that should be running and are not, and those in quarantine, each with its state."""
        state = self.select(container.STATE, state=NOT_RUNNING)
        held = f"{self.select(container.STATE)} == 1 and on (id) {self.quarantined}"
        return f"({state} == 1 and on (id) {self.wanted} or {held})"


def per_container(expr: str) -> str:
    """The sum of an expression by container, with the labels that a link to the container carries."""
    return f"sum by ({PER_CONTAINER}) ({expr})"


def _narrowed_by(metric: Metric) -> tuple[str, ...]:
    """Labels of the metric that a variable may choose among."""
    if metric.scope == "container":
        return ("instance", *BASE_LABELS, *metric.labels)
    return () if metric.scope == "remediation" else ("instance",)
