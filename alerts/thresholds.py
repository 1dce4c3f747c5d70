"""Everything that a threshold, a duration or an address in the rules is called, with its default.

`--set name=value` of `python -m alerts` and the tests override them by name; a rule has no number of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from alerts.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

_DURATION = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))+")
_URL = re.compile(r"https?://[^\s\"'{}]+")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When the rules fire. Durations are Prometheus durations; ratios are 0 to 1.

    Attributes:
        evaluation_interval: How often the group is evaluated; an alert is up to this late.
        container_down_for: How long a container may be down that should run. Longer than a redeploy takes.
        agent_unhealthy_for: How long the agent of a running container may be silent.
        oom_window: How long an OOM kill keeps its alert alive.
        memory_near_limit_ratio: Working set over limit.
        memory_near_limit_for: How long it may stay there.
        exporter_down_for: How long the exporter may not answer.
        exporter_job: `job` label of the exporter in Prometheus.
        runbook_base: Where the runbooks are: a path in this repository, or the URL they are published under.
        dashboard_base: Where Grafana is.
    """

    evaluation_interval: str = "10s"
    container_down_for: str = "30s"
    agent_unhealthy_for: str = "1m"
    oom_window: str = "10m"
    memory_near_limit_ratio: float = 0.9
    memory_near_limit_for: str = "5m"
    exporter_down_for: str = "1m"
    exporter_job: str = "hyper-exporter"
    runbook_base: str = "docs/runbooks"
    dashboard_base: str = "http://127.0.0.1:3000"


@dataclass(frozen=True, slots=True)
class Routing:
    """How Alertmanager groups and sends.

    Attributes:
        webhook_url: Where the remediation controller listens.
        webhook_token_file: File with its bearer token, read by Alertmanager; "": none.
        group_wait: How long the first alert of a group waits for others.
        group_interval: Least time between two notifications of a group that changed.
        repeat_interval: How often a group that did not change is told again. What the controller lost,
            or would not act on yet, is made up for after this time.
    """

    webhook_url: str = "http://127.0.0.1:9721/alertmanager"
    webhook_token_file: str = ""
    group_wait: str = "1s"
    group_interval: str = "10s"
    repeat_interval: str = "5m"


def override(
    pairs: Sequence[str], thresholds: Thresholds | None = None, routing: Routing | None = None
) -> tuple[Thresholds, Routing]:
    """Lay `name=value` over the settings of both kinds; their names do not overlap.

    Raises:
        BadSetting: no setting has that name, or it cannot have that value.
    """
    thresholds, routing = thresholds or Thresholds(), routing or Routing()
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadSetting(f"--set {pair}: name=value is needed")
        if name in _names(Thresholds):
            thresholds = replace(thresholds, **{name: _checked(name, value)})
        elif name in _names(Routing):
            routing = replace(routing, **{name: _checked(name, value)})
        else:
            names = ", ".join(_names(Thresholds) + _names(Routing))
            raise BadSetting(f"--set {pair}: no such setting; there are {names}")
    return thresholds, routing


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _checked(name: str, value: str) -> Any:
    if name.endswith("_ratio"):
        try:
            ratio = float(value)
        except ValueError:
            ratio = -1.0
        if not 0 < ratio <= 1:
            raise BadSetting(f"{name}={value}: a ratio above 0 and up to 1 is needed")
        return ratio
    if name.endswith(("_for", "_window", "_interval", "_wait")) and not _DURATION.fullmatch(value):
        raise BadSetting(f"{name}={value}: a duration such as 30s or 5m is needed")
    if name in {"webhook_url", "dashboard_base"} and not _URL.fullmatch(value):
        raise BadSetting(f"{name}={value}: an http or https URL is needed")
    if name == "exporter_job" and not re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        raise BadSetting(f"{name}={value}: letters, digits and _ . / - only")
    return value
