"""All rules, in groups: recorded series, then alerts about containers, applications, VMs, hosts, and objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alerts import (
    application_alerts,
    container_alerts,
    host_alerts,
    microvm_alerts,
    recordings,
    remediation_alerts,
    slo,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alerts.alert import Alert, Recording
    from alerts.thresholds import Thresholds


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts under these thresholds; those of one name differ in their label `window`."""
    application = (*application_alerts.alerts(t), *application_alerts.latency_alerts(t))
    return (
        *container_alerts.alerts(t), *application, *microvm_alerts.alerts(t), *host_alerts.alerts(t),
        *remediation_alerts.alerts(t), *slo.alerts(t),
    )  # fmt: skip


def rule_file(thresholds: Thresholds) -> dict[str, Any]:
    """The whole rule file."""
    t = thresholds
    often, seldom = t.evaluation_interval, t.slo_interval

    def group(name: str, interval: str, recorded: Sequence[Recording], fire: Sequence[Alert]) -> dict[str, Any]:
        rules = [*(one.to_rule() for one in recorded), *(one.to_rule(t) for one in fire)]
        return {"name": name, "interval": interval, "rules": rules}

    return {
        "groups": [
            group("hyper-container", often, (), container_alerts.alerts(t)),
            group("hyper-application", often, (), application_alerts.alerts(t)),
            group("hyper-latency", seldom, application_alerts.recordings(t), application_alerts.latency_alerts(t)),
            group("hyper-microvm", often, (), microvm_alerts.alerts(t)),
            group("hyper-host", often, (), host_alerts.alerts(t)),
            group("hyper-remediation", often, (), remediation_alerts.alerts(t)),
            group("hyper-objectives", seldom, slo.recordings(t), slo.alerts(t)),
            group("hyper-recorded", seldom, recordings.recordings(), ()),
        ]
    }
