"""What is shown of a pull."""

from __future__ import annotations

import io
import re
from typing import Any

from runtime.cli import images

LAYER = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
EVENTS: list[dict[str, Any]] = [
    {"status": "downloading", "layer": None, "current": 1_000_000, "total": 2_000_000},
    {"status": "downloading", "layer": LAYER, "current": 750_000, "total": 1_500_000},
    {"status": "downloading", "layer": OTHER, "current": 100_000, "total": 500_000},
    {"status": "downloaded", "layer": LAYER, "current": 1_500_000, "total": 1_500_000},
    {"status": "downloading", "layer": None, "current": 2_000_000, "total": 2_000_000},
    {"status": "unpacking", "layer": None, "current": None, "total": None},
    {"image": {"digest": LAYER}},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


def shown(monkeypatch: Any, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    assert images.follow(iter(EVENTS), "shop/web:1", "pull", quiet=quiet) == EVENTS[-1]
    return stream.getvalue()


def screen(text: str) -> list[list[str]]:
    """What is on the terminal after each piece that was drawn: lines, by the few sequences that are used."""
    lines, row, seen = [""], 0, []
    for part in re.split(r"(\r|\n|\x1b\[\d*[AJ])", text):
        if part == "\n":
            row += 1
            lines[row:] = lines[row:] or [""]
        elif part.endswith("A"):
            row -= int(part[2:-1])
        elif part.endswith("J"):
            seen.append([line for line in lines if line])
            lines[row:] = [""]
        elif part != "\r":
            lines[row] += part
    return [*seen, [line for line in lines if line]]


def test_each_layer_has_a_bar_and_one_that_has_come_a_line_above_them(monkeypatch: Any) -> None:
    seen = screen(shown(monkeypatch, Terminal()))
    half = f"[{'=' * 15 + '>':30}]"
    assert [f"{'ab' * 6}: downloading {half} 750kB/1.5MB", f"shop/web:1: downloading {half} 1MB/2MB"] in seen
    assert [
        f"{'ab' * 6}: downloaded 1.5MB",
        f"{'cd' * 6}: downloading [{'=' * 6 + '>':30}] 100kB/500kB",
        f"shop/web:1: downloading [{'=' * 30}] 2MB/2MB",
    ] in seen
    assert seen[-1] == [f"{'ab' * 6}: downloaded 1.5MB", "shop/web:1: unpacking"]


def test_elsewhere_there_is_a_line_for_each_step(monkeypatch: Any) -> None:
    assert shown(monkeypatch, io.StringIO()) == "shop/web:1: downloading\nshop/web:1: unpacking\n"


def test_quiet_is_quiet(monkeypatch: Any) -> None:
    assert shown(monkeypatch, Terminal(), quiet=True) == ""
