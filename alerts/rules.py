"""The alerts: one function makes them all from the thresholds, with metrics taken from the catalogue.

All of them keep the base labels of the container (`id`, `name`, `namespace`, …): Alertmanager groups by them and the
remediation controller finds the container by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alerts.remediation import policy
from collector.catalogue import container, microvm

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

Severity = Literal["page", "ticket"]

DASHBOARD_UID = "hyper-fleet"
_WHO = "Container {{ $labels.name }} of {{ $labels.namespace }}"
_STATE = container.STATE.name


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule. `for_` is a Prometheus duration; `of_container` is whether its labels name a container."""

    name: str
    expr: str
    for_: str
    severity: Severity
    summary: str
    description: str
    of_container: bool = True

    def to_rule(self, thresholds: Thresholds) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        labels: dict[str, str] = {"severity": self.severity}
        action = policy.ACTIONS.get(self.name)
        if action is not None:
            labels["remediation"] = action
        dashboard = f"{thresholds.dashboard_base}/d/{DASHBOARD_UID}"
        if self.of_container:
            dashboard += (
                "?var-namespace={{ $labels.namespace | urlquery }}&var-container={{ $labels.container | urlquery }}"
            )
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.for_,
            "labels": labels,
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{thresholds.runbook_base}/{self.name}.md",
                "dashboard_url": dashboard,
            },
        }


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts under these thresholds."""
    memory = f"{container.MEMORY_WORKING_SET_BYTES.name} / {container.SPEC_MEMORY_LIMIT_BYTES.name}"
    running = f'{_STATE}{{state="running"}} == 1'
    exit_code = f"{container.EXIT_CODE.name}{{id='%s'}}"
    return (
        Alert(
            name="HyperContainerDown",
            # Evidence that it is down, not a lack of evidence that it is up: absent series fire nothing.
            expr=f'{container.DESIRED_RUNNING.name} == 1 and on (id) {_STATE}{{state=~"created|exited|dead"}} == 1',
            for_=t.container_down_for,
            severity="page",
            summary=f"{_WHO} is down",
            description=(
                f"{_WHO} ({{{{ $labels.image }}}}) should be running and has been down for {t.container_down_for}"
                f'{{{{ with printf "{exit_code}" $labels.id | query }}}}'
                "; its exit code is {{ . | first | value }}{{ end }}."
            ),
        ),
        Alert(
            name="HyperAgentUnhealthy",
            expr=f'{microvm.SOURCE_UP.name}{{source="guest"}} == 0 and on (id) {running}',
            for_=t.agent_unhealthy_for,
            severity="page",
            summary="The guest agent of {{ $labels.name }} of {{ $labels.namespace }} does not answer",
            description=(
                f"{_WHO} runs, but its guest agent has given no good sample for {t.agent_unhealthy_for} "
                f"({microvm.SOURCE_UP.name} is {{{{ $value }}}}): the guest hangs or starves."
            ),
        ),
        Alert(
            name="HyperOomKill",
            expr=f"increase({container.OOM_EVENTS_TOTAL.name}[{t.oom_window}]) > 0",
            for_="0s",
            severity="ticket",
            summary=f"{_WHO} ran out of memory",
            description=(
                f"{_WHO} lost about {{{{ $value | humanize }}}} processes within {t.oom_window}: they were killed for "
                "want of memory."
            ),
        ),
        Alert(
            name="HyperMemoryNearLimit",
            expr=f"{memory} > {t.memory_near_limit_ratio:g}",
            for_=t.memory_near_limit_for,
            severity="ticket",
            summary=f"{_WHO} is near its memory limit",
            description=(
                f"{_WHO} has used {{{{ $value | humanizePercentage }}}} of its memory limit, above "
                f"{t.memory_near_limit_ratio * 100:g}% for {t.memory_near_limit_for}; at 100% it is killed."
            ),
        ),
        Alert(
            name="HyperExporterDown",
            # `up` is Prometheus' own: the one name here that no exporter of ours exports.
            expr=f'up{{job="{t.exporter_job}"}} == 0',
            for_=t.exporter_down_for,
            severity="page",
            summary="hyper-exporter on {{ $labels.instance }} does not answer",
            description=(
                "Prometheus has had no answer from hyper-exporter on {{ $labels.instance }} for "
                f"{t.exporter_down_for} (up is {{{{ $value }}}}): nothing is known about the containers of this host, "
                "and nothing is done for them."
            ),
            of_container=False,
        ),
    )


def rule_file(thresholds: Thresholds) -> dict[str, Any]:
    """The whole rule file."""
    rules = [alert.to_rule(thresholds) for alert in alerts(thresholds)]
    return {"groups": [{"name": "hyper", "interval": thresholds.evaluation_interval, "rules": rules}]}
