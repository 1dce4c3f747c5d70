"""The Container dashboard, for someone woken at night: is it us, its limit, or the host?"""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, microvm
from dashboards import container_signals as signals
from dashboards import links, marks, states, verdict
from dashboards.layout import dashboard
from dashboards.panels import (
    GREEN,
    NOT_DEEP,
    ORANGE,
    RED,
    SHORT_DIGESTS,
    Column,
    Panel,
    Query,
    stat,
    state_timeline,
    steps,
    table,
    time_series,
)
from dashboards.promql import Chosen
from dashboards.variables import chain

UID: Final = links.CONTAINER

_NAMES: Final = ("instance", "namespace", "pod", "container")
_IT: Final = Chosen(_NAMES)
_NONE: Final = "No such container is seen"
_SILENT: Final = "Its guest does not answer"
_NO_QUOTA: Final = "No CPU quota"

_HOST: Final = Chosen(("instance",))


def container_dashboard() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        "One container: what state it is in, and whether it is itself, its limit or the host that holds it up.",
        chain(_NAMES, single=True),
        [
            ("Is it us, its limit, or the host?", _verdict()),
            ("What happened to it?", _life()),
            ("How does it serve? (golden signals)", signals.golden()),
            ("Does its application answer?", signals.application()),
            ("Do container, guest and host tell the same? (three views)", signals.views()),
            ("What does the micro-VM cost beside the container?", signals.overhead()),
            ("What does it wait for?", signals.pressure()),
            ("What fills it up?", signals.capacity()),
            ("How did it start?", _start()),
            ("What is it, and is it seen?", _identity()),
        ],
        [
            marks.alerts(_IT),
            marks.starts(_IT),
            marks.states(_IT),
            marks.quarantines(_IT),
            marks.oom_kills(_IT),
            marks.silent_sources(_IT),
            marks.digests(_IT),
            marks.actions_on(_IT),
        ],
    )


def _verdict() -> list[Panel]:
    errors = " + ".join(
        f"sum({_IT.rate(metric, '5m')})"
        for metric in (microvm.TCP_RETRANSMITS_TOTAL, microvm.TCP_LISTEN_OVERFLOWS_TOTAL)
    )
    waited = f"sum({_IT.rate(microvm.HOST_VCPU_WAIT_SECONDS_TOTAL, '5m')})"
    ran = f"sum({_IT.rate(microvm.HOST_CPU_SECONDS_TOTAL, '5m', part='vcpu')})"
    to_host = [links.from_choice(links.HOST, _NAMES[:1])]
    full = steps((0.8, ORANGE), (0.95, RED))
    return [
        stat(
            "Who keeps it from the CPU?", "The verdict of pressure in its guest, throttling, and the time that its "
            "vCPUs waited for the host. Itself: it has more to do than CPUs. Its limit: raise its quota. The host: it "
            "is full.",
            states.starved(_IT), unit="none", codes=states.STARVED, empty=_SILENT, filled=True, width=6,
        ),
        stat(
            "State", "The state that it is in. Red: nothing of it runs; `hyper logs NAME` has its last words.",
            states.state(_IT), unit="none", codes=states.STATES, empty=_NONE, filled=True, width=6,
        ),
        stat(
            "Us: health check", "What its own health check says. Unhealthy while nothing beside it is red: it is the "
            "application.",
            _IT.select(container.HEALTH_STATE), unit="none", codes=states.HEALTH, empty=_NONE, filled=True, width=6,
        ),
        stat(
            "Us: network trouble", "TCP segments sent again and connections refused, a second, over 5 minutes: what "
            "clients notice first.",
            errors, unit="short", empty=_SILENT, thresholds=steps((1, ORANGE), (10, RED)), filled=True, width=6,
        ),
        stat(
            "Limit: memory", "Working set of the memory limit. At 100 % its processes are killed: raise the limit, or "
            "find what grows.",
            verdict.of_limit(_IT), unit="percentunit", empty=_SILENT,
            thresholds=steps((0.8, ORANGE), (0.9, RED)), filled=True, width=3,
        ),
        stat(
            "Limit: CPU", "Share of the periods of the last 5 minutes in which its CPU quota stopped it.",
            signals.throttled(_IT, "5m"), unit="percentunit", empty=_NO_QUOTA,
            thresholds=steps((0.1, ORANGE), (0.5, RED)), filled=True, width=3,
        ),
        stat(
            "Limit: OOM kills, 1 h", "Its processes that were killed for want of memory in the last hour.",
            f"sum({_IT.increase(container.OOM_EVENTS_TOTAL, '1h')})", empty=_NONE, thresholds=steps((0.5, RED)),
            filled=True, width=3,
        ),
        stat(
            "Host: its CPU waits", "Share of the time that its vCPUs wanted to run in which the host ran something "
            "else, over 5 minutes.",
            f"{waited} / ({waited} + {ran} > 0)", unit="percentunit", empty=_NONE,
            thresholds=steps((0.1, ORANGE), (0.3, RED)), filled=True, links=to_host, width=3,
        ),
        stat(
            "Host: CPU taken", "CPU time of all micro-VMs of this host, of its CPUs, over 5 minutes. Near 100 % they "
            "are in each other's way.",
            verdict.cpu_taken(_HOST), unit="percentunit", empty=_NONE, thresholds=full, filled=True, links=to_host,
            width=3,
        ),
        stat(
            "Host: memory taken", "Memory that all micro-VMs of this host have for themselves, of its memory.",
            verdict.memory_taken(_HOST), unit="percentunit", empty=_NONE, thresholds=full, filled=True, links=to_host,
            width=3,
        ),
        stat(
            "Host: its QEMU", "What QEMU is doing with its guest. Halted, disk full: the host's disk has no room; it "
            "goes on by itself once there is some, and a restart would lose what it has not written.",
            states.vmm(_IT), unit="none", codes=states.VMM, empty="QEMU does not answer, or does not run", filled=True,
            links=to_host, width=3,
        ),
        stat(
            "Host: sources up", "Of host, vmm and guest, how many gave a good sample in the last round. Fewer than 3: "
            "the guest or QEMU hangs, and what is shown is old.",
            f"sum({_IT.select(microvm.SOURCE_UP)})", empty=_NONE, thresholds=steps((3, GREEN), base=RED), filled=True,
            width=3,
        ),
    ]  # fmt: skip


def _life() -> list[Panel]:
    return [
        state_timeline(
            "State over time", "The state that it was in. A gap: it was not seen.",
            [Query(states.state(_IT), "{{container}}")], codes=states.STATES, empty=_NONE, width=12,
        ),
        state_timeline(
            "Sources over time", "Which of its sources answered.",
            [Query(_IT.select(microvm.SOURCE_UP), "{{source}}")], codes=states.UP, empty=_NONE, width=12,
        ),
        state_timeline(
            "Who kept it from the CPU?", "The verdict of the first row over time.",
            [Query(states.starved(_IT), "{{container}}")], codes=states.STARVED, empty=_SILENT, width=12,
        ),
        time_series(
            "Events of QEMU", "What QEMU told of: a guest that panicked, a disk that failed, a shutdown with its "
            "reason.",
            [Query(f"sum by (event) ({_IT.events(microvm.EVENTS_TOTAL)}) > 0", "{{event}}")],
            unit="short", empty="No event in this time", bars=True, height=5,
        ),
        stat(
            "Running since", "When it was started last.", f"max({_IT.select(container.START_TIME_SECONDS)}) * 1000",
            unit="dateTimeFromNow", empty="Never started",
        ),
        stat(
            "Restarts", "Starts after the first, by whomever, since it was created.",
            f"sum({_IT.select(container.RESTARTS_TOTAL)})", empty=_NONE, thresholds=steps((1, ORANGE), (10, RED)),
        ),
        stat(
            "Last exit code", "How its last run ended. 137: killed, often for want of memory; 143: asked to end.",
            f"max({_IT.select(container.EXIT_CODE)})", unit="none", empty="It has not ended yet",
            thresholds=steps((1, RED)),
        ),
        stat(
            "OOM kills", "Processes killed for want of memory, over all its runs.",
            f"sum({_IT.select(container.OOM_EVENTS_TOTAL)})", empty=_SILENT, thresholds=steps((1, RED)),
        ),
        stat(
            "Should it run?", "Whether it was stopped on purpose, or is kept from working: `hyper start NAME` lifts a "
            "quarantine.",
            f"max({_IT.quarantined} ^ 0) * 2 or max({_IT.select(container.DESIRED_RUNNING)})", unit="none",
            codes=states.WANTED, empty=_NONE,
        ),
        stat(
            "Threads", "Threads in the container.", f"sum({_IT.select(container.THREADS)})", empty=_SILENT,
        ),
    ]  # fmt: skip


_OWN_PHASES: Final = "image|vm|agent|network|mounts|exec"  # what a start takes, one after another


def _start() -> list[Panel]:
    return [
        time_series(
            "Time of its starts", "How long its last start took, all phases together: each start is a step.",
            [Query(f"sum({_IT.select(microvm.START_SECONDS)})", "last start")], unit="s", empty="It was never started",
        ),
        table(
            "Path of the last start", "From the pool, from a template, or cold; and why not by a faster one.",
            [Column("Path", label="path"), Column("Reason", label="reason"),
             Column("Containers", expr=f"count by (path, reason) ({_IT.select(microvm.START_PATH)})")],
            empty="It was never started",
        ),
        table(
            "Phases of the last start", "How long each phase took: the longest is what to look at.",
            [Column("Phase", label="phase"),
             Column("Time", unit="s", expr=f"sort_desc(sum by (phase) ({_IT.select(microvm.START_PHASE_SECONDS)}))")],
            empty=NOT_DEEP,
        ),
        time_series(
            "Phases of its starts", "The same over time, without what is not hyperd's own: which phase grew.",
            [Query(f"sum by (phase) ({_IT.select(microvm.START_PHASE_SECONDS, phase=_OWN_PHASES)})", "{{phase}}")],
            unit="s", empty=NOT_DEEP, stacked=True,
        ),
    ]  # fmt: skip


def _identity() -> list[Panel]:
    info = _IT.select(container.INFO)
    return [
        table(
            "What it is", "Image and digest, the node, what runs its guest's instructions, its guest's kernel, and how "
            "often it was started (epoch).",
            [*(Column(heading, label=label) for label, heading in (
                ("container", "Container"), ("image", "Image"), ("digest", "Digest"), ("node", "Node"),
                ("accel", "Accel"), ("kernel", "Kernel"), ("epoch", "Epoch"), ("id", "Id"))),
             Column("Seen", expr=info)],
            empty=_NONE, links=[links.from_row(links.IMAGES, {"image": "Image", "digest": "Digest"})], width=24,
            height=4,
        ),
        time_series(
            "Age of its samples", "How old its numbers are, by source.",
            [Query(f"max by (source) ({_IT.select(microvm.SAMPLE_AGE_SECONDS)})", "{{source}}")],
            unit="s", empty=_NONE, thresholds=steps((30, RED)),
        ),
        state_timeline(
            "Image over time", "Which image digest it ran: a change of colour is a change of image.",
            [Query(f"count by (digest) ({info})", "{{digest}}")],
            codes=states.SEEN, empty=_NONE, width=12, height=8, transformations=[SHORT_DIGESTS],
        ),
    ]  # fmt: skip
