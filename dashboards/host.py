"""The Host dashboard: what one host has, what it has promised, and what running and watching containers costs it."""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, hyper, machine, microvm
from dashboards import links, marks, states, verdict
from dashboards.layout import dashboard
from dashboards.panels import BLUE, GREEN, ORANGE, RED, Column, Panel, Query, stat, steps, table, time_series
from dashboards.promql import OF_ITS_OWN, PER_CONTAINER, Chosen, per_container
from dashboards.variables import chain

UID: Final = links.HOST

_NAMES: Final = ("instance",)
_HERE: Final = Chosen(_NAMES)
_WHO: Final = "{{namespace}}/{{container}}"
_NO_CONTAINERS: Final = "No container on this host"
_NO_EXPORTER: Final = "The exporter of this host is not scraped"
_NO_RUNTIME: Final = "hyperd has not told anything yet"

_CORES: Final = f"sum({_HERE.select(machine.CPU_CORES)})"
_MEMORY: Final = f"sum({_HERE.select(machine.MEMORY_BYTES)})"
_MEMORY_TAKEN: Final = f"sum({_HERE.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN)})"
_COMMITTED: Final = f"sum({_HERE.select(container.SPEC_MEMORY_LIMIT_BYTES)} and on (id) {_HERE.running})"


def host() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        "One host: is it the containers, their limits, or the host itself? Is it full, has it promised more than it "
        "has, does it start containers as fast as it could?",
        chain(_NAMES, single=True),
        [
            ("Is it us, its limit, or the host?", _verdict()),
            ("Is it seen, and ready for more?", _now()),
            ("Which containers does it run?", _containers()),
            ("What does it have, and who takes it?", _capacity()),
            ("Has it promised more than it has?", _overcommit()),
            ("Does it start containers as fast as it could?", _starts()),
            ("What does hyperd do?", _runtime()),
            ("What does watching cost?", _exporter()),
        ],
        [marks.pages(_HERE), marks.starts(_HERE), marks.oom_kills(_HERE)],
    )


def _verdict() -> list[Panel]:
    promised = stat(
        "Host: memory promised", "Limits of all running containers, of the host's memory. Above 100 % they cannot all "
        "have what they were promised.",
        f"{_COMMITTED} / {_MEMORY}", unit="percentunit", empty=_NO_CONTAINERS,
        thresholds=steps((1, ORANGE), (1.5, RED)), filled=True,
    )  # fmt: skip
    return verdict.first_row(_HERE, promised, container_links=[links.from_choice(links.FLEET, _NAMES)])


def _now() -> list[Panel]:
    silent = f"{_HERE.select(microvm.SOURCE_UP)} == 0 and on (id) {_HERE.running}"
    return [
        stat(
            "Exporter silent for", "Seconds since the collector last saw the containers' records. Growing: it hangs, "
            "and all else on this page is old.",
            f"time() - max({_HERE.select(container.LAST_SEEN)})", unit="s", empty=_NO_CONTAINERS,
            thresholds=steps((30, ORANGE), (60, RED)),
        ),
        stat(
            "hyperd silent for", "Seconds since hyperd last wrote its counters, which it does every second. Growing: "
            "it is down or hangs, and starts nothing.",
            f"time() - max({_HERE.select(hyper.RUNTIME_LAST_UPDATE_TIMESTAMP_SECONDS)})", unit="s", empty=_NO_RUNTIME,
            thresholds=steps((30, ORANGE), (60, RED)),
        ),
        stat(
            "Running", "Containers whose process runs.", _HERE.count(_HERE.running, container.STATE),
            empty=_NO_CONTAINERS,
        ),
        stat(
            "Sources down", "Sources (host, vmm, guest) of running containers without a good sample in the last round.",
            _HERE.count(silent, microvm.SOURCE_UP), empty=_NO_CONTAINERS, thresholds=steps((1, RED)),
        ),
        stat(
            "Templates ready", "VM templates that can be cloned. With none every start is a cold boot.",
            f"sum({_HERE.select(hyper.TEMPLATES_READY)})", empty=_NO_RUNTIME,
            thresholds=steps((1, GREEN), base=ORANGE),
        ),
        stat(
            "Waiting in the pool", "VMs of the pool that can be handed out now. 0 all the time: starts come faster "
            "than it fills, or it is off.",
            f"sum({_HERE.select(hyper.POOL_WAITING)})", empty=_NO_RUNTIME,
        ),
    ]  # fmt: skip


def _capacity() -> list[Panel]:
    there = links.to_container()
    return [
        time_series(
            "CPU by part of the micro-VMs", "CPUs that QEMU's threads take (vcpu: the guests; iothread: their disks; "
            "main, other: QEMU itself), and how many there are.",
            [Query(f"sum by (part) ({_HERE.rate(microvm.HOST_CPU_SECONDS_TOTAL)})", "{{part}}"),
             Query(_CORES, "CPUs of the host")],
            unit="suffix: CPUs", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Memory by part of the micro-VMs", "RAM of the guests, QEMU itself, page cache (in the deep tier), and "
            "what the host has. RAM of a template is there once for all its clones: shown is the most that one shares.",
            [Query(f"sum by (part) ({_HERE.select(microvm.HOST_MEMORY_BYTES, part='guest_ram|vmm|page_cache')})",
                   "{{part}}"),
             Query(f"max({_HERE.select(microvm.HOST_MEMORY_BYTES, part='template_shared')})", "template, shared"),
             Query(_MEMORY, "memory of the host")],
            unit="bytes", empty=_NO_CONTAINERS,
        ),
        time_series(
            "CPU of the host, top 10", "CPUs of the host that each micro-VM costs.",
            [Query(f"topk(10, {per_container(_HERE.rate(microvm.HOST_CPU_SECONDS_TOTAL))})", _WHO)],
            unit="suffix: CPUs", empty=_NO_CONTAINERS, links=there,
        ),
        time_series(
            "Overhead of the micro-VMs", "Memory that they take for themselves, beyond what their containers use, in "
            "all.",
            [Query(f"sum({_HERE.select(microvm.OVERHEAD_MEMORY_BYTES)})", "memory")], unit="bytes",
            empty=_NO_CONTAINERS,
        ),
        time_series(
            "CPU that is overhead", "Share of the CPU time of the micro-VMs that was not their containers' own work, "
            "mean over the containers.",
            [Query(f"avg({_HERE.select(microvm.OVERHEAD_CPU_RATIO)})", "mean")], unit="percentunit",
            empty=_NO_CONTAINERS, maximum=1,
        ),
        time_series(
            "Memory of the host, top 10", "Memory of the host that each micro-VM takes for itself alone.",
            [Query(f"topk(10, {per_container(_HERE.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN))})", _WHO)],
            unit="bytes", empty=_NO_CONTAINERS, links=there,
        ),
    ]  # fmt: skip


def _overcommit() -> list[Panel]:
    used = f"sum({_HERE.select(container.MEMORY_WORKING_SET_BYTES)})"
    waiting = _HERE.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL)
    return [
        time_series(
            "Memory promised, used and taken", "Limits of the running containers, what the containers use by their own "
            "word, what the host gives for it, and what there is.",
            [Query(_COMMITTED, "promised"), Query(used, "used by containers"), Query(_MEMORY_TAKEN,
            "taken of the host"),
             Query(_MEMORY, "memory of the host")],
            unit="bytes", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Waiting for a CPU of the host, top 10", "Seconds a second that the vCPUs wanted to run and the host ran "
            "something else. Many at once: the host has promised more CPUs than it has.",
            [Query(f"topk(10, {per_container(_HERE.rate(microvm.HOST_VCPU_WAIT_SECONDS_TOTAL))})", _WHO)],
            unit="percentunit", empty=_NO_CONTAINERS, links=links.to_container(),
        ),
        time_series(
            "Kept from the CPU, by whom", "Containers that do not get the CPU they want, by what keeps it from them.",
            [Query(f"count by (by) ({_HERE.select(microvm.STARVED_BY, by='limit|host|self')} == 1)", "{{by}}")],
            unit="short", empty="No container is starved", stacked=True,
        ),
        time_series(
            "Waiting for a CPU in the guests, top 10", "Share of time in which some task of the container waited for a "
            "CPU of its guest. Many at once: the host is short of CPUs, or their quotas are.",
            [Query(f"topk(10, {per_container(waiting)})", _WHO)],
            unit="percentunit", empty=_NO_CONTAINERS, maximum=1, links=links.to_container(),
        ),
    ]  # fmt: skip


def _containers() -> list[Panel]:
    who = {"instance": "Host", "namespace": "Tenant", "pod": "Pod", "container": "Container"}
    share = (f"{per_container(_HERE.select(container.MEMORY_WORKING_SET_BYTES))} / "
             f"{per_container(_HERE.select(container.SPEC_MEMORY_LIMIT_BYTES))}")  # fmt: skip
    return [
        table(
            "Running containers", "What each running container uses, and what it costs the host.",
            [
                *(Column(heading, label=label) for label, heading in who.items()),
                Column("CPU kept by", unit="none", codes=states.STARVED,
                       thresholds=((1, BLUE), (2, ORANGE), (3, RED)),
                       expr=f"max by ({PER_CONTAINER}) ({states.starved(_HERE)})"),
                Column("CPU", unit="suffix: CPUs", expr=per_container(_HERE.rate(container.CPU_USAGE_SECONDS_TOTAL))),
                Column("CPU of the host", unit="suffix: CPUs",
                       expr=per_container(_HERE.rate(microvm.HOST_CPU_SECONDS_TOTAL))),
                Column("Memory", unit="bytes", expr=per_container(_HERE.select(container.MEMORY_WORKING_SET_BYTES))),
                Column("Of the limit", unit="percentunit", thresholds=((0.8, ORANGE), (0.9, RED)), expr=share),
                Column("Memory of the host", unit="bytes",
                       expr=per_container(_HERE.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN))),
            ],
            empty=_NO_CONTAINERS, links=[links.from_row(links.CONTAINER, who)], width=24,
        ),
    ]  # fmt: skip


def _starts() -> list[Panel]:
    seconds = f"sum by (kind) ({_HERE.rate(hyper.OPERATION_SECONDS_TOTAL, kind='start|create|redeploy')})"
    started = f"sum({_HERE.events(hyper.STARTS_TOTAL, '1h')})"
    starts = f"sum by (kind) ({_HERE.rate(hyper.OPERATIONS_TOTAL, kind='start|create|redeploy')})"
    return [
        time_series(
            "Starts by path", "How VMs were started: from the pool, as clones of a template, or cold.",
            [Query(f"sum by (path) ({_HERE.events(hyper.STARTS_TOTAL)}) > 0", "{{path}}")],
            unit="short", empty="No start in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Slower than they could be", "Starts that the pool or the template could not serve, by reason.",
            [Query(f"sum by (reason) ({_HERE.events(hyper.START_FALLBACKS_TOTAL)}) > 0", "{{reason}}")],
            unit="short", empty="No fallback in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Mean time of creating and starting", "Time that hyperd took for an operation, on average.",
            [Query(f"{seconds} / ({starts} > 0)", "{{kind}}")], unit="s", empty="No start in this time", width=8,
        ),
        stat(
            "From the pool", "Share of the starts of the last hour that a waiting VM of the pool served.",
            f"(sum({_HERE.events(hyper.STARTS_TOTAL, '1h', path='pool')}) or {started} * 0) / ({started} > 0)",
            unit="percentunit", empty="No start in the last hour", width=8,
        ),
        stat(
            "hyperd up since", "When hyperd was started last. Containers outlive it.",
            f"max({_HERE.select(hyper.RUNTIME_START_TIME_SECONDS)}) * 1000", unit="dateTimeFromNow", empty=_NO_RUNTIME,
            width=8,
        ),
        table(
            "hyperd", "Version of hyperd, and what runs the guests' instructions (accel): KVM, or TCG which is slower.",
            [Column("Host", label="instance"), Column("Version", label="version"), Column("Accel", label="accel"),
             Column("Up", expr=_HERE.select(hyper.RUNTIME_INFO))],
            empty=_NO_RUNTIME, width=8, height=4,
        ),
    ]  # fmt: skip


def _runtime() -> list[Panel]:
    return [
        time_series(
            "Operations", "What hyperd did, by kind.",
            [Query(f"sum by (kind) ({_HERE.events(hyper.OPERATIONS_TOTAL)}) > 0", "{{kind}}")],
            unit="short", empty="No operation in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Failed operations", "What hyperd could not do, by kind. Its log says why.",
            [Query(f"sum by (kind) ({_HERE.events(hyper.OPERATIONS_TOTAL, outcome='failed')}) > 0", "{{kind}}")],
            unit="short", empty="No operation failed", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Time spent in operations",
            "Seconds a second that hyperd spent in operations of a kind; several may run at "
            "once.",
            [Query(f"sum by (kind) ({_HERE.rate(hyper.OPERATION_SECONDS_TOTAL)}) > 0", "{{kind}}")],
            unit="short", empty="No operation in this time", width=8,
        ),
    ]  # fmt: skip


def _exporter() -> list[Panel]:
    cpu = _HERE.rate(hyper.EXPORTER_CPU_SECONDS_TOTAL)
    containers = f"({_HERE.select(hyper.CONTAINERS)} > 0)"
    return [
        time_series(
            "CPU of the exporter", "CPUs that the exporter takes, and the same for each container.",
            [Query(f"sum({cpu})", "in all"), Query(f"sum({cpu} / {containers})", "for a container")],
            unit="suffix: CPUs", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "Memory of the exporter", "Resident memory of the exporter, and the same for each container.",
            [Query(f"sum({_HERE.select(hyper.EXPORTER_RESIDENT_MEMORY_BYTES)})", "in all"),
             Query(f"sum({_HERE.select(hyper.EXPORTER_RESIDENT_MEMORY_BYTES)} / {containers})", "for a container")],
            unit="bytes", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "Series", "Series that the exporter exports, and the same for each container.",
            [Query(f"sum({_HERE.select(hyper.EXPORTER_SERIES)})", "in all"),
             Query(f"sum({_HERE.select(hyper.EXPORTER_SERIES)} / {containers})", "for a container")],
            unit="short", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "Time to collect by source", "Wall time of the slowest container's read in the last round, by source.",
            [Query(f"max by (source) ({_HERE.select(hyper.COLLECTOR_DURATION_SECONDS)})", "{{source}}")],
            unit="s", empty=_NO_CONTAINERS, width=8,
        ),
        time_series(
            "Round and scrape", "Wall time of a round over all containers, and of answering a scrape.",
            [Query(f"max({_HERE.select(hyper.COLLECTOR_ROUND_SECONDS)})", "round"),
             Query(f"max({_HERE.select(hyper.SCRAPE_DURATION_SECONDS)})", "scrape")],
            unit="s", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "Open files and unreadable records", "File descriptors that the exporter holds, and records of containers "
            "that it could not read.",
            [Query(f"sum({_HERE.select(hyper.EXPORTER_OPEN_FDS)})", "open files"),
             Query(f"sum({_HERE.select(hyper.RECORDS_UNREADABLE)})", "unreadable records")],
            unit="short", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "CPU of a round for a container", "CPU time of the last round for each container.",
            [Query(f"max({_HERE.select(hyper.COLLECTOR_CONTAINER_CPU_SECONDS)})", "for a container")],
            unit="s", empty=_NO_CONTAINERS, width=8,
        ),
        time_series(
            "Sampled deep", "Containers that were sampled deep in the last round: as asked for, or while they have an "
            "alert.",
            [Query(f"sum({_HERE.select(hyper.COLLECTOR_DEEP_CONTAINERS)})", "containers")],
            unit="short", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "Series left out", "Series a second that were left out as a container had too many.",
            [Query(f"sum({_HERE.rate(hyper.COLLECTOR_SERIES_DROPPED_TOTAL)})", "left out")],
            unit="short", empty=_NO_EXPORTER, width=8,
        ),
        time_series(
            "InfluxDB backlog", "Samples on disk that InfluxDB has not taken yet, where the exporter writes to one.",
            [Query(f"sum({_HERE.select(hyper.INFLUX_BACKLOG_BYTES)})", "backlog")],
            unit="bytes", empty="The exporter writes to no InfluxDB",
        ),
        time_series(
            "InfluxDB writes", "Batches a second that were taken, that failed and are tried again, and that are lost.",
            [Query(f"sum({_HERE.rate(hyper.INFLUX_WRITTEN_TOTAL)})", "written"),
             Query(f"sum({_HERE.rate(hyper.INFLUX_FAILURES_TOTAL)})", "failed"),
             Query(f"sum({_HERE.rate(hyper.INFLUX_DROPPED_TOTAL)})", "lost")],
            unit="short", empty="The exporter writes to no InfluxDB",
        ),
    ]  # fmt: skip
