"""Alerts about the micro-VM around a container: its agent, its QEMU, its clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alerts.alert import WHO, WHO_EXACTLY, WHOM, WHOM_EXACTLY, Alert
from alerts.promql import RUNNING, events, select
from alerts.thresholds import seconds
from collector.catalogue import microvm

if TYPE_CHECKING:
    from alerts.thresholds import Thresholds

_STOPPED: Final = ("paused", "internal-error", "io-error", "guest-panicked", "shutdown")
"""QEMU's run states in which the guest does not go on."""
_EVENTS: Final = ("guest_panicked", "watchdog", "block_io_error", "memory_failure")
_STEP: Final = "30s"
"""How finely the past is looked at where only the member of a state set that holds has a series."""


def alerts(t: Thresholds) -> tuple[Alert, ...]:
    """All alerts about micro-VMs."""
    return (
        Alert(
            name="HyperAgentUnhealthy",
            expr=f"{select(microvm.SOURCE_UP, source='guest')} == 0 and on (id) {RUNNING}",
            for_=t.agent_unhealthy_for,
            severity="page",
            cause="down",
            summary="The guest agent of {{ $labels.name }} of {{ $labels.namespace }} does not answer",
            description=(
                f"{WHO_EXACTLY} runs, but its guest agent has given no good sample for {t.agent_unhealthy_for} "
                f"({microvm.SOURCE_UP.name} is {{{{ $value }}}}): the guest hangs or starves."
            ),
        ),
        Alert(
            name="HyperQemuSilent",
            expr=f"{select(microvm.SOURCE_UP, source='vmm')} == 0 and on (id) {RUNNING}",
            for_=t.qemu_silent_for,
            severity="page",
            cause="down",
            summary="QEMU of {{ $labels.name }} of {{ $labels.namespace }} does not answer",
            description=(
                f"{WHO_EXACTLY} is said to run, but its QEMU process has not answered for {t.qemu_silent_for} "
                f"({microvm.SOURCE_UP.name} is {{{{ $value }}}}): the process is stopped or hangs, and the container "
                "with it."
            ),
        ),
        Alert(
            name="HyperHostViewLost",
            expr=f"{select(microvm.SOURCE_UP, source='host')} == 0 and on (id) {RUNNING}",
            for_=t.host_view_for,
            severity="ticket",
            cause="collector",
            summary="What {{ $labels.name }} of {{ $labels.namespace }} costs the host cannot be read",
            description=(
                f"{WHO_EXACTLY} runs, but the host's files about its QEMU process have been unreadable for "
                f"{t.host_view_for} ({microvm.SOURCE_UP.name} is {{{{ $value }}}}). The container itself is not known "
                "to be in trouble."
            ),
        ),
        Alert(
            name="HyperVmStopped",
            expr=f"{select(microvm.VMM_STATUS, status=_STOPPED)} == 1 and on (id) {RUNNING}",
            for_=t.vm_stopped_for,
            severity="page",
            cause="down",
            summary="The micro-VM of {{ $labels.name }} of {{ $labels.namespace }} stands still: {{ $labels.status }}",
            description=(
                f"{WHO_EXACTLY} is said to run, but QEMU has been in state {{{{ $labels.status }}}} for "
                f"{t.vm_stopped_for}: nothing in it goes on."
            ),
        ),
        Alert(
            name="HyperVmEvent",
            expr=f"{events(microvm.EVENTS_TOTAL, t.vm_event_window, event=_EVENTS)} > 0",
            for_="0s",
            severity="ticket",
            cause="vm",
            summary="QEMU reports {{ $labels.event }} for {{ $labels.name }} of {{ $labels.namespace }}",
            description=(
                f"QEMU of {WHOM_EXACTLY} has reported {{{{ $labels.event }}}} about "
                f'{{{{ $value | printf "%.0f" }}}} times within {t.vm_event_window}.'
            ),
        ),
        Alert(
            name="HyperStarvedByHost",
            expr=(
                f"count_over_time(({select(microvm.STARVED_BY, by='host')} == 1)[{t.starved_window}:{_STEP}]) "
                f"/ {seconds(t.starved_window) / seconds(_STEP):g} > {t.starved_ratio:g}"
            ),
            for_="0s",
            severity="ticket",
            cause="cpu",
            summary=f"{WHO} is starved by its host",
            description=(
                f"{WHO_EXACTLY} could not run for want of the host's CPU in {{{{ $value | humanizePercentage }}}} of "
                f"the last {t.starved_window}. It is the host, neither the container nor its limit."
            ),
        ),
        Alert(
            name="HyperOverheadHigh",
            expr=f"{microvm.OVERHEAD_MEMORY_BYTES.name} > {t.overhead_memory_bytes}",
            for_=t.overhead_memory_for,
            severity="info",
            cause="overhead",
            summary=f"The micro-VM of {WHOM} costs much memory",
            description=(
                f"The micro-VM of {WHOM_EXACTLY} takes "
                "{{ $value | humanize1024 }}B of memory beside what the container uses, above "
                f"{t.overhead_memory_bytes / (1 << 20):g} MiB for {t.overhead_memory_for}."
            ),
        ),
        Alert(
            name="HyperClockSkew",
            expr=f"abs({microvm.GUEST_CLOCK_SKEW_SECONDS.name}) > {t.clock_skew_s:g}",
            for_=t.clock_skew_for,
            severity="ticket",
            cause="clock",
            summary=f"The clock of {WHOM} is wrong",
            description=(
                f"The clock of {WHOM_EXACTLY} has been off by "
                f"{{{{ $value | humanizeDuration }}}}, above {t.clock_skew_s:g} s for {t.clock_skew_for}: "
                "certificates, tokens and timestamps go wrong."
            ),
        ),
    )
