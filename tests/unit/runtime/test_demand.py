"""How many clones should wait, by what was asked for."""

from __future__ import annotations

from pathlib import Path

from runtime.vm.demand import WINDOW_S, Demand, Kind
from runtime.vm.machine import Shape

SMALL, LARGE = Kind(Shape(192 << 20, 1, "tcg")), Kind(Shape(1 << 30, 2, "tcg"))
SHOP = Kind(SMALL.shape, Path("/images/shop.erofs"))


def test_a_size_that_nobody_asked_for_gets_none_unless_it_is_kept() -> None:
    demand = Demand(2)
    assert (demand.depth(SMALL, 0.0), demand.kinds()) == (0, [])
    demand.keep(SMALL)
    assert (demand.depth(SMALL, 1e9), demand.kinds()) == (2, [SMALL])


def test_more_wait_while_more_are_asked_for() -> None:
    demand = Demand(2)
    for second in range(7):
        demand.ask(LARGE, float(second))
    assert demand.depth(LARGE, 7.0) == 7
    assert demand.depth(LARGE, WINDOW_S + 3.5) == 3, "four of them are too long ago"
    assert demand.depth(LARGE, 2 * WINDOW_S) == 2


def test_a_size_is_forgotten_after_a_while_and_not_the_one_that_is_kept() -> None:
    demand = Demand(1)
    demand.keep(SMALL)
    demand.ask(SMALL, 0.0)
    demand.ask(LARGE, 0.0)
    assert demand.depth(LARGE, 599.0) == 1
    assert demand.depth(LARGE, 601.0) == 0
    assert (demand.depth(SMALL, 601.0), demand.kinds()) == (1, [SMALL])


def test_a_burst_is_remembered_up_to_a_bound() -> None:
    demand = Demand(1)
    for _ in range(5000):
        demand.ask(SMALL, 1.0)
    assert demand.depth(SMALL, 1.0) == 1024


def test_an_image_gets_its_own_when_it_is_started_again() -> None:
    demand = Demand(2)
    demand.ask(SHOP, 0.0)
    assert (demand.depth(SHOP, 0.0), demand.kinds()) == (0, [SMALL])
    demand.ask(SHOP, 10.0)
    demand.ask(SHOP, 11.0)
    assert (demand.depth(SHOP, 11.0), demand.depth(SMALL, 11.0)) == (2, 2)
    for second in range(12, 17):
        demand.ask(SHOP, float(second))
    assert (demand.depth(SHOP, 17.0), demand.depth(SMALL, 17.0)) == (7, 2), "of the others no more than before"
    assert (demand.depth(SHOP, 1000.0), demand.depth(SMALL, 1000.0)) == (0, 0)
    demand.ask(SHOP, 1000.0)
    demand.ask(SHOP, 1000.0)
    demand.forget(SHOP)
    assert demand.depth(SHOP, 1000.0) == 0
    demand.ask(SHOP, 1001.0)
    assert demand.kinds() == [SMALL], "after so long it is a first time"
    demand.ask(SHOP, 1700.0)
    assert demand.kinds() == [SMALL]
