"""Every dashboard is what Grafana's own types say that a dashboard is (`scripts/grafana-schema` writes them down)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dashboards import generate

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parent / "grafana.schema.json").read_text())
KINDS = {"stat": "stat", "state-timeline": "statetimeline", "table": "table", "timeseries": "timeseries"}
BOARDS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in generate.contents().items()}

# Grafana's type of an annotation is closed around the marks that are kept in Grafana's own database. Those of a data
# source carry their query beside it: these are Prometheus', as its plugin reads them.
OF_PROMETHEUS = {"expr": str, "step": str, "titleFormat": str, "useValueForTime": bool}


def faults(board: dict[str, Any]) -> list[str]:
    """What is wrong with a dashboard, by Grafana's types; the options of each panel by those of its kind."""
    board = copy.deepcopy(board)
    for mark in board["annotations"]["list"]:
        for name, kind in OF_PROMETHEUS.items():
            assert isinstance(mark.pop(name), kind)
    found = told("dashboard", board, "dashboard")
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        where, kind = panel["title"], KINDS[panel["type"]]
        # One of a union that does not fit is told of without a reason: each panel is looked at by itself.
        found += told(where, panel, "dashboard", "#/definitions/Panel")
        found += told(f"{where}: options", panel["options"], f"{kind}.Options")
        if f"{kind}.FieldConfig" in SCHEMA:
            found += told(f"{where}: custom", panel["fieldConfig"]["defaults"]["custom"], f"{kind}.FieldConfig")
    return found


def told(where: str, value: object, part: str, reference: str | None = None) -> list[str]:
    schema = SCHEMA[part] if reference is None else {**SCHEMA[part], "$ref": reference}
    return [f"{where}: {one.json_path}: {one.message}" for one in jsonschema.Draft7Validator(schema).iter_errors(value)]


@pytest.mark.parametrize("name", BOARDS)
def test_grafana_would_take_it(name: str) -> None:
    assert faults(BOARDS[name]) == []


def test_the_schemas_are_schemas_and_one_for_each_kind_of_panel() -> None:
    for name, schema in SCHEMA.items():
        if name != "version":
            jsonschema.Draft7Validator.check_schema(schema)
    used = {panel["type"] for board in BOARDS.values() for panel in board["panels"]} - {"row"}
    assert used == set(KINDS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("style",), "dark"),
        (("graphTooltip",), 7),
        (("panels", 1, "span"), 6),
        (("panels", 1, "fieldConfig", "defaults", "thresholds", "steps", 0, "value"), "null"),
        (("panels", 1, "options", "graphMode"), "sparkles"),
        (("templating", "list", 0, "useTags"), False),
    ],
)
def test_what_grafanalib_would_write_is_told(path: tuple[str | int, ...], value: object) -> None:
    board = copy.deepcopy(BOARDS["fleet.json"])
    place: Any = board
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert faults(board)
