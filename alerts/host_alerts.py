"""Alerts about a host and what we run on it: the exporter, hyperd, capacity, InfluxDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import HOST, Alert
from alerts.promql import DOWN, RUNNING, WANTED, events, increase, rate, select
from collector.catalogue import container, hyper, machine, microvm

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

BY_HOST: Final = "by (instance, job)"
_ON_HOST: Final = "on (instance, job)"
_PERCENT: Final = "{{ $value | humanizePercentage }}"
_COUNT: Final = '{{ $value | printf "%.0f" }}'
_DURATION: Final = "{{ $value | humanizeDuration }}"
_BROKEN: Final = ("template failed.*", "the pool's VM failed.*")
"""Reasons of a slower start that are defects; others come from load, or from what a container asks for."""
_BYTES: Final = "{{ $value | humanize1024 }}B"


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts about hosts and our own programs."""
    watchdog = (_watchdog(),) if t.watchdog else ()
    return (*_exporter(t), *_runtime(t), *_starts(t), *_capacity(t), *_influx(t), _alerts_unread(t), *watchdog)


def _exporter(t: Thresholds) -> tuple[Alert, ...]:
    # `up` is Prometheus' own: the one name here that no exporter of ours exports.
    up = f'up{{job="{t.exporter_job}"}}'
    seen_s = f"time() - max {BY_HOST} ({container.LAST_SEEN.name})"
    return (
        Alert(
            name="HyperExporterDown",
            expr=f"{up} == 0",
            for_=t.exporter_down_for,
            severity="page",
            cause="collector",
            summary=f"hyper-exporter on {HOST} does not answer",
            description=(
                f"Prometheus has had no answer from hyper-exporter on {HOST} for {t.exporter_down_for} "
                "(up is {{ $value }}): nothing is known about the containers of this host, and nothing is done for "
                "them. The host itself may be down."
            ),
            scope="host",
        ),
        Alert(
            name="HyperExporterMissing",
            expr=f"absent({up})",
            for_=t.exporter_down_for,
            severity="page",
            cause="collector",
            summary="Prometheus knows no hyper-exporter",
            description=(
                f"For {t.exporter_down_for} Prometheus has had no target of job {{{{ $labels.job }}}}: no container of "
                "any host is watched, and no other alert can fire."
            ),
            scope="all",
        ),
        Alert(
            name="HyperCollectorStalled",
            # Only live containers are seen anew each round; a host without any tells nothing by this.
            expr=f"{seen_s} > {t.collector_stalled_s:g} and {_ON_HOST} {hyper.CONTAINERS.name} > 0",
            for_=t.collector_stalled_for,
            severity="page",
            cause="collector",
            summary=f"hyper-exporter on {HOST} shows old numbers",
            description=(
                f"hyper-exporter on {HOST} answers, but its last round over the containers was {_DURATION} ago, above "
                f"{t.collector_stalled_s:g} s for {t.collector_stalled_for}: what is shown of this host is not true "
                "any more."
            ),
            scope="host",
        ),
        Alert(
            name="HyperCollectorSlow",
            expr=f"{hyper.COLLECTOR_ROUND_SECONDS.name} > {t.collector_slow_s:g}",
            for_=t.collector_slow_for,
            severity="ticket",
            cause="collector",
            summary=f"hyper-exporter on {HOST} is slow",
            description=(
                f"A round of hyper-exporter on {HOST} over all containers takes {_DURATION}, above "
                f"{t.collector_slow_s:g} s for {t.collector_slow_for}: numbers come late."
            ),
            scope="host",
        ),
        Alert(
            name="HyperSeriesDropped",
            expr=f"{increase(hyper.COLLECTOR_SERIES_DROPPED_TOTAL, t.series_dropped_window)} > 0",
            for_="0s",
            severity="ticket",
            cause="collector",
            summary=f"hyper-exporter on {HOST} leaves series out",
            description=(
                f"hyper-exporter on {HOST} left out about {_COUNT} series within {t.series_dropped_window}, as a "
                "container had more than its budget allows: what they would tell is not seen."
            ),
            scope="host",
        ),
        Alert(
            name="HyperHostUnreadable",
            expr=f"{machine.SCRAPE_ERROR.name} > 0",
            for_=t.host_unreadable_for,
            severity="ticket",
            cause="collector",
            summary=f"hyper-exporter cannot read what host {HOST} has",
            description=(
                f"hyper-exporter on {HOST} has not been able to read the host's own files for {t.host_unreadable_for} "
                f"({machine.SCRAPE_ERROR.name} is {{{{ $value }}}}): no alert about the host's CPU or memory can fire."
            ),
            scope="host",
        ),
        Alert(
            name="HyperRecordsUnreadable",
            expr=f"{hyper.RECORDS_UNREADABLE.name} > 0",
            for_=t.records_unreadable_for,
            severity="ticket",
            cause="collector",
            summary=f"Container records on {HOST} cannot be read",
            description=(
                f"{_COUNT} container records on {HOST} have been unreadable for {t.records_unreadable_for}: what "
                "becomes of these containers is not seen. One that was read before is told as it was then, another not "
                "at all."
            ),
            scope="host",
        ),
    )


def _runtime(t: Thresholds) -> tuple[Alert, ...]:
    down, wanted = f"count {BY_HOST} ({DOWN})", f"count {BY_HOST} ({WANTED})"
    return (
        Alert(
            name="HyperRuntimeDown",
            expr=f"time() - {hyper.RUNTIME_LAST_UPDATE_TIMESTAMP_SECONDS.name} > {t.runtime_silent_s:g}",
            for_=t.runtime_down_for,
            severity="page",
            cause="runtime",
            summary=f"hyperd on {HOST} is down or hangs",
            description=(
                f"hyperd on {HOST} has written nothing for {_DURATION}; it does every second. Containers go on, but "
                "none is started, stopped, checked or started again after it ended."
            ),
            scope="host",
        ),
        Alert(
            name="HyperRuntimeRestarting",
            expr=(
                f"changes({hyper.RUNTIME_START_TIME_SECONDS.name}[{t.runtime_restarting_window}]) "
                f">= {t.runtime_restarting_count}"
            ),
            for_="0s",
            severity="page",
            cause="runtime",
            summary=f"hyperd on {HOST} is started again and again",
            description=(
                f"hyperd on {HOST} was started {_COUNT} times within {t.runtime_restarting_window}: it ends again "
                "and again. Containers go on, but little else can be relied on."
            ),
            scope="host",
        ),
        Alert(
            name="HyperManyContainersDown",
            expr=f"{down} >= {t.many_down_count} and {down} / {wanted} >= {t.many_down_ratio:g}",
            for_=t.many_down_for,
            severity="page",
            cause="down",
            summary=f"Many containers on {HOST} are down",
            description=(
                f"{_COUNT} containers on {HOST} should be running and have been down for {t.many_down_for}. They are "
                f"{t.many_down_ratio * 100:g}% or more of those that should: look at the host, not at each container."
            ),
            scope="host",
        ),
    )


def _starts(t: Thresholds) -> tuple[Alert, ...]:
    window = t.starts_failing_window
    failed = f"sum {BY_HOST} ({events(hyper.OPERATIONS_TOTAL, window, kind='start', outcome='failed')})"
    tried = f"sum {BY_HOST} ({events(hyper.OPERATIONS_TOTAL, window, kind='start')})"
    slower = f"sum {BY_HOST} ({events(hyper.START_FALLBACKS_TOTAL, t.start_fallbacks_window)})"
    started = f"sum {BY_HOST} ({events(hyper.STARTS_TOTAL, t.start_fallbacks_window)})"
    broken = f"sum {BY_HOST} ({events(hyper.START_FALLBACKS_TOTAL, t.template_failing_window, reason=_BROKEN)})"
    unpulled, pulls = (
        f"sum {BY_HOST} ({events(hyper.OPERATIONS_TOTAL, t.pulls_failing_window, kind='pull', **more)})"
        for more in ({"outcome": "failed"}, {})
    )
    return (
        Alert(
            name="HyperStartsFailing",
            expr=f"{failed} / {tried} >= {t.starts_failing_ratio:g} and {failed} >= {t.starts_failing_count}",
            for_="0s",
            severity="ticket",
            cause="start",
            summary=f"Containers on {HOST} do not start",
            description=(
                f"{_PERCENT} of the starts on {HOST} within {window} failed, {t.starts_failing_ratio * 100:g}% or more "
                f"of at least {t.starts_failing_count}."
            ),
            scope="host",
        ),
        Alert(
            name="HyperStartFallbacks",
            expr=f"{slower} / {started} >= {t.start_fallbacks_ratio:g} and {slower} >= {t.start_fallbacks_count}",
            for_="0s",
            severity="info",
            cause="start",
            summary=f"Containers on {HOST} start by a slower path",
            description=(
                f"{_PERCENT} of the starts on {HOST} within {t.start_fallbacks_window} took a slower path than they "
                f"could have, {t.start_fallbacks_ratio * 100:g}% or more."
            ),
            scope="host",
        ),
        Alert(
            name="HyperTemplateFailing",
            expr=f"{broken} >= {t.template_failing_count}",
            for_="0s",
            severity="ticket",
            cause="start",
            summary=f"Templates or the pool on {HOST} are broken",
            description=(
                f"About {_COUNT} starts on {HOST} within {t.template_failing_window} took a slower path as a template "
                "could not be built, or a VM of the pool failed. Containers start, and slowly."
            ),
            scope="host",
        ),
        Alert(
            name="HyperPullsFailing",
            expr=(f"{unpulled} / {pulls} >= {t.pulls_failing_ratio:g} and {unpulled} >= {t.pulls_failing_count}"),
            for_="0s",
            severity="ticket",
            cause="registry",
            summary=f"Images cannot be pulled on {HOST}",
            description=(
                f"{_PERCENT} of the pulls on {HOST} within {t.pulls_failing_window} failed, "
                f"{t.pulls_failing_ratio * 100:g}% or more of at least {t.pulls_failing_count}: the registry, the way "
                "to it, its certificate, or the credentials. What runs goes on; what is new does not come."
            ),
            scope="host",
        ),
    )


def _capacity(t: Thresholds) -> tuple[Alert, ...]:
    # The memory of a template is shared by its clones: adding it up would count it once for each.
    taken = f"sum {BY_HOST} ({select(microvm.HOST_MEMORY_BYTES, part=('guest_ram', 'vmm'))})"
    promised = f"sum {BY_HOST} ({container.SPEC_MEMORY_LIMIT_BYTES.name} and on (id) {RUNNING})"
    cpu = f"sum {BY_HOST} ({rate(microvm.HOST_CPU_SECONDS_TOTAL)})"
    return (
        Alert(
            name="HyperHostMemoryLow",
            expr=f"{taken} / {_ON_HOST} {machine.MEMORY_BYTES.name} > {t.host_memory_low_ratio:g}",
            for_=t.host_memory_low_for,
            severity="page",
            cause="memory",
            summary=f"Host {HOST} runs out of memory",
            description=(
                f"Micro-VMs take {_PERCENT} of the memory of host {HOST}, above {t.host_memory_low_ratio * 100:g}% for "
                f"{t.host_memory_low_for}. When it is gone the host kills one of them, not the one you would choose."
            ),
            scope="host",
        ),
        Alert(
            name="HyperHostDiskFull",
            expr=f"{hyper.RESERVE_MISSING_BYTES.name} > 0",
            for_=t.host_disk_full_for,
            severity="page",
            cause="disk",
            summary=f"The disk of host {HOST} is full",
            description=(
                f"hyperd on {HOST} found its disk full and has had to give up {_BYTES} of what it keeps for giving "
                f"room back, for {t.host_disk_full_for}. Nothing that takes room is begun, and guests that write are "
                "halted until there is some."
            ),
            scope="host",
        ),
        Alert(
            name="HyperHostOvercommitted",
            expr=f"{promised} / {_ON_HOST} {machine.MEMORY_BYTES.name} > {t.host_overcommit_factor:g}",
            for_=t.host_overcommit_for,
            severity="info",
            cause="memory",
            summary=f"More memory is promised on {HOST} than there is",
            description=(
                f'Running containers on {HOST} may use {{{{ $value | printf "%.1f" }}}} times the memory that the host '
                f"has, above {t.host_overcommit_factor:g} times for {t.host_overcommit_for}."
            ),
            scope="host",
        ),
        Alert(
            name="HyperHostCpuSaturated",
            expr=f"{cpu} / {_ON_HOST} {machine.CPU_CORES.name} > {t.host_cpu_ratio:g}",
            for_=t.host_cpu_for,
            severity="ticket",
            cause="cpu",
            summary=f"Host {HOST} is short of CPU",
            description=(
                f"Micro-VMs use {_PERCENT} of all CPUs of host {HOST}, above {t.host_cpu_ratio * 100:g}% for "
                f"{t.host_cpu_for}: containers wait for one another."
            ),
            scope="host",
        ),
    )


def _influx(t: Thresholds) -> tuple[Alert, ...]:
    backlog = hyper.INFLUX_BACKLOG_BYTES.name
    return (
        Alert(
            name="HyperInfluxBacklog",
            expr=f"{backlog} > {t.influx_backlog_bytes}",
            for_=t.influx_backlog_for,
            severity="ticket",
            cause="influx",
            summary=f"InfluxDB does not take the samples of {HOST}",
            description=(
                f"{_BYTES} of samples wait on the disk of {HOST} for InfluxDB, above "
                f"{t.influx_backlog_bytes / (1 << 20):g} MiB for {t.influx_backlog_for}. When the spool is full the "
                "oldest are lost."
            ),
            scope="host",
        ),
        Alert(
            name="HyperInfluxLosing",
            expr=f"sum by (instance, job, reason) ({increase(hyper.INFLUX_DROPPED_TOTAL, t.influx_lost_window)}) > 0",
            for_="0s",
            severity="ticket",
            cause="influx",
            summary=f"Samples of {HOST} for InfluxDB are lost",
            description=(
                f"hyper-exporter on {HOST} gave up about {_COUNT} batches for InfluxDB within {t.influx_lost_window}: "
                "{{ $labels.reason }}. Prometheus is not affected."
            ),
            scope="host",
        ),
    )


def _alerts_unread(t: Thresholds) -> Alert:
    failures = increase(hyper.COLLECTOR_ALERTMANAGER_FAILURES_TOTAL, t.alerts_unread_window)
    return Alert(
        name="HyperAlertsUnread",
        expr=f"sum by (instance, job) ({failures}) > {t.alerts_unread_count}",
        for_="0s",
        severity="ticket",
        cause="alertmanager",
        summary=f"hyper-exporter on {HOST} is not told which containers have an alert",
        description=(
            f"Alertmanager did not answer hyper-exporter on {HOST} about {_COUNT} times within "
            f"{t.alerts_unread_window}: containers that have an alert are not sampled deep."
        ),
        scope="host",
    )


def _watchdog() -> Alert:
    return Alert(
        name="HyperWatchdog",
        expr="vector(1)",
        for_="0s",
        severity="none",
        cause="watchdog",
        summary="Alerts work",
        description=(
            "This alert always fires. Whoever no longer receives it knows that Prometheus, Alertmanager or the way "
            "from it is broken (the value is always {{ $value }})."
        ),
        scope="all",
    )
