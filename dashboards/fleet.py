"""The Fleet dashboard: all containers of all hosts, what is wrong with them, and what it costs to know."""

from __future__ import annotations

from typing import Any

from grafanalib import core

from collector.catalogue import Metric, container, hyper, microvm, remediation
from dashboards.panels import ORANGE, RED, SOURCE, Panel, Query, arrange, render, stat, steps, table, time_series
from dashboards.promql import count, increase, rate, select

UID = "hyper-fleet"

_NOT_RUNNING = "created|exited|dead"
_WHO = "{{namespace}}/{{container}}"
_RUNNING = f"{select(container.STATE, state='running')} == 1"
_WANTED = f"{select(container.DESIRED_RUNNING)} == 1"
_NO_CONTAINERS = "No container is seen"


def fleet() -> dict[str, Any]:
    """The dashboard as JSON."""
    dashboard = core.Dashboard(
        title="Hyperpulse / Fleet",
        uid=UID,
        description="Every container of every host: what is down, what is short of something, what was done about it.",
        tags=["hyperpulse"],
        timezone="browser",
        refresh="10s",
        graphTooltip=1,
        time=core.Time("now-1h", "now"),
        templating=core.Templating(list=_variables()),
        panels=arrange(
            [
                ("Now", _now()),
                ("Containers", _containers()),
                ("Top consumers", _consumers()),
                ("Out of memory and restarts", _trouble()),
                ("Starts", _starts()),
                ("Remediation", _remediation()),
                ("The collector and its cost", _collector()),
            ]
        ),
    )
    return render(dashboard)


def _variables() -> list[Any]:
    info = container.INFO.name

    def of_containers(name: str, label: str, query: str) -> Any:
        return core.Template(
            name=name,
            label=label,
            query=query,
            dataSource=SOURCE,
            type="query",
            refresh=2,
            multi=True,
            includeAll=True,
            allValue=".*",
            default="$__all",
        )

    return [
        core.Template(name="datasource", label="Data source", query="prometheus", type="datasource", default=None),
        of_containers("namespace", "Namespace", f"label_values({info}, namespace)"),
        of_containers("container", "Container", f'label_values({info}{{namespace=~"$namespace"}}, container)'),
    ]


def _now() -> list[Panel]:
    down = f"{select(container.STATE, state=_NOT_RUNNING)} == 1 and on (id) {_WANTED}"
    silent = f"{select(microvm.SOURCE_UP)} == 0 and on (id) {_RUNNING}"
    red_from_one = steps((1, RED))
    return [
        stat(
            "Running", "Containers whose process runs.", count(_RUNNING, container.STATE), empty=_NO_CONTAINERS
        ),
        stat(
            "Down", "Containers that should be running and are not. The table below names them.",
            count(down, container.STATE), empty=_NO_CONTAINERS, thresholds=red_from_one,
        ),
        stat(
            "Sources down", "Sources (host, vmm, guest) of running containers without a good sample in the last round.",
            count(silent, microvm.SOURCE_UP), empty=_NO_CONTAINERS, thresholds=red_from_one,
        ),
        stat(
            "OOM kills, 1 h", "Processes killed for want of memory in the last hour.",
            f"sum({increase(container.OOM_EVENTS_TOTAL, '1h')})", empty=_NO_CONTAINERS,
            thresholds=steps((0.5, ORANGE)),
        ),
        stat(
            "Restarts, 1 h", "Starts after the first in the last hour, by whomever.",
            f"sum({increase(container.RESTARTS_TOTAL, '1h')})", empty=_NO_CONTAINERS,
            thresholds=steps((1, ORANGE), (10, RED)),
        ),
        stat(
            "Remediation actions, 24 h", "What the remediation controller did to containers in the last day.",
            f"sum({increase(remediation.ACTIONS_TOTAL, '24h')})", empty="No controller is scraped",
            thresholds=steps((1, ORANGE)),
        ),
    ]  # fmt: skip


def _containers() -> list[Panel]:
    state_now = f"({select(container.STATE, state=_NOT_RUNNING)} == 1)"
    exit_code = f"{select(container.EXIT_CODE)} * on (id) group_left (state) {state_now}"
    return [
        time_series(
            "Containers by state", "How many containers are in each state.",
            [Query(f"sum by (state) ({select(container.STATE)}) > 0", "{{state}}")],
            unit="short", empty=_NO_CONTAINERS, stacked=True,
        ),
        table(
            "Down containers",
            "Containers that should be running and are not, with the exit code of their last run. "
            "`hyper logs NAME` has their last words.",
            # A container that never ran has no exit code: it gets -1, which no process can exit with.
            f"({exit_code} or on (id) {state_now} - 2) and on (id) {_WANTED}",
            columns={"namespace": "Namespace", "container": "Container", "state": "State", "Value": "Exit code",
                     "image": "Image", "id": "Id"},
            unit="none", empty="Nothing is down", value_texts={"-1": "never ran"},
        ),
    ]  # fmt: skip


def _consumers() -> list[Panel]:
    def top(expr: str) -> list[Query]:
        return [Query(f"topk(10, sum by (namespace, container) ({expr}))", _WHO)]

    limit = select(container.SPEC_MEMORY_LIMIT_BYTES)
    return [
        time_series(
            "CPU, top 10", "CPUs in use by the containers' own processes, as the guest counts them.",
            top(rate(container.CPU_USAGE_SECONDS_TOTAL)), unit="suffix: CPUs", empty=_NO_CONTAINERS,
        ),
        time_series(
            "CPU of the host, top 10", "CPUs of the host that the micro-VMs cost, with QEMU's own threads.",
            top(rate(microvm.HOST_CPU_SECONDS_TOTAL)), unit="suffix: CPUs", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Memory, top 10", "Working set: memory in use without the page cache that can be dropped first.",
            top(select(container.MEMORY_WORKING_SET_BYTES)), unit="bytes", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Memory of the limit, top 10", "Working set as a share of the memory limit; at 100 % processes are killed.",
            [Query(f"topk(10, {select(container.MEMORY_WORKING_SET_BYTES)} / {limit})", _WHO)],
            unit="percentunit", empty=_NO_CONTAINERS, maximum=1, thresholds=steps((0.9, RED)),
        ),
    ]  # fmt: skip


def _trouble() -> list[Panel]:
    def events(metric: Metric) -> list[Query]:
        return [Query(f"sum by (namespace, container) ({increase(metric, '$__rate_interval')}) > 0", _WHO)]

    return [
        time_series(
            "OOM kills", "Processes killed for want of memory, by container.",
            events(container.OOM_EVENTS_TOTAL), unit="short", empty="No OOM kill in this time", bars=True,
        ),
        time_series(
            "Restarts", "Starts after the first, by container: of people, of the runtime, of remediation.",
            events(container.RESTARTS_TOTAL), unit="short", empty="No restart in this time", bars=True,
        ),
    ]  # fmt: skip


def _starts() -> list[Panel]:
    seconds = rate(hyper.OPERATION_SECONDS_TOTAL, kind="start")
    starts = rate(hyper.OPERATIONS_TOTAL, kind="start")
    return [
        time_series(
            "Starts by path", "How VMs were started: from the pool, as clones of a template, or cold.",
            [Query(f"sum by (path) ({increase(hyper.STARTS_TOTAL, '$__rate_interval')}) > 0", "{{path}}")],
            unit="short", empty="No start in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Slower than they could be", "Starts that took a slower path than they could have, by reason.",
            [Query(f"sum by (reason) ({increase(hyper.START_FALLBACKS_TOTAL, '$__rate_interval')}) > 0", "{{reason}}")],
            unit="short", empty="No fallback in this time", bars=True, stacked=True, width=8,
        ),
        time_series(
            "Mean start time", "Time that hyperd took for a start, on average, by host.",
            [Query(
                f"sum by (instance) ({seconds}) / (sum by (instance) ({starts}) > 0)", "{{instance}}",
            )],
            unit="s", empty="No start in this time", width=8,
        ),
        time_series(
            "Time of the last start",
            "Mean over the containers of how long their last start took, and its phases where they are sampled deep.",
            [Query(f"avg ({select(microvm.START_SECONDS)})", "start"),
             Query(f"avg by (phase) ({select(microvm.START_PHASE_SECONDS)})", "{{phase}}")],
            unit="s", empty=_NO_CONTAINERS,
        ),
        time_series(
            "Paths of running containers", "How the containers that run now were started, and why not faster.",
            [Query(f"count by (path, reason) ({select(microvm.START_PATH)})", "{{path}} {{reason}}")],
            unit="short", empty=_NO_CONTAINERS, stacked=True,
        ),
    ]  # fmt: skip


def _remediation() -> list[Panel]:
    actions = increase(remediation.ACTIONS_TOTAL, "$__rate_interval")
    decisions = increase(remediation.DECISIONS_TOTAL, "$__rate_interval")
    empty = "No controller is scraped, or it had nothing to do"
    return [
        time_series(
            "Actions", "What was done to containers, and how it ended. `/audit` of the controller says why.",
            [Query(f"sum by (action, outcome) ({actions}) > 0", "{{action}}: {{outcome}}")],
            unit="short", empty=empty, bars=True, stacked=True, width=10,
        ),
        time_series(
            "Decisions", "What was decided about the alerts that came in, with the reason for doing nothing.",
            [Query(f"sum by (decision, reason) ({decisions}) > 0", "{{decision}}: {{reason}}")],
            unit="short", empty=empty, bars=True, stacked=True, width=10,
        ),
        stat(
            "Last action", "When a container was last acted on.",
            f"max({select(remediation.LAST_ACTION_TIMESTAMP_SECONDS)}) * 1000", unit="dateTimeFromNow",
            empty="Never",
        ),
    ]  # fmt: skip


def _collector() -> list[Panel]:
    silent = f"count by (source) ({select(microvm.SOURCE_UP)} == 0)"
    per_container = f"{rate(hyper.EXPORTER_CPU_SECONDS_TOTAL)} / ({hyper.CONTAINERS.name} > 0)"
    return [
        time_series(
            "Sources down by kind", "Sources without a good sample: host (cgroups, /proc), vmm (QMP), guest (agent).",
            [Query(silent, "{{source}}")], unit="short", empty="All sources are up", width=8,
        ),
        time_series(
            "Age of the oldest sample", "How old the numbers are; it grows while a source is down.",
            [Query(f"max by (source) ({select(microvm.SAMPLE_AGE_SECONDS)})", "{{source}}")],
            unit="s", empty=_NO_CONTAINERS, width=8,
        ),
        time_series(
            "Time to collect", "Wall time of a round over all containers, and of answering a scrape.",
            [Query(select(hyper.COLLECTOR_ROUND_SECONDS), "{{instance}} round"),
             Query(select(hyper.SCRAPE_DURATION_SECONDS), "{{instance}} scrape")],
            unit="s", empty="No exporter is scraped", width=8,
        ),
        time_series(
            "CPU of the exporter for a container", "CPU time a second that the exporter spends, by container.",
            [Query(per_container, "{{instance}}")], unit="s", empty="No exporter is scraped", width=8,
        ),
        time_series(
            "Memory of the exporter", "Resident memory of the exporter.",
            [Query(select(hyper.EXPORTER_RESIDENT_MEMORY_BYTES), "{{instance}}")],
            unit="bytes", empty="No exporter is scraped", width=8,
        ),
        time_series(
            "Series", "Series that the exporter exports for containers and host.",
            [Query(select(hyper.EXPORTER_SERIES), "{{instance}}")],
            unit="short", empty="No exporter is scraped", width=8,
        ),
    ]  # fmt: skip
