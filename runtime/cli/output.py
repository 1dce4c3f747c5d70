"""Tables, JSON, sizes and times as `docker` prints them."""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = 3
MIN_COLUMN = 8
_AGES = (
    (60, 1, "seconds", ""),
    (120, 60, "minute", "About a minute"),
    (3600, 60, "minutes", ""),
    (7200, 3600, "hour", "About an hour"),
    (48 * 3600, 3600, "hours", ""),
    (14 * 86400, 86400, "days", ""),
    (60 * 86400, 7 * 86400, "weeks", ""),
    (730 * 86400, 30 * 86400, "months", ""),
)


def clean(text: str) -> str:
    """Text from elsewhere on one line, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " if char in "\n\t\r" else "?" for char in text)


def print_json(value: object) -> None:
    """One JSON document, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def short_id(text: str) -> str:
    """Twelve digits of an id or a digest."""
    return text.rpartition(":")[2][:12]


def age(seconds: float) -> str:
    """A duration in Docker's words: `3 minutes`, `About an hour`."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    for limit, unit, name, words in _AGES:
        if seconds < limit:
            return words or f"{int(seconds // unit)} {name}"
    return f"{int(seconds // (365 * 86400))} years"


def ago(timestamp: float | None) -> str:
    """`3 minutes ago`; `N/A` for a time that is not known."""
    return "N/A" if timestamp is None else f"{age(max(0.0, time.time() - timestamp))} ago"


def moment(timestamp: float | None) -> str:
    """`2026-01-31 12:00:00 +0000 UTC`, as Docker writes a time; `N/A` for one that is not known."""
    if timestamp is None:
        return "N/A"
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(timestamp))


def decimal_size(size_bytes: float) -> str:
    """Bytes by thousands with up to four digits, as Docker prints images and traffic: `1.98MB`."""
    return _size(size_bytes, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"), 3)


def binary_size(size_bytes: float) -> str:
    """Bytes by 1024, as Docker prints memory: `23.4MiB`."""
    return _size(size_bytes, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 4)


def _size(value: float, base: float, units: Sequence[str], digits: int) -> str:
    index = 0
    while value >= base and index < len(units) - 1:
        value /= base
        index += 1
    return f"{value:.{digits}g}{units[index]}" if value < 1000 else f"{value:.0f}{units[index]}"


def terminal_width() -> int | None:
    """Columns to fit into: COLUMNS, else the terminal's; None if the output goes elsewhere."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    keep: Sequence[str] = (),
) -> str:
    """A table with a heading, columns three apart.

    With a width, the widest columns are shortened until it fits, but for those to keep and never below eight
    characters.
    """
    cells = [[clean(cell) for cell in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    if width is not None:
        while sum(widths) + GAP * (len(widths) - 1) > width:
            shrinkable = [
                column
                for column, header in enumerate(headers)
                if header not in keep and widths[column] > max(MIN_COLUMN, len(header))
            ]
            if not shrinkable:
                break
            widths[max(shrinkable, key=widths.__getitem__)] -= 1
    lines = []
    for row in cells:
        fitted = [_shorten(cell, limit).ljust(limit) for cell, limit in zip(row, widths, strict=True)]
        lines.append((" " * GAP).join(fitted).rstrip())
    return "\n".join(lines)


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
