"""The Fleet dashboard: all containers of all hosts, what is wrong with them, and what it costs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from collector.catalogue import container, hyper, machine, microvm, remediation
from dashboards import links, marks, states, verdict
from dashboards.layout import dashboard
from dashboards.panels import BLUE, ORANGE, RED, Code, Column, Panel, Query, stat, steps, table, time_series
from dashboards.promql import OF_ITS_OWN, PER_CONTAINER, Chosen, per_container
from dashboards.variables import chain

if TYPE_CHECKING:
    from collector.catalogue import Metric

UID: Final = links.FLEET

_NAMES: Final = ("instance", "namespace", "pod", "container")
_ALL: Final = Chosen(_NAMES)
_WHO: Final = "{{namespace}}/{{container}}"
_NO_CONTAINERS: Final = "No container is seen"
_NO_EXPORTER: Final = "No exporter is scraped"


def fleet() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        "Every container of every host: what is down, what is short of something, what was done about it.",
        chain(_NAMES),
        [
            ("Is it us, its limit, or the host?", _verdict()),
            ("How many are there, and what happened lately?", _now()),
            ("Which containers, which tenants, which hosts?", _containers()),
            ("Who uses the most?", _consumers()),
            ("What is short of something?", _saturation()),
            ("What died or came back?", _trouble()),
            ("How fast do containers start?", _starts()),
            ("What was done about it?", _remediation()),
            ("Can the numbers be believed, and what do they cost?", _collector()),
        ],
        [marks.pages(_ALL), marks.digests(_ALL), marks.actions()],
    )


def _verdict() -> list[Panel]:
    seen = _ALL.select(hyper.CONTAINERS)
    silent = stat(
        "Host: gone silent", "Hosts whose exporter answered within the last hour and does not any more: the host is "
        "down, or nobody sees what happens there.",
        f"count(max_over_time({seen}[1h]) unless {seen}) or count({seen}) * 0", empty=_NO_EXPORTER,
        thresholds=steps((1, RED)), filled=True,
    )  # fmt: skip
    return verdict.first_row(_ALL, silent, host_links=[links.from_series(links.HOST, ("instance",))])


def _now() -> list[Panel]:
    silent = f"{_ALL.select(microvm.SOURCE_UP)} == 0 and on (id) {_ALL.running}"
    return [
        stat(
            "Running", "Containers whose process runs.", _ALL.count(_ALL.running, container.STATE),
            empty=_NO_CONTAINERS,
        ),
        stat(
            "Hosts that answer", "Hosts whose exporter answers.", f"count({_ALL.select(hyper.CONTAINERS)})",
            empty=_NO_EXPORTER,
        ),
        stat(
            "Sources down", "Sources (host, vmm, guest) of running containers without a good sample in the last round: "
            "what is shown of these containers is old.",
            _ALL.count(silent, microvm.SOURCE_UP), empty=_NO_CONTAINERS, thresholds=steps((1, RED)),
        ),
        stat(
            "In quarantine", "Containers that are kept from working until a person lifts that.",
            _ALL.count(_ALL.quarantined, container.STATE), empty=_NO_CONTAINERS, thresholds=steps((1, RED)),
        ),
        stat(
            "Restarts, 1 h", "Starts after the first in the last hour, by whomever.",
            f"sum({_ALL.increase(container.RESTARTS_TOTAL, '1h')})", empty=_NO_CONTAINERS,
            thresholds=steps((1, ORANGE), (10, RED)),
        ),
        stat(
            "Remediation, 24 h", "Actions of the remediation controller on containers in the last day.",
            f"sum({_ALL.increase(remediation.ACTIONS_TOTAL, '24h')})", empty="No controller is scraped",
            thresholds=steps((1, ORANGE)), links=[links.from_choice(links.REMEDIATION, _NAMES)],
        ),
    ]  # fmt: skip


def _containers() -> list[Panel]:
    short = f"({states.starved(_ALL)} > 0 or on (id) {verdict.near_limit(_ALL)})"
    exit_code = f"{_ALL.select(container.EXIT_CODE)} * on (id) group_left (state) {_ALL.down}"
    who = {"instance": "Host", "namespace": "Tenant", "pod": "Pod", "container": "Container"}
    return [
        table(
            "Down containers",
            "Containers that should be running and are not, quarantine included, with the exit code of their last run. "
            "`hyper logs NAME` has their last words.",
            [
                *(Column(heading, label=label) for label, heading in who.items()),
                Column("State", label="state"),
                # A container that never ran has no exit code: it gets -1, which no process can exit with.
                Column("Exit code", expr=f"{exit_code} or on (id) {_ALL.down} - 2", unit="none",
                       codes=(Code(-1, "never ran", ORANGE),)),
                Column("Image", label="image"),
                Column("Id", label="id"),
            ],
            empty="Nothing is down", links=[links.from_row(links.CONTAINER, who)],
        ),
        table(
            "Containers short of something",
            f"Containers that are kept from the CPU now, and by whom, and those above "
            f"{verdict.NEAR_LIMIT * 100:g} % of their memory limit; memory is that of the limit.",
            [
                *(Column(heading, label=label) for label, heading in who.items()),
                Column("CPU kept by", unit="none", codes=states.STARVED,
                       thresholds=((1, BLUE), (2, ORANGE), (3, RED)),
                       expr=f"max by ({PER_CONTAINER}) ({states.starved(_ALL)} and on (id) {short})"),
                Column("Memory", unit="percentunit", thresholds=((0.8, ORANGE), (0.9, RED)),
                       expr=f"max by ({PER_CONTAINER}) ({verdict.of_limit(_ALL)} and on (id) {short})"),
            ],
            empty="None is short of CPU or memory", links=[links.from_row(links.CONTAINER, who)],
        ),
        table(
            "Hosts",
            "What each host has and what its containers take. Memory promised is the sum of the limits of its running "
            "containers; above 100 % they cannot all have what they were promised. Short of CPU: containers that the "
            "host keeps from it. Waiting for disk: containers that wait for one, several if it is the host's.",
            [
                Column("Host", label="instance"),
                Column("Running", expr=f"count by (instance) {_ALL.running}"),
                Column("Short of CPU", thresholds=((1, ORANGE), (3, RED)),
                       expr=verdict.by_host(_ALL, verdict.starved(_ALL, "host"))),
                Column("CPU", unit="percentunit", thresholds=((0.8, ORANGE), (0.95, RED)),
                       expr=verdict.cpu_taken(_ALL)),
                Column("Memory taken", unit="percentunit", thresholds=((0.8, ORANGE), (0.95, RED)),
                       expr=verdict.memory_taken(_ALL)),
                Column(
                    "Memory promised", unit="percentunit", thresholds=((1, ORANGE), (1.5, RED)),
                    expr=f"sum by (instance) ({_ALL.select(container.SPEC_MEMORY_LIMIT_BYTES)} and on (id) "
                    f"{_ALL.running}) / sum by (instance) ({_ALL.select(machine.MEMORY_BYTES)})",
                ),
                Column("Waiting for disk", thresholds=((2, ORANGE), (5, RED)),
                       expr=verdict.by_host(_ALL, verdict.waits_for_disk(_ALL))),
                Column("Disk full", unit="none", codes=verdict.FULL,
                       thresholds=((1, RED),), expr=verdict.disk_full(_ALL)),
            ],
            empty=_NO_EXPORTER, links=[links.from_row(links.HOST, {"instance": "Host"})], width=24, height=7,
        ),
        time_series(
            "Containers by state", "How many containers are in each state.",
            [Query(f"count by (state) ({_ALL.select(container.STATE)} == 1)", "{{state}}")],
            unit="short", empty=_NO_CONTAINERS, stacked=True,
        ),
        time_series(
            "Containers by tenant", "Running containers of each tenant.",
            [Query(f"count by (namespace) {_ALL.running}", "{{namespace}}")],
            unit="short", empty=_NO_CONTAINERS, stacked=True,
        ),
    ]  # fmt: skip


def _top(expr: str) -> list[Query]:
    return [Query(f"topk(10, {per_container(expr)})", _WHO)]


def _consumers() -> list[Panel]:
    there = links.to_container()
    return [
        time_series(
            "CPU, top 10", "CPUs in use by the containers' own processes, as the guest counts them.",
            _top(_ALL.rate(container.CPU_USAGE_SECONDS_TOTAL)), unit="suffix: CPUs", empty=_NO_CONTAINERS, links=there,
        ),
        time_series(
            "CPU of the host, top 10", "CPUs of the host that the micro-VMs cost, with QEMU's own threads.",
            _top(_ALL.rate(microvm.HOST_CPU_SECONDS_TOTAL)), unit="suffix: CPUs", empty=_NO_CONTAINERS, links=there,
        ),
        time_series(
            "Memory, top 10", "Working set: memory in use without the page cache that can be dropped first.",
            _top(_ALL.select(container.MEMORY_WORKING_SET_BYTES)), unit="bytes", empty=_NO_CONTAINERS, links=there,
        ),
        time_series(
            "Memory of the host, top 10", "Memory that the micro-VMs take of the host, without what they share.",
            _top(_ALL.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN)), unit="bytes", empty=_NO_CONTAINERS,
            links=there,
        ),
        time_series(
            "Overhead of memory, top 10", "Memory that the micro-VMs take for themselves, beyond what their "
            "containers use.",
            _top(_ALL.select(microvm.OVERHEAD_MEMORY_BYTES)), unit="bytes", empty=_NO_CONTAINERS, links=there, width=8,
        ),
        time_series(
            "Network, top 10", "Bytes a second, received and sent.",
            _top(f"{_ALL.rate(container.NETWORK_RECEIVE_BYTES_TOTAL)} + "
                 f"{_ALL.rate(container.NETWORK_TRANSMIT_BYTES_TOTAL)}"),
            unit="Bps", empty=_NO_CONTAINERS, links=there, width=8,
        ),
        time_series(
            "Disk, top 10", "Bytes a second that the containers read from their disks and write to them.",
            _top(f"{_ALL.rate(container.FS_READS_BYTES_TOTAL)} + {_ALL.rate(container.FS_WRITES_BYTES_TOTAL)}"),
            unit="Bps", empty=_NO_CONTAINERS, links=there, width=8,
        ),
    ]  # fmt: skip


def _saturation() -> list[Panel]:
    there = links.to_container()
    memory = verdict.of_limit(_ALL)
    starved = _ALL.select(microvm.STARVED_BY, by="limit|host|self")
    return [
        time_series(
            "Kept from the CPU, by whom", "Containers that do not get the CPU they want: as their limit, the host, or "
            "they themselves keep it from them. Many by the host: it is full.",
            [Query(f"count by (by) ({starved} == 1)", "{{by}}")], unit="short", empty="No container is starved",
            stacked=True,
        ),
        time_series(
            "Memory of the limit, top 10", "Working set as a share of the memory limit; at 100 % processes are killed.",
            _top(memory), unit="percentunit", empty=_NO_CONTAINERS, maximum=1, thresholds=steps((0.9, RED)),
            links=there,
        ),
        time_series(
            "Waiting for a CPU of the host, top 10", "Seconds a second that the vCPUs wanted to run and the host ran "
            "something else.",
            _top(_ALL.rate(microvm.HOST_VCPU_WAIT_SECONDS_TOTAL)), unit="percentunit", empty=_NO_CONTAINERS,
            links=there,
        ),
        time_series(
            "Waiting for a CPU, top 10", "Share of time in which some task of the container waited for a CPU.",
            _top(_ALL.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)), unit="percentunit", empty=_NO_CONTAINERS,
            maximum=1, links=there,
        ),
        time_series(
            "Waiting for memory, top 10", "Share of time in which some task of the container waited for memory to be "
            "reclaimed.",
            _top(_ALL.rate(container.PRESSURE_MEMORY_WAITING_SECONDS_TOTAL)), unit="percentunit",
            empty=_NO_CONTAINERS, maximum=1, links=there,
        ),
        time_series(
            "Waiting for a disk, top 10", "Share of time in which some task of the container waited for a disk. Many "
            "at once on one host: it is the host's disk.",
            _top(_ALL.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL)), unit="percentunit", empty=_NO_CONTAINERS,
            maximum=1, links=there,
        ),
    ]  # fmt: skip


def _trouble() -> list[Panel]:
    def events(metric: Metric) -> list[Query]:
        return [Query(f"sum by ({PER_CONTAINER}) ({_ALL.increase(metric)}) > 0", _WHO)]

    return [
        time_series(
            "OOM kills", "Processes killed for want of memory, by container.",
            events(container.OOM_EVENTS_TOTAL), unit="short", empty="No OOM kill in this time", bars=True,
            links=links.to_container(),
        ),
        time_series(
            "Restarts", "Starts after the first, by container: of people, of the runtime, of remediation.",
            events(container.RESTARTS_TOTAL), unit="short", empty="No restart in this time", bars=True,
            links=links.to_container(),
        ),
    ]  # fmt: skip


def _starts() -> list[Panel]:
    seconds = f"sum by (instance) ({_ALL.rate(hyper.OPERATION_SECONDS_TOTAL, kind='start')})"
    starts = f"sum by (instance) ({_ALL.rate(hyper.OPERATIONS_TOTAL, kind='start')})"
    return [
        time_series(
            "Starts by path", "How VMs were started: from the pool, as clones of a template, or cold.",
            [Query(f"sum by (path) ({_ALL.events(hyper.STARTS_TOTAL)}) > 0", "{{path}}")],
            unit="short", empty="No start in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Slower than they could be", "Starts that took a slower path than they could have, by reason.",
            [Query(f"sum by (reason) ({_ALL.events(hyper.START_FALLBACKS_TOTAL)}) > 0", "{{reason}}")],
            unit="short", empty="No fallback in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Mean start time", "Time that hyperd took for a start, on average, by host.",
            [Query(f"{seconds} / ({starts} > 0)", "{{instance}}")],
            unit="s", empty="No start in this time", width=8, links=links.to_host(),
        ),
        time_series(
            "Time of the last start", "How long the last starts of the containers took: half of them, and 19 of 20, "
            "took less.",
            [Query(f"quantile(0.5, {_ALL.select(microvm.START_SECONDS)})", "half"),
             Query(f"quantile(0.95, {_ALL.select(microvm.START_SECONDS)})", "19 of 20")],
            unit="s", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Paths of running containers", "How the containers that run now were started, and why not faster.",
            [Query(f"count by (path, reason) ({_ALL.select(microvm.START_PATH)})", "{{path}} {{reason}}")],
            unit="short", empty=_NO_CONTAINERS, stacked=True,
        ),
    ]  # fmt: skip


def _remediation() -> list[Panel]:
    there = [links.from_choice(links.REMEDIATION, _NAMES)]
    empty = "No controller is scraped, or it had nothing to do"
    return [
        time_series(
            "Actions", "What was done to containers, and how it ended. `hyper remediation ls` says why.",
            [Query(f"sum by (action, outcome) ({_ALL.increase(remediation.ACTIONS_TOTAL)}) > 0",
                   "{{action}}: {{outcome}}")],
            unit="short", empty=empty, bars=True, stacked=True, width=10, links=there,
        ),
        time_series(
            "Decisions", "What was decided about the alerts that came in, with the reason for doing nothing.",
            [Query(f"sum by (decision, reason) ({_ALL.increase(remediation.DECISIONS_TOTAL)}) > 0",
                   "{{decision}}: {{reason}}")],
            unit="short", empty=empty, bars=True, stacked=True, width=10, links=there,
        ),
        stat(
            "Last action", "When a container was last acted on.",
            f"max({_ALL.select(remediation.LAST_ACTION_TIMESTAMP_SECONDS)}) * 1000", unit="dateTimeFromNow",
            empty="Never", links=there,
        ),
    ]  # fmt: skip


def _collector() -> list[Panel]:
    silent = f"count by (source) ({_ALL.select(microvm.SOURCE_UP)} == 0)"
    per = f"{_ALL.rate(hyper.EXPORTER_CPU_SECONDS_TOTAL)} / ({_ALL.select(hyper.CONTAINERS)} > 0)"
    there = links.to_host()
    return [
        time_series(
            "Sources down by kind", "Sources without a good sample: host (cgroups, /proc), vmm (QMP), guest (agent).",
            [Query(silent, "{{source}}")], unit="short", empty="All sources are up", width=8,
        ),
        time_series(
            "Age of the oldest sample", "How old the numbers are; it grows while a source is down.",
            [Query(f"max by (source) ({_ALL.select(microvm.SAMPLE_AGE_SECONDS)})", "{{source}}")],
            unit="s", empty=_NO_CONTAINERS, width=8,
        ),
        time_series(
            "Time to collect", "Wall time of a round over all containers, and of answering a scrape.",
            [Query(_ALL.select(hyper.COLLECTOR_ROUND_SECONDS), "{{instance}} round"),
             Query(_ALL.select(hyper.SCRAPE_DURATION_SECONDS), "{{instance}} scrape")],
            unit="s", empty=_NO_EXPORTER, width=8, links=there,
        ),
        time_series(
            "CPU of the exporter for a container", "CPU time a second that the exporter spends, by container.",
            [Query(per, "{{instance}}")], unit="s", empty=_NO_EXPORTER, width=8, links=there,
        ),
        time_series(
            "Memory of the exporter", "Resident memory of the exporter.",
            [Query(_ALL.select(hyper.EXPORTER_RESIDENT_MEMORY_BYTES), "{{instance}}")],
            unit="bytes", empty=_NO_EXPORTER, width=8, links=there,
        ),
        time_series(
            "Series", "Series that the exporter exports for containers and host.",
            [Query(_ALL.select(hyper.EXPORTER_SERIES), "{{instance}}")],
            unit="short", empty=_NO_EXPORTER, width=8, links=there,
        ),
    ]  # fmt: skip
