"""The bench's estimate of a change: what is common to a pair, or one thing's own, is no change; doubt is said."""

from __future__ import annotations

import random

import pytest

from tests.bench.measuring import Estimate, change_percent, goal


def periods(change: float, noise: float, count: int = 40) -> list[list[tuple[float, float]]]:
    """Pairs of two things of which the second costs 7 % more by itself, on a machine that gets slower and slower."""
    draw = random.Random(7)
    found = []
    for having in (1, 0):
        pairs = []
        for number in range(count):
            machine = 1 + number / count + (draw.random() < 0.1) * 2
            costs = [machine * (1 + draw.gauss(0, noise)), machine * (1 + draw.gauss(0, noise)) * 1.07]
            costs[having] *= 1 + change
            pairs.append((costs[1 - having], costs[having]))
        found.append(pairs)
    return found


@pytest.mark.parametrize("change", [0.0, 0.03, 0.2])
def test_a_change_is_found_under_noise_that_is_larger(change: float) -> None:
    found = change_percent(*periods(change, 0.03))
    assert found.low < 100 * change < found.high
    assert found.high - found.low < 6
    assert change_percent(*periods(change, 0.0)).value == pytest.approx(100 * change)


def test_less_noise_or_more_pairs_give_a_narrower_interval() -> None:
    found = (periods(0.05, 0.1), periods(0.05, 0.1, 400), periods(0.05, 0.01))
    widths = [one.high - one.low for one in (change_percent(*pairs) for pairs in found)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Estimate(3.0, 1.0, 4.9), "3.00 [1.00, 4.90], at most 5: reached"),
        (Estimate(3.0, 1.0, 5.1), "3.00 [1.00, 5.10], at most 5: not resolved"),
        (Estimate(7.0, 4.9, 9.0), "7.00 [4.90, 9.00], at most 5: not resolved"),
        (Estimate(7.0, 5.1, 9.0), "7.00 [5.10, 9.00], at most 5: MISSED"),
        (5.0, "5.00, at most 5: reached"),
        (5.1, "5.10, at most 5: MISSED"),
    ],
)
def test_a_goal_in_the_interval_is_not_resolved(
    value: float | Estimate, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    goal("it", value, 5.0)
    assert capsys.readouterr().out == f"it: {says}\n"
