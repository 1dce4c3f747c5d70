"""Everything that a threshold, a duration or an address in the rules is called, with its default.

`--set name=value` of `python -m alerts` and the tests override them by name; a rule has no number of its own. The end
of a name is its unit: `_for`, `_window`, `_interval`, `_wait` are Prometheus durations, `_ratio` is 0 to 1, `_factor`
may be more, `_bytes`, `_s` (seconds), `_per_s`, `_count` are what they say.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from alerts.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

_DURATION = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))+")
_DURATION_PART = re.compile(r"([0-9]+)(ms|[smhdwy])")
_URL = re.compile(r"https?://[^\s\"'{}]+")
_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_NUMBERS: Final = ("_factor", "_bytes", "_s", "_count")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When the rules fire.

    Attributes:
        evaluation_interval: How often the rules are evaluated; an alert is up to this late.
        slo_interval: How often availability is looked at; an outage shorter than this may not be seen by it.
        container_down_for: How long a container may be down that should run. Longer than a redeploy takes.
        flapping_window: In which `flapping_restarts_count` restarts are too many.
        flapping_restarts_count: See there.
        unhealthy_for: How long the health check may fail. Longer than the interval of checks.
        probe_failing_for: How long a probe may fail while no health check does. Longer than a start takes to serve.
        probe_latency_window: The time over which the latency of probes is looked at. Several of their intervals.
        probe_past_window: The past that it is held against.
        probe_slow_factor: Latency over that of the past. Above 3.6, which two neighbouring buckets may make of nothing.
        probe_slow_s: Latency below which nothing is concluded.
        probe_slow_for: How long it may be above both.
        relay_down_for: How long an application's own metrics may be missing.
        relay_dropped_window: How long a series of an application that was left out keeps its alert alive.
        oom_window: How long an OOM kill keeps its alert alive.
        memory_near_limit_ratio: Working set over limit.
        memory_near_limit_for: How long it may stay there.
        memory_pressure_ratio: Share of the time in which some task waits for memory.
        memory_pressure_for: How long it may be above it.
        io_pressure_ratio: Share of the time in which some task waits for a disk.
        io_pressure_for: How long it may be above it.
        cpu_throttled_ratio: Share of the quota's periods in which it ran out.
        cpu_throttled_lost_ratio: Share of the time that it has to be kept waiting; below it nothing is concluded.
        cpu_throttled_for: How long it may be above both.
        disk_full_ratio: Used share of the writable layer at which somebody is woken.
        disk_full_for: How long it may stay there.
        disk_fills_window: The past that is drawn out to tell when the disk is full.
        disk_fills_ahead_window: How far it is drawn out.
        disk_fills_ratio: Used share below which nothing is foretold.
        disk_fills_for: How long the forecast has to hold.
        inodes_full_ratio: Used share of the writable layer's inodes.
        inodes_full_for: How long it may stay there.
        listen_overflows_count: Refused connections in 5 min that are too many.
        listen_overflows_for: For how long.
        tcp_retransmits_ratio: Segments sent again over packets sent.
        tcp_retransmits_min_per_s: Packets sent a second below which nothing is concluded.
        tcp_retransmits_for: How long it may be above it.
        agent_unhealthy_for: How long the agent of a running container may be silent.
        qemu_silent_for: How long QEMU of a running container may be silent.
        host_view_for: How long the host's files of a running container may be unreadable.
        vm_stopped_for: How long QEMU may have stopped the guest of a container that is said to run.
        vm_event_window: How long a bad event of QEMU keeps its alert alive.
        starved_ratio: Share of the time in which the host keeps it from the CPU.
        starved_window: The time that is looked at.
        overhead_memory_bytes: Memory that the VM takes beside its container's.
        overhead_memory_for: How long it may be above it.
        clock_skew_s: Difference between the guest's clock and the host's.
        clock_skew_for: How long it may be above it.
        starts_failing_ratio: Share of starts that fail.
        starts_failing_count: Failed starts below which nothing is concluded.
        starts_failing_window: The time that is looked at.
        start_fallbacks_ratio: Share of starts that took a slower path.
        start_fallbacks_count: Such starts below which nothing is concluded.
        start_fallbacks_window: The time that is looked at.
        template_failing_count: Starts within the window that a broken template or pool made slower.
        template_failing_window: The time that is looked at.
        pulls_failing_ratio: Share of pulls that fail.
        pulls_failing_count: Failed pulls below which nothing is concluded.
        pulls_failing_window: The time that is looked at.
        exporter_down_for: How long the exporter may not answer.
        exporter_job: `job` label of the exporter in Prometheus.
        remediation_job: `job` label of the remediation controller in Prometheus.
        remediation_down_for: How long the controller may not answer.
        remediation_failed_window: How long a failed action keeps its alert alive.
        remediation_stopped_for: How long the stop switch may be on.
        remediation_waiting_for: How long a proposal may wait.
        remediation_feed_for: How long the feed may be unreadable, or too old.
        remediation_feed_old_s: Age of the feed of vulnerabilities. Several times the interval at which it is fetched.
        webhook_refused_count: Refused notifications that are too many.
        webhook_refused_window: In this time.
        runtime_silent_s: Age of what hyperd last wrote; it writes every second.
        runtime_down_for: How long it may be older.
        runtime_restarting_count: Starts of hyperd that are too many. More than an upgrade takes.
        runtime_restarting_window: In this time.
        collector_stalled_s: Age of the last round of the collector. Several times its interval.
        collector_stalled_for: How long it may be older.
        collector_slow_s: Length of a round. Less than the interval of rounds.
        collector_slow_for: How long rounds may be longer.
        many_down_ratio: Share of a host's containers that are down at once.
        many_down_count: And at least so many.
        many_down_for: How long. Longer than `container_down_for`, so that each has been tried on its own.
        host_memory_low_ratio: Memory of the host that micro-VMs take.
        host_memory_low_for: How long it may be above it.
        host_disk_full_for: How long hyperd's reserve on the disk may be short.
        host_unreadable_for: How long the host's own files may be unreadable.
        host_overcommit_factor: Memory promised to running containers over the host's memory.
        host_overcommit_for: How long it may be above it.
        host_cpu_ratio: CPU of the host that micro-VMs take.
        host_cpu_for: How long it may be above it.
        series_dropped_window: How long a series left out keeps its alert alive.
        records_unreadable_for: How long a record may be unreadable.
        influx_backlog_bytes: Samples on disk that InfluxDB has not taken. Less than the spool holds (256 MiB).
        influx_backlog_for: How long it may be above it.
        influx_lost_window: How long a lost batch keeps its alert alive.
        alerts_unread_count: Failed questions to Alertmanager, one a round; with so many or fewer all is well.
        alerts_unread_window: In which they are counted.
        slo_availability_ratio: Share of the time in which a container that should run is there: the objective.
        slo_start_ratio: Share of starts within `slo_start_s`: the objective.
        slo_start_s: Seconds that a start may take, all phases together.
        slo_start_count: Starts below which nothing is concluded.
        watchdog: Whether there is an alert that always fires, for a dead man's switch.
        runbook_base: Where the runbooks are: a path in this repository, or the URL they are published under.
        dashboard_base: Where Grafana is.
    """

    evaluation_interval: str = "10s"
    slo_interval: str = "1m"
    container_down_for: str = "30s"
    flapping_window: str = "15m"
    flapping_restarts_count: int = 5
    unhealthy_for: str = "3m"
    probe_failing_for: str = "3m"
    probe_latency_window: str = "10m"
    probe_past_window: str = "1d"
    probe_slow_factor: float = 4.0
    probe_slow_s: float = 0.1
    probe_slow_for: str = "10m"
    relay_down_for: str = "10m"
    relay_dropped_window: str = "15m"
    oom_window: str = "10m"
    memory_near_limit_ratio: float = 0.9
    memory_near_limit_for: str = "5m"
    memory_pressure_ratio: float = 0.2
    memory_pressure_for: str = "10m"
    io_pressure_ratio: float = 0.5
    io_pressure_for: str = "15m"
    cpu_throttled_ratio: float = 0.5
    cpu_throttled_lost_ratio: float = 0.05
    cpu_throttled_for: str = "15m"
    disk_full_ratio: float = 0.95
    disk_full_for: str = "5m"
    disk_fills_window: str = "1h"
    disk_fills_ahead_window: str = "4h"
    disk_fills_ratio: float = 0.6
    disk_fills_for: str = "15m"
    inodes_full_ratio: float = 0.95
    inodes_full_for: str = "5m"
    listen_overflows_count: int = 10
    listen_overflows_for: str = "5m"
    tcp_retransmits_ratio: float = 0.1
    tcp_retransmits_min_per_s: float = 10.0
    tcp_retransmits_for: str = "15m"
    agent_unhealthy_for: str = "1m"
    qemu_silent_for: str = "2m"
    host_view_for: str = "5m"
    vm_stopped_for: str = "1m"
    vm_event_window: str = "10m"
    starved_ratio: float = 0.5
    starved_window: str = "10m"
    overhead_memory_bytes: int = 256 << 20
    overhead_memory_for: str = "1h"
    clock_skew_s: float = 5.0
    clock_skew_for: str = "5m"
    starts_failing_ratio: float = 0.5
    starts_failing_count: int = 5
    starts_failing_window: str = "15m"
    start_fallbacks_ratio: float = 0.5
    start_fallbacks_count: int = 10
    start_fallbacks_window: str = "1h"
    template_failing_count: int = 3
    template_failing_window: str = "1h"
    pulls_failing_ratio: float = 0.5
    pulls_failing_count: int = 3
    pulls_failing_window: str = "1h"
    exporter_down_for: str = "1m"
    exporter_job: str = "hyper-exporter"
    remediation_job: str = "hyper-remediation"
    remediation_down_for: str = "5m"
    remediation_failed_window: str = "30m"
    remediation_stopped_for: str = "1d"
    remediation_waiting_for: str = "1h"
    remediation_feed_for: str = "1h"
    remediation_feed_old_s: float = 604800.0
    webhook_refused_count: int = 3
    webhook_refused_window: str = "15m"
    runtime_silent_s: float = 60.0
    runtime_down_for: str = "1m"
    runtime_restarting_count: int = 5
    runtime_restarting_window: str = "15m"
    collector_stalled_s: float = 60.0
    collector_stalled_for: str = "1m"
    collector_slow_s: float = 5.0
    collector_slow_for: str = "10m"
    many_down_ratio: float = 0.5
    many_down_count: int = 5
    many_down_for: str = "2m"
    host_memory_low_ratio: float = 0.9
    host_memory_low_for: str = "5m"
    host_disk_full_for: str = "1m"
    host_unreadable_for: str = "5m"
    host_overcommit_factor: float = 1.5
    host_overcommit_for: str = "30m"
    host_cpu_ratio: float = 0.9
    host_cpu_for: str = "15m"
    series_dropped_window: str = "15m"
    records_unreadable_for: str = "5m"
    influx_backlog_bytes: int = 64 << 20
    influx_backlog_for: str = "15m"
    influx_lost_window: str = "15m"
    alerts_unread_count: int = 30
    alerts_unread_window: str = "15m"
    slo_availability_ratio: float = 0.995
    slo_start_ratio: float = 0.95
    slo_start_s: float = 5.0
    slo_start_count: int = 5
    watchdog: bool = True
    runbook_base: str = "docs/runbooks"
    dashboard_base: str = "http://127.0.0.1:3000"


@dataclass(frozen=True, slots=True)
class Routing:
    """How Alertmanager groups and sends.

    Attributes:
        webhook_url: Where the remediation controller listens.
        webhook_token_file: File with its bearer token, read by Alertmanager; "": none.
        group_wait: How long the controller waits for others of a group after the first alert.
        group_interval: Least time between two notifications of a group that changed.
        repeat_interval: How often a group that did not change is told again. What the controller lost,
            or would not act on yet, is made up for after this time.
        people_group_wait: How long people wait for others of a group.
        people_group_interval: Least time between two notifications to people of a group that changed.
        people_repeat_interval: How often people are reminded of a group that did not change.
    """

    webhook_url: str = "http://127.0.0.1:9721/alertmanager"
    webhook_token_file: str = ""
    group_wait: str = "1s"
    group_interval: str = "10s"
    repeat_interval: str = "5m"
    people_group_wait: str = "15s"
    people_group_interval: str = "5m"
    people_repeat_interval: str = "4h"


def seconds(duration: str) -> float:
    """Length of a Prometheus duration."""
    return sum(int(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(duration))


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
    if name == "watchdog":
        if value not in {"true", "false"}:
            raise BadSetting(f"{name}={value}: true or false is needed")
        return value == "true"
    if name.endswith("_ratio"):
        ratio = _number(value)
        if not 0 < ratio <= 1:
            raise BadSetting(f"{name}={value}: a ratio above 0 and up to 1 is needed")
        return ratio
    if name.endswith(_NUMBERS):
        number = _number(value)
        if number <= 0 or (name.endswith(("_bytes", "_count")) and number != int(number)):
            kind = "a whole number" if name.endswith(("_bytes", "_count")) else "a number"
            raise BadSetting(f"{name}={value}: {kind} above 0 is needed")
        return int(number) if name.endswith(("_bytes", "_count")) else number
    if name.endswith(("_for", "_window", "_interval", "_wait")) and not _DURATION.fullmatch(value):
        raise BadSetting(f"{name}={value}: a duration such as 30s or 5m is needed")
    if name in {"webhook_url", "dashboard_base"} and not _URL.fullmatch(value):
        raise BadSetting(f"{name}={value}: an http or https URL is needed")
    if name in {"exporter_job", "remediation_job"} and not re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        raise BadSetting(f"{name}={value}: letters, digits and _ . / - only")
    return value


def _number(text: str) -> float:
    """A finite number, or -1, which no setting can be."""
    try:
        number = float(text)
    except ValueError:
        return -1.0
    return number if math.isfinite(number) else -1.0
