"""The one place where grafanalib's output is put right for today's Grafana.

grafanalib 0.7.1 writes for Grafana 8: members that have gone since, `null` where a member has to be left out, and not
all that a panel's options must have. `tests/unit/dashboards` holds the result against Grafana's own types.
"""

from __future__ import annotations

import json
from typing import Any, Final

from grafanalib._gen import DashboardEncoder

SCHEMA_VERSION: Final = 39

_OBSOLETE_IN_DASHBOARD: Final = (
    "__inputs", "gnetId", "hideControls", "id", "rows", "sharedCrosshair", "style",
)  # fmt: skip
_OBSOLETE_IN_PANEL: Final = (
    "cacheTimeout", "color", "columns", "editable", "error", "fontSize", "height", "hideTimeOverride", "mappings",
    "maxPerRow", "minSpan", "repeat", "repeatDirection", "span",
)  # fmt: skip
_OBSOLETE_IN_TARGET: Final = ("intervalFactor", "metric", "query", "step", "target")
_OBSOLETE_IN_VARIABLE: Final = ("auto", "auto_count", "auto_min", "tagsQuery", "tagValuesQuery", "useTags")
_REQUIRED_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "stat": {"percentChangeColorMode": "standard", "showPercentChange": False, "wideLayout": True},
    "table": {"frameIndex": 0},
}


def corrected(dashboard: Any) -> dict[str, Any]:
    """A grafanalib dashboard as the JSON that Grafana keeps."""
    raw: dict[str, Any] = json.loads(json.dumps(dashboard.auto_panel_ids().to_json_data(), cls=DashboardEncoder))
    for name in _OBSOLETE_IN_DASHBOARD:
        raw.pop(name, None)
    raw["schemaVersion"] = SCHEMA_VERSION
    raw["timepicker"] = {"refresh_intervals": raw["timepicker"]["refresh_intervals"]}
    raw["panels"] = [_panel(panel) for panel in raw["panels"]]
    raw["templating"] = {"list": [_variable(variable) for variable in raw["templating"]["list"]]}
    return raw


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
    custom = defaults.get("custom", {})
    for members in (defaults, custom):
        for name in ("min", "max", "decimals", "axisSoftMin", "axisSoftMax"):
            if members.get(name, 0) is None:
                del members[name]
    if panel["type"] == "table":
        custom["cellOptions"] = {"type": custom.pop("displayMode")}
        custom["inspect"] = False
    panel["fieldConfig"].setdefault("overrides", [])
    options = panel["options"]
    options.update(_REQUIRED_OPTIONS.get(panel["type"], {}))
    if "legend" in options:
        # Since Grafana 9 a legend is hidden by a member of its own.
        legend = {"calcs": [], **options["legend"]}
        shown = legend["displayMode"] != "hidden"
        options["legend"] = {**legend, "displayMode": legend["displayMode"] if shown else "list", "showLegend": shown}
        options["tooltip"] = {"sort": "none", **options["tooltip"]}
    return panel


def _variable(raw: dict[str, Any]) -> dict[str, Any]:
    variable = {key: value for key, value in raw.items() if key not in _OBSOLETE_IN_VARIABLE and value is not None}
    del variable["current"]  # without a value of its own a variable takes the first that there is
    if variable["type"] == "query":
        if variable["includeAll"]:
            variable["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
        variable["query"] = {"query": variable["query"], "refId": variable["name"]}
    return variable
