"""Queries of the dashboards, with their variables filled in as Grafana would."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dashboards import generate

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMES = {"__rate_interval": "1m", "__range": "1h"}


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    return {name: json.loads(text) for name, text in generate.contents().items()}


def filled(expr: str, **values: str) -> str:
    """The expression as Prometheus gets it: `values` are of variables, what is not given is all."""
    known = {**TIMES, **values}
    return re.sub(r"\$(\w+)", lambda match: known.get(match[1], ".*"), expr)


def young(expr: str) -> str:
    """The expression for a Prometheus that is seconds old: it has no point yet at which a long window is looked at."""
    return re.sub(r"\[\w+:\w+\]", "[10s:1s]", expr)


def queries() -> Iterator[tuple[str, str, str]]:
    """Dashboard, panel and expression of everything that a panel or a mark asks for."""
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield name, panel["title"], target["expr"]
        for mark in board["annotations"]["list"]:
            yield name, f"marks: {mark['name']}", mark["expr"]
