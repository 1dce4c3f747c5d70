"""Moments as options take them."""

from __future__ import annotations

import time

import pytest

from runtime.cli import moments


@pytest.mark.parametrize(
    ("text", "moment_ns"),
    [
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000_000_000),
        ("99999999999s", 0),
        ("999999999999999ms", 0),
    ],
)
def test_moments(text: str, moment_ns: int) -> None:
    assert moments.moment_ns(text) == moment_ns


def test_how_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert moments.moment_ns("1h1.5s") == 10**18 - 3_601_500_000_000


@pytest.mark.parametrize("text", ["", "soon", "1y", "-1h", f"{'9' * 400}h", "9" * 400])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="or how long ago, such as 10m"):
        moments.moment_ns(text)
