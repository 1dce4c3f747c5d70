"""Draws each dashboard as Grafana would lay it out: `python -m dashboards.picture --write --out DIRECTORY`.

Places, titles, variables and links are those of the generated JSON; what a panel shows is only hinted at by its kind.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from dashboards import generate
from dashboards.layout import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PICTURES: Final = Path(__file__).resolve().parents[1] / "docs/explanation/dashboards"

_CELL: Final = 50  # width of a column, pixels
_UNIT: Final = 24  # height of a unit, pixels; Grafana's is 30
_TOP: Final = 78  # room for the title, the variables and the links
_GAP: Final = 4
_WIDTH: Final = COLUMNS * _CELL + 2 * _GAP
_SHARE: Final = 0.42  # an example
_LINES: Final = ("#3274d9", "#56a64b", "#e0b400", "#e02f44")
_INK, _PALE, _PAPER, _FRAME = "#24292e", "#6e7681", "#ffffff", "#d0d7de"
_COLORS: Final = {"green": "#56a64b", "orange": "#ff780a", "red": "#e02f44", "gray": "#8e8e8e"}


def picture(board: Mapping[str, Any]) -> str:
    """A dashboard, as the generator writes it, as SVG."""
    height = _TOP + _GAP + _UNIT * max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in board["panels"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f"<title>{escape(board['title'])}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#f4f5f5"/>',
        *_head(board),
    ]
    for panel in board["panels"]:
        parts += _row(panel) if panel["type"] == "row" else _panel(panel)
    return "\n".join([*parts, "</svg>"]) + "\n"


def contents() -> dict[str, str]:
    """Every picture by its file's name."""
    return {name.replace(".json", ".svg"): picture(json.loads(text)) for name, text in generate.contents().items()}


def _head(board: Mapping[str, Any]) -> Iterator[str]:
    yield _text(12, 22, board["title"], size=16, bold=True)
    x = 12.0
    for variable in board["templating"]["list"]:
        label, value = variable["label"], "Prometheus" if variable["type"] == "datasource" else _value(variable)
        yield _text(x, 48, label, size=11, color=_PALE)
        left = x + 6.5 * len(label) + 6
        width = 6.5 * len(value) + 24
        yield _box(left, 35, width, 20, rounded=3)
        yield _text(left + 7, 49, f"{value} ▾", size=11)
        x = left + width + 14
    links = "   ".join(f"→ {link['title']}" for link in board["links"])
    yield _text(_WIDTH - 12, 22, links, size=11, color="#1f60c4", anchor="end")
    marks = ", ".join(mark["name"].lower() for mark in board["annotations"]["list"])
    yield _text(12, 70, f"marks: {marks}" if marks else "", size=10, color=_PALE)
    yield _text(
        _WIDTH - 12, 48, f"{board['time']['from']} to now, every {board['refresh']}", size=11, color=_PALE, anchor="end"
    )


def _value(variable: Mapping[str, Any]) -> str:
    return "All" if variable.get("includeAll") else "one"


def _row(panel: Mapping[str, Any]) -> Iterator[str]:
    yield _text(10, _TOP + panel["gridPos"]["y"] * _UNIT + 17, f"▾ {panel['title']}", size=13, bold=True)


def _panel(panel: Mapping[str, Any]) -> Iterator[str]:
    grid = panel["gridPos"]
    x, y = _GAP + grid["x"] * _CELL, _TOP + grid["y"] * _UNIT
    width, height = grid["w"] * _CELL - _GAP, grid["h"] * _UNIT - _GAP
    yield f"<g><title>{escape(panel['title'])}: {escape(panel['description'])}</title>"
    yield _box(x, y, width, height, rounded=2)
    title = textwrap.shorten(panel["title"], max(8, int(width / 6.6)), placeholder="…")
    yield _text(x + 7, y + 15, title, size=11, bold=True)
    yield from _KINDS[panel["type"]](panel, x, y + 20, width, height - 20)
    yield "</g>"


def _stat(panel: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Iterator[str]:
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    best = next((step["color"] for step in reversed(steps) if step["color"] == "green"), steps[0]["color"])
    color = _COLORS.get(best, _INK)
    filled = panel["options"]["colorMode"] == "background"
    if filled:
        yield f'<rect x="{x + 4:g}" y="{y:g}" width="{width - 8:g}" height="{height - 5:g}" rx="2" fill="{color}"/>'
        color = _PAPER
    example = _example(defaults["unit"], steps)
    if defaults["mappings"]:
        words = [one["text"] for one in defaults["mappings"][0]["options"].values() if one["color"] == "green"]
        example = words[0] if words else example
    if panel["options"]["textMode"] == "value_and_name":
        example = f"a host: {example}"
    yield _text(x + width / 2, y + height / 2 + 2, example, size=20, bold=True, color=color, anchor="middle")
    if not defaults["mappings"]:
        yield _text(x + width / 2, y + height - 13, _bounds(steps, defaults["unit"]), size=9,
                    color=_PAPER if filled else _PALE, anchor="middle")  # fmt: skip


def _higher_is_better(steps: Sequence[Mapping[str, Any]]) -> bool:
    return len(steps) > 1 and steps[0]["color"] != "green" and steps[-1]["color"] == "green"


def _example(unit: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """A value that is well."""
    if _higher_is_better(steps):
        return "99.9 %" if unit == "percentunit" else "3"
    if unit == "percentunit" and len(steps) > 1 and steps[1]["value"] < _SHARE:
        return "0 %"
    known = {"percentunit": f"{_SHARE * 100:g} %", "s": "0.3 s", "bytes": "48 MiB", "dateTimeFromNow": "2 hours ago"}
    return "0.4x" if unit == "suffix:x" else known.get(unit, "0")


def _bounds(steps: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Which colours it has, each with the value from which on it has it."""

    def value(number: float) -> str:
        return f"{number * 100:g} %" if unit == "percentunit" else f"{number:g}" + (" s" if unit == "s" else "")

    return ", ".join(f"{step['color']} {value(step['value'])}" for step in steps[1:])


def _time_series(panel: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Iterator[str]:
    legend = panel["options"]["legend"]["placement"] == "right"
    right = x + width * (0.68 if legend else 0.97)
    left, top, bottom = x + 44, y + 6, y + height - (12 if legend else 26)
    unit = panel["fieldConfig"]["defaults"]["unit"].removeprefix("suffix:").strip()
    yield _text(left - 4, top + 8, {"percentunit": "100 %", "short": ""}.get(unit, unit), size=9, color=_PALE,
                anchor="end")  # fmt: skip
    for share in (0, 0.5, 1):
        level = bottom - share * (bottom - top)
        yield f'<path d="M{left:g} {level:g}H{right:g}" stroke="#e4e7e8"/>'
    custom = panel["fieldConfig"]["defaults"]["custom"]
    names = [_legend(target) for target in panel["targets"]][: len(_LINES)]
    for number, (name, color) in enumerate(zip(names, _LINES, strict=False)):
        if custom["drawStyle"] == "bars":
            yield from _bars(left, right, bottom, bottom - top, number, color)
        else:
            yield _line(left, right, bottom, bottom - top, number, color)
        if legend:
            yield _text(right + 10, top + 12 + 15 * number, f"— {name}", size=10, color=color)
    if not legend:
        yield _text(left, y + height - 9, textwrap.shorten("  ".join(f"— {name}" for name in names),
                    max(8, int((right - left) / 5.2)), placeholder="…"), size=10, color=_PALE)  # fmt: skip
    if custom["thresholdsStyle"]["mode"] == "dashed":
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        # What should be high runs above its lines, everything else below.
        first, gap = (0.9, -0.12) if _higher_is_better(steps) else (0.12 * (len(steps) - 1), -0.12)
        for number, step in enumerate(steps[1:]):
            level = top + (first + gap * number) * (bottom - top)
            color = _COLORS.get(step["color"], _INK)
            yield f'<path d="M{left:g} {level:g}H{right:g}" stroke="{color}" stroke-dasharray="6 4"/>'


def _legend(target: Mapping[str, Any]) -> str:
    text: str = target["legendFormat"]
    return text.replace("{{", "").replace("}}", "").strip()


def _line(left: float, right: float, bottom: float, height: float, number: int, color: str) -> str:
    """A made-up course, the same at every run: each line lower than the one before."""
    points = []
    for step in range(13):
        wave = ((step * (7 + number * 3)) % 11) / 11
        level = (0.62 - 0.14 * number) * (0.7 + 0.3 * wave)
        points.append(f"{left + (right - left) * step / 12:.0f} {bottom - height * level:.0f}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="1.4"/>'


def _bars(left: float, right: float, bottom: float, height: float, number: int, color: str) -> Iterator[str]:
    for step in (2 + number, 6, 9 - number):
        top = height * (0.25 + 0.1 * ((step + number) % 4))
        at = left + (right - left) * step / 12 + 7 * number
        yield _bar(at, bottom - top, 6, top, color, "0.7")


def _table(panel: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Iterator[str]:
    organize = next(one for one in panel["transformations"] if one["id"] == "organize")["options"]
    heads = [
        organize["renameByName"][name] for name in sorted(organize["indexByName"], key=organize["indexByName"].get)
    ]
    cell = (width - 16) / len(heads)
    for number, head in enumerate(heads):
        yield _text(x + 8 + cell * number, y + 14, textwrap.shorten(head, max(4, int(cell / 5.6)), placeholder="…"),
                    size=10, bold=True, color="#1f60c4")  # fmt: skip
    for row in range(1, int((height - 12) / 20)):
        level = y + 4 + row * 20
        yield f'<path d="M{x + 8:g} {level - 1:g}H{x + width - 8:g}" stroke="#e4e7e8"/>'
        for number in range(len(heads)):
            length = cell * (0.35 + 0.3 * ((row * 3 + number * 5) % 4) / 4)
            yield _bar(x + 8 + cell * number, level + 6, length, 6, _FRAME, "1")


def _state_timeline(panel: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Iterator[str]:
    lines = 1 if panel["gridPos"]["h"] <= 5 else 2
    left, right = x + 70, x + width - 10
    tall = (height - 16) / lines
    for number in range(lines):
        top = y + 4 + tall * number
        yield _text(left - 6, top + tall / 2 + 4, _legend(panel["targets"][0]), size=10, color=_PALE, anchor="end")
        for start, end, color in ((0.0, 0.55, "green"), (0.55, 0.62, "red"), (0.62, 1.0, "green")):
            long = right - left
            yield _bar(left + long * start, top, long * (end - start) - 1, tall - 6, _COLORS[color], "0.75")


_KINDS: Final[Mapping[str, Callable[..., Iterator[str]]]] = {
    "stat": _stat,
    "timeseries": _time_series,
    "table": _table,
    "state-timeline": _state_timeline,
}


def _box(x: float, y: float, width: float, height: float, *, rounded: int) -> str:
    size = f'width="{width:g}" height="{height:g}" rx="{rounded}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} fill="{_PAPER}" stroke="{_FRAME}"/>'


def _bar(x: float, y: float, width: float, height: float, color: str, opacity: str) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<rect {place} fill="{color}" fill-opacity="{opacity}"/>'


def _text(
    x: float, y: float, text: str, *, size: int, bold: bool = False, color: str = _INK, anchor: str = "start"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}"'
    return f'<text {place} text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.picture", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="write the files")
    parser.add_argument("--out", type=Path, default=PICTURES, help="directory to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents().items():
        (out / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
