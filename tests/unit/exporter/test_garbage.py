"""Cycles are looked for between rounds, and only if there may be many."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from exporter.main import GARBAGE_LIMIT, look_for_garbage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_in_the_exporter() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Cycle:
    def __init__(self) -> None:
        self.me = self


def cycles(count: int) -> weakref.ref[Cycle]:
    made = [Cycle() for _ in range(count)]
    return weakref.ref(made[0])


def test_a_few_stay_for_now() -> None:
    first = cycles(GARBAGE_LIMIT // 10)
    look_for_garbage()
    assert first() is not None


def test_many_are_freed() -> None:
    first = cycles(GARBAGE_LIMIT)
    look_for_garbage()
    assert first() is None


def test_what_is_in_use_costs_nothing_again() -> None:
    kept = [(number, str(number)) for number in range(2 * GARBAGE_LIMIT)]
    look_for_garbage()
    before = gc.get_stats()[2]["collections"]
    look_for_garbage()
    assert gc.get_stats()[2]["collections"] == before
    assert kept
