"""What an alert and a recorded series are, and how Prometheus reads them.

An alert of a container keeps the container's base labels: Alertmanager groups by them and the remediation controller
finds the container by them. Those of a host have its `instance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from alerts.remediation import policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alerts.thresholds import Thresholds

Severity = Literal["page", "ticket", "info", "none"]
"""page: wake somebody; ticket: somebody's next working day; info: to be found when looking; none: no trouble."""

Scope = Literal["container", "host", "remediation", "all"]

DASHBOARDS: Final[Mapping[Scope, str]] = {
    "container": "hyper-container", "host": "hyper-host", "remediation": "hyper-remediation", "all": "hyper-fleet",
}  # fmt: skip
"""Grafana's uid of the dashboard that an alert of each scope leads to."""

_VARIABLES: Final[Mapping[Scope, tuple[str, ...]]] = {
    "container": ("instance", "namespace", "pod", "container"), "host": ("instance",), "remediation": (), "all": (),
}  # fmt: skip
"""Labels of the alert that the dashboard's variables are set to."""

WHO: Final = "Container {{ $labels.name }} of {{ $labels.namespace }}"
SHORT_ID: Final = '{{ reReplaceAll "^(.{12}).*$" "$1" $labels.id }}'
WHO_EXACTLY: Final = f"Container {{{{ $labels.name }}}} ({SHORT_ID}) of {{{{ $labels.namespace }}}}"
WHOM, WHOM_EXACTLY = (f"{who[0].lower()}{who[1:]}" for who in (WHO, WHO_EXACTLY))
"""The same within a sentence."""
HOST: Final = "{{ $labels.instance }}"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule.

    Attributes:
        for_: how long the expression holds before it fires; a Prometheus duration.
        cause: what is wrong, for inhibition: a page silences tickets of the same cause.
        description: with the value and its unit.
        labels: further labels, beside severity and cause.
    """

    name: str
    expr: str
    for_: str
    severity: Severity
    cause: str
    summary: str
    description: str
    scope: Scope = "container"
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_rule(self, thresholds: Thresholds) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        labels = {"severity": self.severity, "cause": self.cause, **self.labels}
        action = policy.ACTIONS.get(self.name)
        if action is not None:
            labels["remediation"] = action
        variables = "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in _VARIABLES[self.scope])
        dashboard = f"{thresholds.dashboard_base}/d/{DASHBOARDS[self.scope]}"
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.for_,
            "labels": labels,
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{thresholds.runbook_base}/{self.name}.md",
                "dashboard_url": f"{dashboard}?{variables}" if variables else dashboard,
            },
        }


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded series; its name is level:metric:operation."""

    name: str
    expr: str

    def to_rule(self) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {"record": self.name, "expr": self.expr}
