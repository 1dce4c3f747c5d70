"""Panels as this project has them. Every one has a description, a unit, and words for when there is nothing to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from grafanalib import core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

GREEN, ORANGE, RED, BLUE, PURPLE, GRAY = "green", "orange", "red", "blue", "purple", "gray"

SHORT_DIGESTS = {"id": "renameByRegex", "options": {"regex": "sha256:([0-9a-f]{12})[0-9a-f]*", "renamePattern": "$1"}}
"""Legends with the first twelve digits of a digest, as `hyper images` shows it."""


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` may use labels as `{{label}}`."""

    expr: str
    legend: str = ""


NOT_DEEP = "Only in the deep tier (label hyper.metrics.tier=deep)"
"""For panels of metrics that are exported on request alone."""


@dataclass(frozen=True, slots=True)
class Code:
    """A number that stands for a word; `member` is the state's name in its state set, if the word is another."""

    value: float
    text: str
    color: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a label, or the value of a query.

    Attributes:
        heading: what stands above it.
        label: the label that it shows; "" for a value.
        expr: PromQL of the value; "" for a label.
        unit: Grafana's unit of the value.
        codes: words instead of certain values.
        thresholds: colours of the value; none: it is not coloured.
        base: the colour below the first threshold.
    """

    heading: str
    label: str = ""
    expr: str = ""
    unit: str = "short"
    codes: tuple[Code, ...] = ()
    thresholds: tuple[tuple[float, str], ...] = ()
    base: str = GREEN


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel and how much of a row of 24 columns it takes; `height` is in Grafana's units of 30 pixels."""

    core: Any
    width: int
    height: int


def steps(*above: tuple[float, str], base: str = GREEN) -> list[dict[str, Any]]:
    """Thresholds: the base colour, then a colour from each value on."""
    return [{"color": base, "value": None}, *({"color": color, "value": value} for value, color in above)]


def codes_mapping(codes: Sequence[Code]) -> list[dict[str, Any]]:
    """Grafana's mapping of values to words; none for no codes."""
    options = {f"{code.value:g}": {"text": code.text, "color": code.color} for code in codes}
    return [{"type": "value", "options": options}] if options else []


def stat(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "short",
    empty: str,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    codes: Sequence[Code] = (),
    legend: str = "",
    show: Literal["value", "name", "value_and_name"] = "value",
    links: Sequence[Mapping[str, Any]] = (),
    filled: bool = False,
    width: int = 4,
) -> Panel:
    """One number, now; with `show="name"` the legend instead of it, `filled` with its colour as the background."""
    panel = core.Stat(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets([Query(expr, legend)], instant=True),
        format=unit,
        noValue=empty,
        reduceCalc="lastNotNull",
        graphMode="none",
        textMode=show,
        colorMode="background" if filled else "value",
        color={"mode": "thresholds"},
        mappings=codes_mapping(codes),
        thresholds=list(thresholds or steps()),
        extraJson={"fieldConfig": {"defaults": {"links": list(links)}}},
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
    soft_minimum: float | None = None,
    thresholds: Sequence[Mapping[str, Any]] | None = None,
    links: Sequence[Mapping[str, Any]] = (),
    transformations: Sequence[Mapping[str, Any]] = (),
    width: int = 12,
    height: int = 8,
) -> Panel:
    """Lines over time; with `thresholds` they are drawn as dashed lines.

    The axis begins at 0, or with `soft_minimum` there unless a line goes lower: of what should be near 1, the little
    that is missing is what matters.
    """
    # grafanalib takes whole numbers alone for it.
    custom = {} if soft_minimum is None else {"axisSoftMin": soft_minimum}
    panel = core.TimeSeries(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets(queries, instant=False),
        unit=unit,
        valueMin=0 if soft_minimum is None else None,
        valueMax=maximum,
        drawStyle="bars" if bars else "line",
        fillOpacity=60 if bars else 30 if stacked else 10,
        stacking={"mode": "normal" if stacked else "none", "group": "A"},
        showPoints="never",
        legendDisplayMode="table" if width >= 12 else "list",
        legendPlacement="right" if width >= 12 else "bottom",
        legendCalcs=["lastNotNull", "max"],
        tooltipMode="multi",
        tooltipSort="desc",
        thresholds=list(thresholds or steps()),
        thresholdsStyleMode="dashed" if thresholds else "off",
        transformations=[*transformations],
        maxDataPoints=None,
        extraJson={"fieldConfig": {"defaults": {"noValue": empty, "links": list(links), "custom": custom}}},
    )
    return Panel(panel, width, height)


def state_timeline(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    codes: Sequence[Code],
    empty: str,
    transformations: Sequence[Mapping[str, Any]] = (),
    width: int = 24,
    height: int = 5,
) -> Panel:
    """One line a series, coloured by what state it was in; each value is one of the codes."""
    panel = core.StateTimeline(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets(queries, instant=False),
        mappings=codes_mapping(codes),
        thresholds=steps(base=GRAY),
        legendDisplayMode="hidden",
        showValue="auto",
        transformations=[*transformations],
        maxDataPoints=None,
        extraJson={"fieldConfig": {"defaults": {"unit": "none", "noValue": empty}}},
    )
    return Panel(panel, width, height)


def table(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    empty: str,
    links: Sequence[Mapping[str, Any]] = (),
    width: int = 12,
    height: int = 8,
) -> Panel:
    """The series of one or more expressions now, one a row: those with the same labels share it.

    Args:
        title: Title of the panel.
        description: What it shows, and what to do about it.
        columns: Labels and values, in order; other labels are left out.
        empty: What to say when there is no series.
        links: Where a click on a cell leads.
        width: In columns of 24.
        height: In Grafana's units.
    """
    values = [column for column in columns if column.expr]
    fields = {}
    for column in columns:
        reference = _reference(values.index(column)) if column.expr else ""
        # A single query's value has no reference in its name.
        fields[column] = column.label or ("Value" if len(values) == 1 else f"Value #{reference}")
    names = [fields[column] for column in columns]
    merge = [{"id": "merge", "options": {}}] if len(values) > 1 else []
    panel = core.Table(
        title=title,
        description=description,
        dataSource=SOURCE,
        targets=_targets([Query(column.expr) for column in values], instant=True, form="table"),
        unit=values[0].unit,
        thresholds=steps(),
        overrides=[_override(column) for column in values],
        transformations=[
            *merge,
            {"id": "filterFieldsByName", "options": {"include": {"names": names}}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": {name: index for index, name in enumerate(names)},
                    "renameByName": {fields[column]: column.heading for column in columns},
                },
            },
        ],
        extraJson={
            "fieldConfig": {
                "defaults": {"noValue": empty, "color": {"mode": "thresholds"}, "links": list(links), "mappings": []}
            }
        },
    )
    return Panel(panel, width, height)


def _override(column: Column) -> dict[str, Any]:
    properties: list[dict[str, Any]] = [{"id": "unit", "value": column.unit}]
    if column.codes:
        properties.append({"id": "mappings", "value": codes_mapping(column.codes)})
    if column.thresholds:
        properties += [
            {"id": "thresholds", "value": {"mode": "absolute", "steps": steps(*column.thresholds, base=column.base)}},
            {"id": "custom.cellOptions", "value": {"type": "color-text"}},
        ]
    return {"matcher": {"id": "byName", "options": column.heading}, "properties": properties}


def _reference(index: int) -> str:
    return chr(ord("A") + index)


def _targets(queries: Sequence[Query], *, instant: bool, form: str = "time_series") -> list[Any]:
    return [
        core.Target(
            expr=query.expr,
            legendFormat=query.legend or "__auto",
            refId=_reference(index),
            instant=instant,
            format=form,
            datasource=SOURCE,
        )
        for index, query in enumerate(queries)
    ]
