"""What skopeo draws, and what is taken from it."""

from __future__ import annotations

import pytest

from runtime.images.bars import Bars, parse

ONE, TWO = "sha256:" + "5640f0d1dea2" + "0" * 52, "sha256:" + "98a75e1cae00" + "0" * 52


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Copying blob 5640f0d1dea2 [===>------] 1.5MiB / 10.0MiB", {"5640f0d1dea2": 1_572_864}),
        ("Copying blob 5640f0d1dea2 [----------] 0.0b / 473.0b", {"5640f0d1dea2": 0}),
        (
            ("Copying blob 5640f0d1dea2 [=] 20.0KiB / 1.0MiB\r\n\x1b[1A\x1b[J"
            "Copying blob 5640f0d1dea2 [==] 40.0KiB / 1.0MiB"),
            {"5640f0d1dea2": 40_960},
        ),
        ("Copying config 98a75e1cae [====] 473.0b / 473.0b", {}),
        ("Copying blob 5640f0d1dea2 done  ", {}),
        ("Copying blob 5640f0d1dea2 [=] 1.2.3MiB / 10.0MiB", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_bars_are_bytes(text: str, found: dict[str, int]) -> None:
    assert parse(text) == found


def test_a_layer_is_told_of_when_it_has_moved() -> None:
    bars = Bars({ONE: 10_000_000, TWO: 100})
    bars.feed(b"Copying blob 5640f0d1dea2 [=>--] 2.0M")
    assert bars.moved("downloading") == []
    bars.feed(b"iB / 9.5MiB\r\nCopying blob ffffffffffff [=>--] 2.0MiB / 9.5MiB")
    first = bars.moved("downloading")
    assert [(one.layer, one.current, one.total) for one in first] == [(ONE, 2_097_152, 10_000_000)]
    assert bars.moved("downloading") == [], "the same is not told again"
    bars.feed(b"Copying blob 5640f0d1dea2 [====] 99.0MiB / 9.5MiB")
    assert bars.moved("downloading")[0].current == 10_000_000, "not beyond what the manifest says"
    bars.feed(b"Copying blob 5640f0d1dea2 [=>--] 2.0MiB / 9.5MiB")
    assert bars.moved("downloading") == [], "nothing goes back"
