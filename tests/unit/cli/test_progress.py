"""What is shown of a pull."""

from __future__ import annotations

import io
from typing import Any

from runtime.cli import images

LAYER = "sha256:" + "ab" * 32
EVENTS: list[dict[str, Any]] = [
    {"status": "downloading", "layer": None, "current": 1_000_000, "total": 2_000_000},
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


def test_a_layer_that_has_come_has_a_line_above_the_bar(monkeypatch: Any) -> None:
    text = shown(monkeypatch, Terminal())
    left = [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]
    assert left == ["ab" * 6 + ": downloaded 1.5MB", "shop/web:1: unpacking", ""]
    assert f"\r\x1b[Kshop/web:1: downloading [{'=' * 30}] 2MB/2MB\r" in text


def test_elsewhere_there_is_a_line_for_each_step(monkeypatch: Any) -> None:
    assert shown(monkeypatch, io.StringIO()) == "shop/web:1: downloading\nshop/web:1: unpacking\n"


def test_quiet_is_quiet(monkeypatch: Any) -> None:
    assert shown(monkeypatch, Terminal(), quiet=True) == ""
