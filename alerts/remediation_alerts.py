"""Alerts about the remediation controller: it is down, stopped or refused, it fails, it waits for somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import HOST, Alert
from alerts.promql import events, increase
from collector.catalogue import remediation

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

_COUNT: Final = '{{ $value | printf "%.0f" }}'
_DURATION: Final = "{{ $value | humanizeDuration }}"


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts about the controller."""
    return (*_remediation(t), *_feed(t))


def _remediation(t: Thresholds) -> tuple[Alert, ...]:
    failed = increase(remediation.ACTIONS_TOTAL, t.remediation_failed_window, outcome="failed")
    refused = events(remediation.WEBHOOK_REQUESTS_TOTAL, t.webhook_refused_window, code=("4..", "5.."))
    return (
        Alert(
            name="HyperRemediationFailing",
            expr=f"sum by (instance, job, action) ({failed}) > 0",
            for_="0s",
            severity="ticket",
            cause="remediation",
            summary=f"A remediation by {HOST} failed",
            description=(
                f"The remediation controller {HOST} tried to {{{{ $labels.action }}}} about {_COUNT} times within "
                f"{t.remediation_failed_window} and failed. The container is for people now."
            ),
            scope="remediation",
        ),
        Alert(
            name="HyperRemediationDown",
            expr=f'up{{job="{t.remediation_job}"}} == 0',
            for_=t.remediation_down_for,
            severity="ticket",
            cause="remediation",
            summary=f"The remediation controller {HOST} does not answer",
            description=(
                f"Prometheus has had no answer from the remediation controller {HOST} for {t.remediation_down_for} "
                "(up is {{ $value }}): nothing is healed by itself."
            ),
            scope="remediation",
        ),
        Alert(
            name="HyperRemediationRefuses",
            expr=f"sum by (instance, job, code) ({refused}) >= {t.webhook_refused_count}",
            for_="0s",
            severity="ticket",
            cause="remediation",
            summary=f"The remediation controller {HOST} refuses notifications",
            description=(
                f"The remediation controller {HOST} answered about {_COUNT} notifications with "
                f"{{{{ $labels.code }}}} within {t.webhook_refused_window}: what they told is not acted on."
            ),
            scope="remediation",
        ),
        Alert(
            name="HyperRemediationStopped",
            expr=f"{remediation.STOPPED.name} == 1",
            for_=t.remediation_stopped_for,
            severity="ticket",
            cause="remediation",
            summary=f"The remediation {HOST} has been stopped for long",
            description=(
                f"The stop switch of the remediation controller {HOST} has been on (it is {{{{ $value }}}}) for "
                f"{t.remediation_stopped_for}: nothing is healed by itself."
            ),
            scope="remediation",
        ),
        Alert(
            name="HyperRemediationWaiting",
            expr=f"{remediation.WAITING.name} > 0",
            for_=t.remediation_waiting_for,
            severity="ticket",
            cause="remediation",
            summary=f"The remediation {HOST} waits for a person",
            description=(
                f"The remediation controller {HOST} has had proposals for {t.remediation_waiting_for} that wait for a "
                "person; there are {{ $value }}."
            ),
            scope="remediation",
        ),
    )


def _feed(t: Thresholds) -> tuple[Alert, ...]:
    return (
        Alert(
            name="HyperRemediationFeedLost",
            expr=f"{remediation.FEED_READABLE.name} == 0",
            for_=t.remediation_feed_for,
            severity="ticket",
            cause="feed",
            summary=f"The remediation controller {HOST} cannot read its feed of vulnerabilities",
            description=(
                f"The remediation controller {HOST} has not been able to read its feed for {t.remediation_feed_for} "
                f"({remediation.FEED_READABLE.name} is {{{{ $value }}}}): no image is built again for a hole that "
                "becomes known."
            ),
            scope="remediation",
        ),
        Alert(
            name="HyperRemediationFeedOld",
            expr=f"time() - {remediation.FEED_TIMESTAMP_SECONDS.name} > {t.remediation_feed_old_s:g}",
            for_=t.remediation_feed_for,
            severity="ticket",
            cause="feed",
            summary=f"The feed of vulnerabilities of {HOST} is old",
            description=(
                f"The feed that the remediation controller {HOST} uses was written {_DURATION} ago, above "
                f"{t.remediation_feed_old_s:g} s: holes that have become known since are not seen."
            ),
            scope="remediation",
        ),
    )
