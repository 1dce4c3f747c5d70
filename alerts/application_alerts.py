"""Alerts about what a container's labels ask for of its application: probes, and the relay of its own metrics.

A probe is about what its user sees, and the health check is Docker's: a probe that fails beside a health check that
fails says nothing new, and neither does one that the guest's agent could not make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import WHO, WHO_EXACTLY, WHOM, WHOM_EXACTLY, Alert, Recording
from alerts.promql import RUNNING, increase, select
from collector.catalogue import container, microvm

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

LATENCY: Final = "id:container_probe_duration_seconds:median"
"""Recorded: what half of a container's probes took less than, lately."""
PAST: Final = "name:container_probe_duration_seconds:past"
"""Recorded: the same over the past, of all containers that had this name: a new image is held against the old one."""

_BY_NAME: Final = "(instance, job, namespace, name)"
_COUNT: Final = '{{ $value | printf "%.0f" }}'
_ASKED: Final = f"unless on (id) {select(microvm.SOURCE_UP, source='guest')} == 0"
"""Whatever could not even be asked says nothing of the application: HyperAgentUnhealthy does."""


def recordings(t: Thresholds) -> tuple[Recording, ...]:
    """Latency now and in the past."""
    lately = f"rate({container.PROBE_DURATION_SECONDS.name}_bucket[{t.probe_latency_window}])"
    return (
        # Without a probe in the window there is no number: NaN is not above 0.
        Recording(LATENCY, f"histogram_quantile(0.5, {lately}) > 0"),
        Recording(PAST, f"min by {_BY_NAME} (quantile_over_time(0.5, {LATENCY}[{t.probe_past_window}]))"),
    )


def latency_alerts(t: Thresholds) -> tuple[Alert, ...]:
    """Those that stand on what is recorded."""
    return (
        Alert(
            name="HyperProbeSlow",
            expr=(
                f"{LATENCY} > {t.probe_slow_s:g} and "
                f"{LATENCY} > on {_BY_NAME} group_left () {t.probe_slow_factor:g} * {PAST}"
            ),
            for_=t.probe_slow_for,
            severity="ticket",
            cause="latency",
            summary=f"{WHO} answers more slowly than it used to",
            description=(
                f"Half of the probes of {WHOM_EXACTLY} take longer than "
                f"{{{{ $value | humanizeDuration }}}}, more than {t.probe_slow_factor:g} times what they took in the "
                f"last {t.probe_past_window}, for {t.probe_slow_for}."
            ),
        ),
    )


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All others about applications."""
    return (*_probe(t), *_relay(t))


def _reason(failures: str) -> str:
    """The reason that failures had most often, told by the alert itself."""
    most = f"topk(1, increase({failures}{{id='%s'}}[5m]))"
    return (
        f'{{{{ with printf "{most}" $labels.id | query }}}}, most often for this reason: '
        '{{ . | first | label "reason" }}{{ end }}'
    )


def _probe(t: Thresholds) -> tuple[Alert, ...]:
    refused = select(container.PROBE_FAILURES_TOTAL, reason="label")
    either = f"{refused} > 0 or {select(container.RELAY_FAILURES_TOTAL, reason='label')} > 0"
    return (
        Alert(
            name="HyperProbeFailing",
            expr=(
                f"{container.PROBE_SUCCESS.name} == 0 and on (id) {RUNNING} "
                f"unless on (id) {container.HEALTH_STATE.name} == 0 {_ASKED} unless on (id) {refused} > 0"
            ),
            for_=t.probe_failing_for,
            severity="page",
            cause="down",
            summary=f"{WHO} runs, but its probe fails",
            description=(
                f"{WHO_EXACTLY} has run for {t.probe_failing_for} without a good answer to its probe "
                f"({container.PROBE_SUCCESS.name} is {{{{ $value }}}}){_reason(container.PROBE_FAILURES_TOTAL.name)}. "
                "No health check of it fails."
            ),
        ),
        Alert(
            name="HyperLabelRefused",
            expr=f"({either}) and on (id) {RUNNING}",
            for_="0s",
            severity="ticket",
            cause="label",
            summary=f"{WHO} is not probed, or not relayed, as a label of it is wrong",
            description=(
                f"A label hyper.probe or hyper.metrics of {WHOM_EXACTLY}, or one of their "
                f"settings, asks for nothing that there is (failures for this reason: {_COUNT}): what it was meant to "
                "show is not seen."
            ),
        ),
    )


def _relay(t: Thresholds) -> tuple[Alert, ...]:
    refused = select(container.RELAY_FAILURES_TOTAL, reason="label")
    return (
        Alert(
            name="HyperRelayDown",
            expr=(f"{container.RELAY_UP.name} == 0 and on (id) {RUNNING} {_ASKED} unless on (id) {refused} > 0"),
            for_=t.relay_down_for,
            severity="ticket",
            # Of an application that does not answer at all there is a page, which silences this.
            cause="down",
            summary=f"The metrics of {WHOM} itself are not to be had",
            description=(
                f"{WHO_EXACTLY} runs, and its application has not told its own metrics for {t.relay_down_for} "
                f"({container.RELAY_UP.name} is {{{{ $value }}}}){_reason(container.RELAY_FAILURES_TOTAL.name)}."
            ),
        ),
        Alert(
            name="HyperRelayDropped",
            expr=f"{increase(container.RELAY_DROPPED_TOTAL, t.relay_dropped_window)} > 0",
            for_="0s",
            severity="ticket",
            cause="relay",
            summary=f"{WHO} has metrics of its own that are left out: {{{{ $labels.reason }}}}",
            description=(
                f"Of the application of {WHOM_EXACTLY} series were left out about {_COUNT} "
                f"times within {t.relay_dropped_window}, for this reason: {{{{ $labels.reason }}}}."
            ),
        ),
    )
