"""Alerts about what the workload itself feels: it is down, sick, out of memory, throttled, out of disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import WHO, WHO_EXACTLY, WHOM, Alert
from alerts.promql import DOWN, QUARANTINED, RUNNING, WANTED, increase, kept_events, rate, select
from alerts.thresholds import seconds
from collector.catalogue import container, microvm

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

_PERCENT: Final = "{{ $value | humanizePercentage }}"
_COUNT: Final = '{{ $value | printf "%.0f" }}'


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts about containers."""
    return (*_life(t), *_memory(t), *_cpu(t), *_disk(t), *_network(t))


def _life(t: Thresholds) -> tuple[Alert, ...]:
    exit_code = f"{container.EXIT_CODE.name}{{id='%s'}}"
    return (
        Alert(
            name="HyperContainerDown",
            expr=DOWN,
            for_=t.container_down_for,
            severity="page",
            cause="down",
            summary=f"{WHO} is down",
            description=(
                f"{WHO_EXACTLY}, image {{{{ $labels.image }}}}, should be running and has been down for "
                f'{t.container_down_for}{{{{ with printf "{exit_code}" $labels.id | query }}}}'
                "; its exit code is {{ . | first | value }}{{ end }}."
            ),
        ),
        Alert(
            name="HyperContainerFlapping",
            expr=(
                f"{increase(container.RESTARTS_TOTAL, t.flapping_window)} >= {t.flapping_restarts_count} "
                f"and on (id) {WANTED}"
            ),
            for_="0s",
            severity="page",
            cause="down",
            summary=f"{WHO} starts again and again",
            description=(
                f"{WHO_EXACTLY} was started again about {_COUNT} times within {t.flapping_window}. It ends soon after "
                "each start; between two starts it serves nobody."
            ),
        ),
        Alert(
            name="HyperContainerQuarantined",
            expr=QUARANTINED,
            for_="0s",
            severity="page",
            cause="down",
            summary=f"{WHO} is in quarantine and serves nobody",
            description=(
                f"{WHO_EXACTLY} has been kept from working since {{{{ $value | humanizeTimestamp }}}}: its ports are "
                "closed, and what ran is paused with all that it was. It stays so until a person lifts that."
            ),
        ),
        Alert(
            name="HyperContainerUnhealthy",
            expr=f"{select(container.HEALTH_STATE)} == 0 and on (id) {RUNNING}",
            for_=t.unhealthy_for,
            severity="page",
            cause="down",
            summary=f"{WHO} runs, but its health check fails",
            description=(
                f"{WHO_EXACTLY} has run for {t.unhealthy_for} without a good health check "
                f"({container.HEALTH_STATE.name} is {{{{ $value }}}})."
            ),
        ),
    )


def _memory(t: Thresholds) -> tuple[Alert, ...]:
    memory = f"{container.MEMORY_WORKING_SET_BYTES.name} / {container.SPEC_MEMORY_LIMIT_BYTES.name}"
    return (
        Alert(
            name="HyperOomKill",
            expr=f"{kept_events(container.OOM_EVENTS_TOTAL, t.oom_window)} > 0",
            for_="0s",
            severity="ticket",
            cause="memory",
            summary=f"{WHO} ran out of memory",
            description=(
                f"{WHO_EXACTLY} lost about {_COUNT} processes within {t.oom_window}: they were killed for want of "
                "memory."
            ),
        ),
        Alert(
            name="HyperMemoryNearLimit",
            expr=f"{memory} > {t.memory_near_limit_ratio:g}",
            for_=t.memory_near_limit_for,
            severity="ticket",
            cause="memory",
            summary=f"{WHO} is near its memory limit",
            description=(
                f"{WHO_EXACTLY} has used {_PERCENT} of its memory limit, above {t.memory_near_limit_ratio * 100:g}% "
                f"for {t.memory_near_limit_for}; at 100% processes are killed."
            ),
        ),
        Alert(
            name="HyperMemoryPressure",
            expr=f"{rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)} > {t.memory_pressure_ratio:g}",
            for_=t.memory_pressure_for,
            severity="ticket",
            cause="memory",
            summary=f"{WHO} waits for memory",
            description=(
                f"{WHO_EXACTLY} spends {_PERCENT} of its time waiting for memory, above "
                f"{t.memory_pressure_ratio * 100:g}% for {t.memory_pressure_for}: it is slow, and near being killed."
            ),
        ),
    )


def _cpu(t: Thresholds) -> tuple[Alert, ...]:
    throttled = f"{rate(container.CPU_CFS_THROTTLED_PERIODS_TOTAL)} / {rate(container.CPU_CFS_PERIODS_TOTAL)}"
    # Periods count only while it runs: of one that runs once a minute most may be cut short, and nobody waits for it.
    lost = f"{rate(container.CPU_CFS_THROTTLED_SECONDS_TOTAL)} > {t.cpu_throttled_lost_ratio:g}"
    return (
        Alert(
            name="HyperCpuThrottled",
            expr=f"{throttled} > {t.cpu_throttled_ratio:g} and {lost}",
            for_=t.cpu_throttled_for,
            severity="ticket",
            cause="cpu",
            summary=f"{WHO} is held back by its CPU limit",
            description=(
                f"{WHO_EXACTLY} ran into its CPU limit in {_PERCENT} of all periods, above "
                f"{t.cpu_throttled_ratio * 100:g}% for {t.cpu_throttled_for}. It is its limit, not the host."
            ),
        ),
    )


def _disk(t: Thresholds) -> tuple[Alert, ...]:
    used = f"{container.FS_USAGE_BYTES.name} / {container.FS_LIMIT_BYTES.name}"
    inodes = f"1 - {container.FS_INODES_FREE.name} / {container.FS_INODES_TOTAL.name}"
    usage, window = container.FS_USAGE_BYTES.name, t.disk_fills_window
    forecast = f"predict_linear({usage}[{window}], {seconds(t.disk_fills_ahead_window):g})"
    return (
        Alert(
            name="HyperIoPressure",
            expr=f"{rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)} > {t.io_pressure_ratio:g}",
            for_=t.io_pressure_for,
            severity="ticket",
            cause="io",
            summary=f"{WHO} waits for its disk",
            description=(
                f"{WHO_EXACTLY} spends {_PERCENT} of its time waiting for a disk, above "
                f"{t.io_pressure_ratio * 100:g}% for {t.io_pressure_for}: it is slow."
            ),
        ),
        Alert(
            name="HyperDiskFull",
            expr=f"{used} > {t.disk_full_ratio:g}",
            for_=t.disk_full_for,
            severity="page",
            cause="disk",
            summary=f"The disk of {WHOM} is nearly full",
            description=(
                f"{WHO_EXACTLY} has used {_PERCENT} of its writable layer ({{{{ $labels.device }}}}), above "
                f"{t.disk_full_ratio * 100:g}% for {t.disk_full_for}. At 100% its writes fail."
            ),
        ),
        Alert(
            name="HyperDiskFillsSoon",
            expr=f"{used} > {t.disk_fills_ratio:g} and {forecast} > {container.FS_LIMIT_BYTES.name}",
            for_=t.disk_fills_for,
            severity="ticket",
            cause="disk",
            summary=f"The disk of {WHOM} fills up",
            description=(
                f"{WHO_EXACTLY} has used {_PERCENT} of its writable layer ({{{{ $labels.device }}}}). As it grew in "
                f"the last {window} it is full within {t.disk_fills_ahead_window}."
            ),
        ),
        Alert(
            name="HyperInodesFull",
            expr=f"{inodes} > {t.inodes_full_ratio:g}",
            for_=t.inodes_full_for,
            severity="page",
            cause="disk",
            summary=f"{WHO} has nearly too many files",
            description=(
                f"{WHO_EXACTLY} has used {_PERCENT} of the inodes of its writable layer ({{{{ $labels.device }}}}), "
                f"above {t.inodes_full_ratio * 100:g}% for {t.inodes_full_for}. At 100% no file can be made, however "
                "much room there is."
            ),
        ),
    )


def _network(t: Thresholds) -> tuple[Alert, ...]:
    sent = f"sum by (id) ({rate(container.NETWORK_TRANSMIT_PACKETS_TOTAL)})"
    again = f"{rate(microvm.TCP_RETRANSMITS_TOTAL)} / on (id) group_left () ({sent} > {t.tcp_retransmits_min_per_s:g})"
    return (
        Alert(
            name="HyperListenOverflow",
            expr=f"{increase(microvm.TCP_LISTEN_OVERFLOWS_TOTAL, '5m')} > {t.listen_overflows_count}",
            for_=t.listen_overflows_for,
            severity="ticket",
            cause="network",
            summary=f"{WHO} turns connections away",
            description=(
                f"{WHO_EXACTLY} has turned away about {_COUNT} connections within 5m, for {t.listen_overflows_for} "
                "on end: it does not accept them as fast as they come."
            ),
        ),
        Alert(
            name="HyperTcpRetransmits",
            expr=f"{again} > {t.tcp_retransmits_ratio:g}",
            for_=t.tcp_retransmits_for,
            severity="ticket",
            cause="network",
            summary=f"The network of {WHOM} loses packets",
            description=(
                f"{WHO_EXACTLY} sends {_PERCENT} of its TCP segments again, above {t.tcp_retransmits_ratio * 100:g}% "
                f"for {t.tcp_retransmits_for}: packets are lost between it and its peers."
            ),
        ),
    )
