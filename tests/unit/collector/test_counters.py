"""A counter stays at its highest of an epoch, whatever else comes and goes beside it."""

from __future__ import annotations

import pytest

from collector.counters import Floors
from collector.definitions import container
from collector.snapshot import Point


def points(*values: float, memory: float | None = 7.0) -> list[Point]:
    """Bytes received by interface, and a gauge before them unless it is None."""
    gauge = [] if memory is None else [Point(container.MEMORY_USAGE_BYTES, (), memory)]
    return gauge + [
        Point(container.NETWORK_RECEIVE_BYTES_TOTAL, (f"eth{number}",), value) for number, value in enumerate(values)
    ]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_counter_that_goes_back_stays_where_it_was(rounds: int) -> None:
    floors = Floors()
    for value in range(rounds):
        grown = points(10 + value, 20 + value)
        assert floors.apply(grown) == (grown, [])
    highest = 9 + rounds
    name = container.NETWORK_RECEIVE_BYTES_TOTAL.name
    assert floors.apply(points(5, 100)) == (points(highest, 100), [name])
    assert floors.apply(points(5, 99)) == (points(highest, 100), [name, name])
    assert floors.apply(points(highest, 100)) == (points(highest, 100), [])


def test_a_gauge_may_fall() -> None:
    floors = Floors()
    for memory in (7.0, 9.0, 3.0):
        assert floors.apply(points(1, memory=memory)) == (points(1, memory=memory), [])


def test_a_series_that_was_away_comes_back_above_its_floor() -> None:
    floors = Floors()
    for value in (10, 20, 30):
        floors.apply(points(value, value))
    for more in (40, 50):
        assert floors.apply(points(more)) == (points(more), [])
    assert floors.apply(points(60, 25, memory=None))[0] == points(60, 30, memory=None)


def test_a_series_is_there_once() -> None:
    floors = Floors()
    for _ in range(3):
        assert floors.apply(points(1) + points(2, memory=8.0)) == (points(1), [])


def test_a_counter_of_32_bits_begins_again() -> None:
    floors = Floors()
    for value in (4_294_967.2, 0.1, 0.3):
        (point,) = busy = [Point(container.FS_IO_TIME_SECONDS_TOTAL, ("/dev/vdb",), value)]
        assert floors.apply([*busy, *points(1)]) == ([point, *points(1)], [])
    assert floors.apply([*busy, *points(0)]) == ([*busy, *points(1)], [points(1)[-1].metric.name])
