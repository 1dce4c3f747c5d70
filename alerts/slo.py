"""Objectives, and alerts on how fast the error budget is used up, over several windows at several rates.

A container is available while it runs, answers (its agent gives samples) and is not found unhealthy. It counts only
while it should be running, which one in quarantine should, and not while somebody has paused it. Its budget is
`1 - slo_availability_ratio`. A burn rate of 1 uses it up in just the period of the objective; 14.4 uses 2 % of 30 days'
budget in one hour. An alert wants the long window, so that it matters, and the short one, so that it still goes on.

Unavailable time is set in relation to the whole window, also for a container that is younger: one that took 20 s to
come up has not been "down for all of its life".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import HOST, WHO, WHO_EXACTLY, Alert, Recording
from alerts.host_alerts import BY_HOST
from alerts.promql import QUARANTINED, RUNNING, WANTED, select
from alerts.thresholds import seconds
from collector.catalogue import container, microvm

if TYPE_CHECKING:
    from alerts.alert import Severity
    from alerts.thresholds import Thresholds

PAGES: Final = (("1h", "5m", 14.4), ("6h", "30m", 6.0))
"""Long window, short window, burn rate: 2 % and 5 % of 30 days' budget."""
TICKETS: Final = (("1d", "2h", 3.0), ("3d", "6h", 1.0))
"""10 % of 30 days' budget each."""

AVAILABLE: Final = "id:container_available:bool"
_WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_START_WINDOWS: Final = ("5m", "30m", "1h", "6h")


def unavailable(window: str) -> str:
    """Name of the recorded share of the window in which a container was not available."""
    return f"id:container_unavailable:ratio_{window}"


def slow_starts(window: str) -> str:
    """Name of the recorded share of a host's containers started in the window whose start was slow."""
    return f"instance:microvm_slow_starts:ratio_{window}"


def recordings(t: Thresholds) -> tuple[Recording, ...]:
    """The series that the alerts compare."""
    wanted = f"({WANTED} unless on (id) {select(container.STATE, state='paused')} == 1)"
    answers = f"{select(microvm.SOURCE_UP, source='guest')} == 1"
    available = f"{wanted} and on (id) {RUNNING} and on (id) {answers} and on (id) {container.HEALTH_STATE.name} != 0"
    took_s = microvm.START_SECONDS.name
    shares = []
    for window in _WINDOWS:
        share = _digits(seconds(t.slo_interval) / seconds(window))
        missing = f"count_over_time({AVAILABLE}[{window}]) - sum_over_time({AVAILABLE}[{window}])"
        shares.append(Recording(unavailable(window), f"({missing}) * {share}"))
    for window in _START_WINDOWS:
        lately = f"and on (id) time() - {container.START_TIME_SECONDS.name} < {seconds(window):g}"
        slow = f"count {BY_HOST} ({took_s} > {t.slo_start_s:g} {lately})"
        every = f"count {BY_HOST} ({took_s} {lately})"
        shares.append(Recording(slow_starts(window), f"({slow} or {every} * 0) / ({every} >= {t.slo_start_count})"))
    return (Recording(AVAILABLE, f"({available}) or {wanted} * 0 or ({QUARANTINED}) * 0"), *shares)


def _digits(ratio: float) -> str:
    """One evaluation's part of a window, with all the digits that matter."""
    return f"{ratio:.12g}"


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """One alert for each pair of windows."""
    return (
        *(_availability(t, "HyperAvailabilityBurnsFast", "page", *one) for one in PAGES),
        *(_availability(t, "HyperAvailabilityBurnsSlowly", "ticket", *one) for one in TICKETS),
        *(_starts(t, *one) for one in PAGES),
    )


def _availability(t: Thresholds, name: str, severity: Severity, long: str, short: str, factor: float) -> Alert:
    limit = factor * (1 - t.slo_availability_ratio)
    return Alert(
        name=name,
        expr=f"{unavailable(long)} > {limit:g} and {unavailable(short)} > {limit:g}",
        for_="0s",
        severity=severity,
        cause="down",
        summary=f"{WHO} is away too often",
        description=(
            f"{WHO_EXACTLY} was not available for {{{{ $value | humanizePercentage }}}} of the last {long}, above "
            f"{limit * 100:g}%, and still is not. The objective allows {(1 - t.slo_availability_ratio) * 100:g}% in "
            f"the long run; this is {factor:g} times as fast or more."
        ),
        labels={"window": long},
    )


def _starts(t: Thresholds, long: str, short: str, factor: float) -> Alert:
    limit = factor * (1 - t.slo_start_ratio)
    return Alert(
        name="HyperStartsSlow",
        expr=f"{slow_starts(long)} > {limit:g} and {slow_starts(short)} > {limit:g}",
        for_="0s",
        severity="ticket",
        cause="start",
        summary=f"Containers on {HOST} start slowly",
        description=(
            f"Of the containers started on {HOST} within {long}, {{{{ $value | humanizePercentage }}}} took longer "
            f"than {t.slo_start_s:g} s, above {limit * 100:g}%. The objective allows "
            f"{(1 - t.slo_start_ratio) * 100:g}%."
        ),
        scope="host",
        labels={"window": long},
    )
