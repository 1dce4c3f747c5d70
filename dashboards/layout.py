"""Where panels go, and the dashboard around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grafanalib import core

from dashboards import links
from dashboards.corrections import corrected

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dashboards.panels import Panel

COLUMNS = 24

Sections = list[tuple[str, "Sequence[Panel]"]]


def dashboard(
    uid: str,
    description: str,
    variables: Sequence[Any],
    sections: Sections,
    annotations: Sequence[dict[str, Any]] = (),
    since: str = "now-1h",
) -> dict[str, Any]:
    """A dashboard as JSON: sections of panels, with the links to all others in its bar."""
    board = core.Dashboard(
        title=f"Hyperpulse / {links.TITLES[uid]}",
        uid=uid,
        description=description,
        tags=["hyperpulse"],
        timezone="browser",
        refresh="10s",
        graphTooltip=1,
        time=core.Time(since, "now"),
        links=links.bar(uid),
        templating=core.Templating(list=list(variables)),
        annotations=core.Annotations(list=list(annotations)),
        panels=arrange(sections),
    )
    return corrected(board)


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
