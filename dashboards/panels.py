"""Panels as this project has them, and the one place where grafanalib's output is put right for today's Grafana.

Every panel has a description, a unit, and words for when there is nothing to show.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grafanalib import core
from grafanalib._gen import DashboardEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SCHEMA_VERSION = 39
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

GREEN, ORANGE, RED = "green", "orange", "red"

_OBSOLETE_IN_DASHBOARD = ("__inputs", "gnetId", "hideControls", "rows", "sharedCrosshair", "style", "id")
_OBSOLETE_IN_PANEL = (
    "cacheTimeout", "color", "columns", "editable", "error", "fontSize", "height", "hideTimeOverride", "mappings",
    "maxPerRow", "minSpan", "repeat", "repeatDirection", "span",
)  # fmt: skip
_OBSOLETE_IN_TARGET = ("intervalFactor", "metric", "query", "step", "target")
_OBSOLETE_IN_VARIABLE = ("auto", "auto_count", "auto_min", "tagsQuery", "tagValuesQuery", "useTags")


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` may use labels as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel and how much of a row of 24 columns it takes; `height` is in Grafana's units of 30 pixels."""

    core: Any
    width: int
    height: int


def steps(*above: tuple[float, str], base: str = GREEN) -> list[dict[str, Any]]:
    """Thresholds: the base colour, then a colour from each value on."""
    return [{"color": base, "value": None}, *({"color": color, "value": value} for value, color in above)]


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    empty: str,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    width: int = 4,
) -> Panel:
    """One number, now."""
    panel = core.Stat(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets([Query(expr)], instant=True),
        format=unit,
        noValue=empty,
        reduceCalc="lastNotNull",
        graphMode="none",
        color={"mode": "thresholds"},
        thresholds=list(thresholds or steps()),
    )
    return Panel(panel, width, 4)


def time_series(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    empty: str,
    stacked: bool = False,
    bars: bool = False,
    maximum: int | None = None,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    width: int = 12,
) -> Panel:
    """Lines over time; with `thresholds` they are drawn as dashed lines."""
    panel = core.TimeSeries(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets(queries, instant=False),
        unit=unit,
        valueMin=0,
        valueMax=maximum,
        drawStyle="bars" if bars else "line",
        fillOpacity=60 if bars else 30 if stacked else 10,
        stacking={"mode": "normal" if stacked else "none", "group": "A"},
        showPoints="never",
        legendDisplayMode="table",
        legendPlacement="right",
        legendCalcs=["lastNotNull", "max"],
        tooltipMode="multi",
        tooltipSort="desc",
        thresholds=list(thresholds or steps()),
        thresholdsStyleMode="dashed" if thresholds else "off",
        maxDataPoints=None,
        extraJson={"fieldConfig": {"defaults": {"noValue": empty}}},
    )
    return Panel(panel, width, 8)


def table(
    title: str,
    description: str,
    expr: str,
    *,
    columns: Mapping[str, str],
    unit: str,
    empty: str,
    value_texts: Mapping[str, str] | None = None,
    width: int = 12,
) -> Panel:
    """The series of an expression now, one a row.

    Args:
        title: Title of the panel.
        description: What it shows, and what to do about it.
        expr: PromQL.
        columns: Label (`Value` for the number) and the heading it gets, in order; other labels are left out.
        unit: Grafana's unit of the number.
        empty: What to say when there is no series.
        value_texts: Words instead of certain numbers.
        width: In columns of 24.
    """
    order = list(columns)
    mappings = [{"type": "value", "options": {value: {"text": text} for value, text in (value_texts or {}).items()}}]
    panel = core.Table(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets([Query(expr)], instant=True, form="table"),
        unit=unit,
        thresholds=steps(),
        transformations=[
            {"id": "filterFieldsByName", "options": {"include": {"names": order}}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": {name: index for index, name in enumerate(order)},
                    "renameByName": dict(columns),
                },
            },
        ],
        extraJson={
            "fieldConfig": {"defaults": {"noValue": empty, "mappings": mappings, "color": {"mode": "thresholds"}}}
        },
    )
    return Panel(panel, width, 8)


def arrange(sections: Iterable[tuple[str, Sequence[Panel]]]) -> list[Any]:
    """Lay panels out: a title row a section, below it the panels from left to right, wrapped at 24 columns."""
    placed: list[Any] = []
    y = 0
    for title, panels in sections:
        placed.append(core.RowPanel(title=title, gridPos=core.GridPos(h=1, w=COLUMNS, x=0, y=y)))
        y += 1
        x = line_height = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            panel.core.gridPos = core.GridPos(h=panel.height, w=panel.width, x=x, y=y)
            placed.append(panel.core)
            x += panel.width
            line_height = max(line_height, panel.height)
        y += line_height
    return placed


def render(dashboard: Any) -> dict[str, Any]:
    """A grafanalib dashboard as the JSON that Grafana keeps, without what has gone from Grafana since."""
    raw: dict[str, Any] = json.loads(json.dumps(dashboard.auto_panel_ids().to_json_data(), cls=DashboardEncoder))
    for name in _OBSOLETE_IN_DASHBOARD:
        raw.pop(name, None)
    raw["schemaVersion"] = SCHEMA_VERSION
    raw["panels"] = [_panel(panel) for panel in raw["panels"]]
    raw["templating"] = {"list": [_variable(variable) for variable in raw["templating"]["list"]]}
    return raw


def _targets(queries: Sequence[Query], *, instant: bool, form: str = "time_series") -> list[Any]:
    return [
        core.Target(
            expr=query.expr,
            legendFormat=query.legend or "__auto",
            refId=chr(ord("A") + index),
            instant=instant,
            format=form,
            datasource=SOURCE,
        )
        for index, query in enumerate(queries)
    ]


def _panel(raw: dict[str, Any]) -> dict[str, Any]:
    panel = {key: value for key, value in raw.items() if key not in _OBSOLETE_IN_PANEL and value is not None}
    if panel["type"] == "row":
        # A row only has a title: what Panel adds to it is not part of Grafana's row.
        return {key: panel[key] for key in ("collapsed", "gridPos", "id", "panels", "title", "type")}
    panel["targets"] = [
        {key: value for key, value in target.items() if key not in _OBSOLETE_IN_TARGET and value not in (None, "")}
        for target in panel["targets"]
    ]
    defaults = panel["fieldConfig"]["defaults"]
    for name in ("min", "max", "decimals"):
        if defaults.get(name, 0) is None:
            del defaults[name]
    custom = defaults.get("custom", {})
    for name in ("axisSoftMin", "axisSoftMax"):
        if custom.get(name, 0) is None:
            del custom[name]
    if panel["type"] == "table":
        custom["cellOptions"] = {"type": custom.pop("displayMode")}
    panel["fieldConfig"].setdefault("overrides", [])
    return panel


def _variable(raw: dict[str, Any]) -> dict[str, Any]:
    variable = {key: value for key, value in raw.items() if key not in _OBSOLETE_IN_VARIABLE and value is not None}
    variable["current"] = {}
    if variable["type"] == "query":
        variable["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
        variable["definition"] = variable["query"]
        variable["query"] = {"query": variable["definition"], "refId": variable["name"]}
    return variable
