"""The controller's own metrics, `hyper_remediation_*`, as the catalogue declares them."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from alerts.remediation.journal import OUTCOMES
from alerts.remediation.policy import ACT_REASONS, Action, ActReason, Reason
from alerts.remediation.policyfile import Step
from collector.catalogue import remediation

if TYPE_CHECKING:
    from collections.abc import Callable

    from alerts.remediation.journal import Decision, Outcome
    from collector.catalogue import Metric

_ALWAYS = ("done", "failed")
"""Outcomes that every action may have."""
_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Telemetry:
    """Counts what the controller does. Label values come from fixed sets alone, never from an alert."""

    def __init__(self) -> None:
        # Otherwise each counter and histogram has a series more for the time it was made, which no catalogue has.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has not typed it
        self.registry = CollectorRegistry()
        self._decisions = self._counter(remediation.DECISIONS_TOTAL)
        self._actions = self._counter(remediation.ACTIONS_TOTAL)
        self._requests = self._counter(remediation.WEBHOOK_REQUESTS_TOTAL)
        duration = remediation.ACTION_DURATION_SECONDS
        self._duration = Histogram(
            duration.name, duration.help, duration.labels, registry=self.registry, buckets=_BUCKETS_S
        )
        self._last: Gauge | None = None
        self._feed_readable: Gauge | None = None
        self._feed_written: Gauge | None = None
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
        # The id leads from a slow action to its decision in the audit.
        took_s = max(0.0, outcome.time - decision.time)
        self._duration.labels(decision.action).observe(took_s, {"decision": decision.id})
        if outcome.carried_out:
            self.last_action(outcome.time)

    def last_action(self, at: float) -> None:
        """Set the time of the last action, seconds since 1970; there is no such series before the first one."""
        self._last = self._last or self._gauge(remediation.LAST_ACTION_TIMESTAMP_SECONDS)
        self._last.set(at)

    def standing_still(self, *, stopped: Callable[[], bool], waiting: Callable[[], int]) -> None:
        """Export whether the stop switch is on, and how much waits for a person, as they are when they are asked for.

        A file is the switch, and time ends what waits: nothing tells of either.
        """
        self._gauge(remediation.STOPPED).set_function(stopped)
        self._gauge(remediation.WAITING).set_function(waiting)

    def feed(self, *, readable: bool, written_at: float | None = None) -> None:
        """Set whether the feed could be read, and when the one in use was written; there are no such series before."""
        self._feed_readable = self._feed_readable or self._gauge(remediation.FEED_READABLE)
        self._feed_readable.set(readable)
        if written_at is not None:
            self._feed_written = self._feed_written or self._gauge(remediation.FEED_TIMESTAMP_SECONDS)
            self._feed_written.set(written_at)

    def audit_failed(self) -> None:
        """Count a decision that could not be written down, and so was not acted on."""
        self._decisions.labels("skip", "audit_unwritable").inc()

    def answered(self, status: int) -> None:
        """Count a request to the webhook by the HTTP status of its answer."""
        self._requests.labels(str(status)).inc()

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, registry=self.registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)


def _reasons() -> list[str]:
    # Reason is a union of two sets of literals.
    return [name for part in get_args(Reason) for name in (get_args(part) or (part,))]


def _called_for() -> set[tuple[Action, ActReason]]:
    """All that may be done, and for what reason: a policy file may have any step for any alert."""
    new: set[tuple[Action, ActReason]] = {
        ("update", "image_pushed"), ("rebuild", "base_pushed"), ("rebuild", "vulnerable")
    }  # fmt: skip
    return {*new, *product(get_args(Step), set(ACT_REASONS) - {reason for _, reason in new})}
