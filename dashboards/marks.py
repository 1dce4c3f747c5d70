"""What happened, as marks on every panel: made from metrics, so that nobody has to write them down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from collector.catalogue import container, microvm, remediation
from dashboards.panels import BLUE, GREEN, ORANGE, PURPLE, RED, SOURCE

if TYPE_CHECKING:
    from dashboards.promql import Chosen

STEP_S = 60
"""Prometheus is asked for one value a minute; marks that are closer together become one region."""

_ACTS_WITHIN_S: Final = 2 * STEP_S
"""From the alert to the end of what the controller does about it: at most so long, or it is not marked."""

_LAST_ACTION: Final = remediation.LAST_ACTION_TIMESTAMP_SECONDS.name


def starts(chosen: Chosen) -> dict[str, Any]:
    """Starts of the chosen containers, exactly when they were."""
    expr = f"{chosen.select(container.START_TIME_SECONDS)} * 1000"
    return _mark("Starts", expr, GREEN, "{{container}} started", at_value=True)


def states(chosen: Chosen) -> dict[str, Any]:
    """Time in which a chosen container is in a state other than running."""
    expr = f"{chosen.select(container.STATE, state='paused|stopping|exited|dead')} == 1"
    return _mark("Not running", expr, RED, "{{container}} is {{state}}")


def quarantines(chosen: Chosen) -> dict[str, Any]:
    """Begin of the quarantine that a chosen container is in."""
    expr = f"{chosen.select(container.QUARANTINE_START_TIME_SECONDS)} * 1000"
    return _mark("Quarantine", expr, RED, "{{container}} was put into quarantine", at_value=True)


def oom_kills(chosen: Chosen) -> dict[str, Any]:
    """OOM kills in the chosen containers."""
    expr = f"{chosen.increase(container.OOM_EVENTS_TOTAL, f'{STEP_S}s')} > 0"
    return _mark("OOM kills", expr, ORANGE, "{{container}}: killed for want of memory")


def silent_sources(chosen: Chosen) -> dict[str, Any]:
    """Time in which nothing is known of a running container from one of its sources."""
    expr = f"{chosen.select(microvm.SOURCE_UP)} == 0 and on (id) {chosen.running}"
    return _mark("Silent sources", expr, PURPLE, "{{container}}: {{source}} does not answer")


def digests(chosen: Chosen) -> dict[str, Any]:
    """The minute in which a container of the same name has another image digest than before."""
    info = chosen.select(container.INFO)
    by = "namespace, pod, container"
    new = f"count by ({by}, digest) ({info}) unless on ({by}, digest) {info} offset {STEP_S}s"
    return _mark("Image changes", f"({new}) and on ({by}) {info} offset {STEP_S}s", BLUE, "{{container}}: {{digest}}")


def alerts(chosen: Chosen) -> dict[str, Any]:
    """Time in which an alert about a chosen container fires that people are told of."""
    return _mark("Alerts", chosen.alerts(severity="page|ticket"), ORANGE, "{{container}}: {{alertname}}")


def pages(chosen: Chosen) -> dict[str, Any]:
    """Time in which an alert that wakes somebody fires, of the chosen containers and hosts."""
    return _mark("Pages", chosen.alerts(severity="page"), RED, "{{alertname}} {{container}} {{instance}}")


def actions() -> dict[str, Any]:
    """Remediation's actions on anything, exactly when they were carried out."""
    return _mark("Remediation", f"{_LAST_ACTION} * 1000", PURPLE, "Remediation acted", at_value=True)


def actions_on(chosen: Chosen) -> dict[str, Any]:
    """Remediation's actions while an alert about a chosen container fired on which it acts.

    The controller's metrics name no container, as their labels come from fixed sets alone. The alert that it was told
    of does: what it did about another container at that minute is taken for this one's only if both had such an alert.
    """
    told = f"count_over_time({chosen.alerts(remediation='.+')}[{_ACTS_WITHIN_S}s])"
    lately = f"max({_LAST_ACTION} > time() - {_ACTS_WITHIN_S})"
    # Each alert is 1, and becomes the time of the action.
    expr = f"group by (container, alertname) ({told}) * on () group_left () {lately} * 1000"
    return _mark("Remediation", expr, PURPLE, "Remediation acted on {{container}}: {{alertname}}", at_value=True)


def _mark(name: str, expr: str, color: str, title: str, *, at_value: bool = False) -> dict[str, Any]:
    """`at_value`: the expression's value is the time of the mark, in milliseconds since 1970."""
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "datasource": SOURCE,
        "iconColor": color,
        "expr": expr,
        "step": f"{STEP_S}s",
        "titleFormat": title,
        "useValueForTime": at_value,
    }
