"""The controller's own metrics, `hyper_remediation_*`, as the catalogue declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from alerts.remediation.journal import OUTCOMES
from alerts.remediation.policy import ACT_REASONS, RULES, Action, ActReason, Reason
from collector.catalogue import remediation

if TYPE_CHECKING:
    from alerts.remediation.journal import Decision, Outcome
    from collector.catalogue import Metric

_ALWAYS = ("done", "failed")
"""Outcomes that every action may have."""
_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Telemetry:
    """Counts what the controller does. Label values come from fixed sets alone, never from an alert."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decisions = self._counter(remediation.DECISIONS_TOTAL)
        self._actions = self._counter(remediation.ACTIONS_TOTAL)
        self._requests = self._counter(remediation.WEBHOOK_REQUESTS_TOTAL)
        duration = remediation.ACTION_DURATION_SECONDS
        self._duration = Histogram(
            duration.name, duration.help, duration.labels, registry=self.registry, buckets=_BUCKETS_S
        )
        self._last: Gauge | None = None
        # A counter that is first seen at 1 has no increase: all that can happen begins at 0.
        for reason in _reasons():
            self._decisions.labels("act" if reason in ACT_REASONS else "skip", reason)
            if reason in ACT_REASONS:
                self._decisions.labels("dry_run", reason)
        for action, cause in sorted(_called_for()):
            self._duration.labels(action)
            for outcome in OUTCOMES if (action, cause) == ("redeploy", "container_down") else _ALWAYS:
                self._actions.labels(action, cause, outcome)

    def decided(self, decision: Decision) -> None:
        """Count a decision that stands in the audit."""
        self._decisions.labels(decision.verdict, decision.reason).inc()

    def concluded(self, decision: Decision, outcome: Outcome) -> None:
        """Count an action that has ended; its duration runs from the intent, over a restart if there was one."""
        self._actions.labels(decision.action, decision.reason, outcome.outcome).inc()
        self._duration.labels(decision.action).observe(max(0.0, outcome.time - decision.time))
        if outcome.carried_out:
            self.last_action(outcome.time)

    def last_action(self, at: float) -> None:
        """Set the time of the last action, seconds since 1970; there is no such series before the first one."""
        if self._last is None:
            metric = remediation.LAST_ACTION_TIMESTAMP_SECONDS
            self._last = Gauge(metric.name, metric.help, registry=self.registry)
        self._last.set(at)

    def audit_failed(self) -> None:
        """Count a decision that could not be written down, and so was not acted on."""
        self._decisions.labels("skip", "audit_unwritable").inc()

    def answered(self, status: int) -> None:
        """Count a request to the webhook by the HTTP status of its answer."""
        self._requests.labels(str(status)).inc()

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)


def _reasons() -> list[str]:
    # Reason is a union of two sets of literals.
    return [name for part in get_args(Reason) for name in (get_args(part) or (part,))]


def _called_for() -> set[tuple[Action, ActReason]]:
    """What the built-in rules may lead to."""
    steps = {(step, rule.reason) for rule in RULES.values() for step in (*rule.after_change, *rule.otherwise)}
    return steps | {("quarantine", "no_recovery"), ("update", "image_pushed")}
