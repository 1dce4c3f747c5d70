"""The SLO dashboard: are containers up as much as was promised, and how fast is the error budget used up?"""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, hyper, microvm
from dashboards import links, marks
from dashboards.layout import dashboard
from dashboards.panels import GREEN, ORANGE, RED, Column, Panel, Query, stat, steps, table, time_series
from dashboards.promql import Chosen
from dashboards.variables import chain

UID: Final = links.SLO

AVAILABILITY: Final = 0.995
"""Share of the time in which a container that should be running has to run, to answer, and not to be unhealthy."""

MEASUREMENT: Final = 0.99
"""Share of the samples of running containers that have to be good."""

START: Final = 0.95
"""Share of the containers whose last start has to have taken no longer than `START_S`."""

START_S: Final = 5.0

# Whether these are what the alerts have is a test's business: outputs do not know one another.

_NAMES: Final = ("instance", "namespace", "pod", "container")
_ALL: Final = Chosen(_NAMES)
_NO_CONTAINERS: Final = "No container is wanted running"

# Windows and how finely they are looked at: a long one costs as many evaluations as a short one.
_WINDOWS: Final = {"1h": "1m", "6h": "2m", "1d": "5m", "3d": "15m", "30d": "1h"}


def slo() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        f"Objectives: containers that should be running are available {AVAILABILITY * 100:g} % of the time, and "
        f"{MEASUREMENT * 100:g} % of the samples of running containers are good.",
        chain(_NAMES),
        [
            ("Is the promise kept?", _now()),
            ("How fast is the budget used up? (1 = just used up in 30 days)", _burn()),
            ("Who uses it up?", _who()),
            ("How fast do containers start?", _starts()),
            ("Can the figures be believed?", _measurement()),
        ],
        [marks.pages(_ALL), marks.states(_ALL), marks.digests(_ALL), marks.actions()],
        since="now-24h",
    )


# As for the alerts: what somebody has paused counts for nothing, what is in quarantine should run and does not.
_WANTED: Final = (
    f"({_ALL.wanted} unless on (id) {_ALL.select(container.STATE, state='paused')} == 1 or on (id) {_ALL.quarantined})"
)
_AVAILABLE: Final = (
    f"({_WANTED} and on (id) {_ALL.running} and on (id) {_ALL.select(microvm.SOURCE_UP, source='guest')} == 1 "
    f"and on (id) {_ALL.select(container.HEALTH_STATE)} != 0)"
)


def _up(by: str = "") -> str:
    """Share of the wanted containers that are available, now; absent if none is wanted."""
    grouped = f" by ({by})" if by else ""
    wanted = f"count{grouped} {_WANTED}"
    return f"((count{grouped} {_AVAILABLE} or {wanted} * 0) / {wanted})"


def _over(expr: str, window: str) -> str:
    return f"avg_over_time({expr}[{window}:{_WINDOWS[window]}])"


def _burned(expr: str, window: str, objective: float = AVAILABILITY) -> str:
    """How many times as fast as allowed the budget was used up in the window."""
    return f"(1 - {_over(expr, window)}) / {1 - objective:.6g}"


def _above(objective: float) -> tuple[tuple[float, str], ...]:
    """Colours of a share that should be at least the objective: orange while not twice as much is missing, else red."""
    return ((round(2 * objective - 1, 6), ORANGE), (objective, GREEN))


def _kept(objective: float) -> list[dict[str, Any]]:
    return steps(*_above(objective), base=RED)


def _floor(objective: float) -> float:
    """Where the axis of a share begins: far enough below the objective to see by how much it is missed."""
    return round(1 - 5 * (1 - objective), 6)


def _now() -> list[Panel]:
    return [
        stat(
            "Up now", "Share of the containers that should be running, and do: they run, answer, and are not "
            "unhealthy.", _up(), unit="percentunit",
            empty=_NO_CONTAINERS, thresholds=_kept(AVAILABILITY), filled=True, width=4,
        ),
        stat(
            "Up, 1 day",
            "The same, mean of the last day.", _over(_up(), "1d"), unit="percentunit", empty=_NO_CONTAINERS,
            thresholds=_kept(AVAILABILITY), width=4,
        ),
        stat(
            "Up, 30 days", "The same, mean of the last 30 days: what was promised.", _over(_up(), "30d"),
            unit="percentunit", empty=_NO_CONTAINERS, thresholds=_kept(AVAILABILITY), width=4,
        ),
        stat(
            "Budget left, 30 days",
            "What is left of the time that containers may be down. Below 0 the promise is broken.",
            f"1 - {_burned(_up(), '30d')}", unit="percentunit", empty=_NO_CONTAINERS,
            thresholds=steps((0, ORANGE), (0.25, GREEN), base=RED), filled=True, width=4,
        ),
        stat(
            "Burn rate, 1 h",
            "How many times as fast as allowed the budget is used up. 14.4 for an hour uses up 2 % of "
            "30 days' budget: people are woken.",
            _burned(_up(), "1h"), unit="suffix:x", empty=_NO_CONTAINERS, thresholds=steps((1, ORANGE), (14.4, RED)),
            filled=True, width=4,
        ),
        stat(
            "Burn rate, 6 h", "The same over 6 hours. 6 uses up 5 % of 30 days' budget.",
            _burned(_up(), "6h"), unit="suffix:x", empty=_NO_CONTAINERS, thresholds=steps((1, ORANGE), (6, RED)),
            width=4,
        ),
    ]  # fmt: skip


def _burn() -> list[Panel]:
    return [
        time_series(
            "Burn rate",
            "How many times as fast as allowed the budget is used up, over windows that tell a short outage "
            "from a slow leak.",
            [Query(_burned(_up(), window), window) for window in ("1h", "6h", "1d", "3d")],
            unit="suffix:x", empty=_NO_CONTAINERS, thresholds=steps((1, ORANGE), (14.4, RED)),
        ),
        time_series(
            "Up by tenant", "Share of each tenant's containers that should be running and do. The lines: the "
            "objective, and twice as much missing as it allows.",
            [Query(_up("namespace"), "{{namespace}}")], unit="percentunit", empty=_NO_CONTAINERS, maximum=1,
            soft_minimum=_floor(AVAILABILITY), thresholds=_kept(AVAILABILITY),
            links=[links.from_series(links.FLEET, ("namespace",))],
        ),
    ]  # fmt: skip


def _who() -> list[Panel]:
    by = "instance, namespace, pod, container"
    share = _over(_up(by), "1d")
    who = {"instance": "Host", "namespace": "Tenant", "pod": "Pod", "container": "Container"}
    return [
        table(
            "Least up, 1 day", "The containers that were up least in the last day.",
            [*(Column(heading, label=label) for label, heading in who.items()),
             Column("Up", unit="percentunit", thresholds=_above(AVAILABILITY), base=RED,
                    expr=f"bottomk(10, {share})")],
            empty=_NO_CONTAINERS, links=[links.from_row(links.CONTAINER, who)],
        ),
        table(
            "Tenants, 1 day", "What each tenant got in the last day, and how fast its budget is used up.",
            [Column("Tenant", label="namespace"),
             Column("Wanted", expr=f"count by (namespace) {_WANTED}"),
             Column("Up", unit="percentunit", thresholds=_above(AVAILABILITY), base=RED,
                    expr=_over(_up("namespace"), "1d")),
             Column("Burn rate", unit="suffix:x", thresholds=((1, ORANGE), (14.4, RED)),
                    expr=_burned(_up("namespace"), "1d"))],
            empty=_NO_CONTAINERS, links=[links.from_row(links.FLEET, {"namespace": "Tenant"})],
        ),
    ]  # fmt: skip


def _starts() -> list[Panel]:
    def mean(window: str) -> str:
        seconds = f"sum({_ALL.increase(hyper.OPERATION_SECONDS_TOTAL, window, kind='start|create|redeploy')})"
        return f"{seconds} / (sum({_ALL.increase(hyper.OPERATIONS_TOTAL, window, kind='start|create|redeploy')}) > 0)"

    failed = f"sum({_ALL.events(hyper.OPERATIONS_TOTAL, '1d', kind='start|create|redeploy', outcome='failed')})"
    tried = f"sum({_ALL.events(hyper.OPERATIONS_TOTAL, '1d', kind='start|create|redeploy')})"
    all_starts = f"count({_ALL.select(microvm.START_SECONDS)})"
    quick = f"(count({_ALL.select(microvm.START_SECONDS)} <= {START_S:g}) or {all_starts} * 0) / {all_starts}"
    return [
        stat(
            f"Started within {START_S:g} s", f"Share of the containers whose last start took no longer; the objective "
            f"is {START * 100:g} %.",
            quick, unit="percentunit", empty=_NO_CONTAINERS, thresholds=_kept(START), filled=True, width=6,
        ),
        stat(
            "Mean start, 1 h", "Time that hyperd took to make or start a container, mean of the last hour.", mean("1h"),
            unit="s", empty="No start in the last hour", thresholds=steps((START_S / 2, ORANGE), (START_S, RED)),
            width=6,
        ),
        stat(
            "Starts that failed, 1 day", "Share of the starts of the last day that hyperd could not do.",
            f"{failed} / ({tried} > 0)", unit="percentunit", empty="No start in the last day",
            thresholds=steps((0.001, ORANGE), (0.01, RED)), width=6,
        ),
        stat(
            "Slowest start", "The longest that the last start of a container took.",
            f"max({_ALL.select(microvm.START_SECONDS)})", unit="s", empty=_NO_CONTAINERS,
            thresholds=steps((START_S, ORANGE)), width=6,
        ),
        time_series(
            "Started in time", f"Share of the containers whose last start took at most {START_S:g} s. The lines: the "
            "objective, and twice as much missing as it allows.",
            [Query(quick, "in time")], unit="percentunit", empty=_NO_CONTAINERS, maximum=1,
            soft_minimum=_floor(START), thresholds=_kept(START),
        ),
        time_series(
            "Mean start", f"The mean over time. The line: {START_S:g} s, which {START * 100:g} % of starts may take at "
            "most.",
            [Query(mean("$__rate_interval"), "mean")], unit="s", empty="No start in this time",
            thresholds=steps((START_S, RED)),
        ),
    ]  # fmt: skip


def _measurement() -> list[Panel]:
    good = f"avg({_ALL.select(microvm.SOURCE_UP)} and on (id) {_ALL.running})"
    by_source = f"avg by (source) ({_ALL.select(microvm.SOURCE_UP)} and on (id) {_ALL.running})"
    return [
        stat(
            "Good samples now", "Share of the sources of running containers that gave a good sample.", good,
            unit="percentunit", empty=_NO_CONTAINERS, thresholds=_kept(MEASUREMENT), width=6,
        ),
        stat(
            "Good samples, 1 day", "The same, mean of the last day. Below the objective the rest of this page may be "
            "better than the truth.",
            _over(good, "1d"), unit="percentunit", empty=_NO_CONTAINERS, thresholds=_kept(MEASUREMENT), width=6,
        ),
        time_series(
            "Good samples by source", "The same over time: host (cgroups, /proc), vmm (QMP), guest (agent). The "
            "lines: the objective, and twice as much missing as it allows.",
            [Query(by_source, "{{source}}")], unit="percentunit", empty=_NO_CONTAINERS, maximum=1,
            soft_minimum=_floor(MEASUREMENT), thresholds=_kept(MEASUREMENT),
        ),
    ]  # fmt: skip
