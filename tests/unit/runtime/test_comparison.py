"""Whether a new container does as well as the old one: properties of the comparison, and each threshold by itself."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.changes import comparison
from runtime.changes.comparison import Seen, compare

LIMIT = 1 << 30
WELL = Seen(
    looks=10, answers=10, oom_kills=0, memory_bytes=100 << 20, memory_limit_bytes=LIMIT, cpu_cores=0.5, checked=True
)


@st.composite
def seen(draw: st.DrawFn) -> Seen:
    looks = draw(st.integers(0, 100))
    return Seen(
        running=draw(st.booleans()),
        looks=looks,
        answers=draw(st.integers(0, looks)),
        exits=draw(st.integers(0, 3)),
        failed_checks=draw(st.integers(0, 5)),
        unhealthy=draw(st.booleans()),
        checked=draw(st.booleans()),
        oom_kills=draw(st.none() | st.integers(0, 3)),
        memory_bytes=draw(st.none() | st.integers(0, 2 * LIMIT)),
        memory_limit_bytes=draw(st.sampled_from([0, LIMIT])),
        cpu_cores=draw(st.none() | st.floats(0, 16)),
    )


@given(seen(), seen())
def test_the_verdict_follows_from_the_rows(old: Seen, new: Seen) -> None:
    rows, verdict = compare(old, new)
    said = {row.verdict for row in rows}
    assert (verdict == "worse") == ("worse" in said)
    assert (verdict == "inconclusive") == ("unknown" in said and "worse" not in said)
    assert len({row.signal for row in rows}) == len(rows) == 5
    assert all(row.old and row.new for row in rows)


@given(seen(), seen())
def test_nothing_well_is_said_of_what_was_not_seen(old: Seen, new: Seen) -> None:
    blind = dataclasses.replace(new, answers=0, looks=10)
    assert compare(old, blind)[1] != "well"
    if old.running:
        assert compare(dataclasses.replace(old, answers=0, looks=10), new)[1] != "well"


@given(seen(), seen())
def test_a_new_one_that_ended_was_killed_or_is_unhealthy_is_worse(old: Seen, new: Seen) -> None:
    for bad in ({"exits": 1}, {"oom_kills": 1}, {"unhealthy": True, "checked": True}):
        assert compare(old, dataclasses.replace(new, **bad))[1] == "worse"  # type: ignore[arg-type]  # by name


@given(seen())
def test_who_does_the_same_is_not_worse(one: Seen) -> None:
    same = dataclasses.replace(one, exits=0, oom_kills=one.oom_kills and 0, unhealthy=False, running=True)
    assert compare(same, same)[1] in ("well", "inconclusive")


@given(seen(), seen(), st.integers(0, LIMIT), st.floats(0, 16))
def test_more_of_it_never_does_better(old: Seen, new: Seen, memory_bytes: int, cores: float) -> None:
    rank = {"better": 0, "same": 1, "unknown": 1, "worse": 2}
    more = dataclasses.replace(
        new,
        memory_bytes=None if new.memory_bytes is None else new.memory_bytes + memory_bytes,
        cpu_cores=None if new.cpu_cores is None else new.cpu_cores + cores,
        failed_checks=new.failed_checks + 1,
    )
    for less_row, more_row in zip(compare(old, new)[0], compare(old, more)[0], strict=True):
        assert rank[more_row.verdict] >= rank[less_row.verdict]


@pytest.mark.parametrize(
    ("changes", "signal"),
    [
        ({"memory_bytes": int((100 << 20) * comparison.MEMORY_RATIO) + comparison.MEMORY_SLACK_BYTES}, "memory"),
        ({"cpu_cores": 0.5 * comparison.CPU_RATIO + comparison.CPU_SLACK_CORES}, "cpu"),
    ],
)
def test_a_threshold_may_be_reached_and_not_passed(changes: dict[str, float], signal: str) -> None:
    at = dataclasses.replace(WELL, **changes)  # type: ignore[arg-type]  # by name
    assert compare(WELL, at)[1] == "well"
    ((name, value),) = changes.items()
    rows, verdict = compare(WELL, dataclasses.replace(at, **{name: value * 1.01 + 1}))  # type: ignore[arg-type]  # same
    assert verdict == "worse"
    assert [row.signal for row in rows if row.verdict == "worse"] == [signal]


def test_memory_near_the_limit_is_worse_only_if_the_old_one_was_not() -> None:
    near = dataclasses.replace(WELL, memory_bytes=int(LIMIT * comparison.MEMORY_NEAR_LIMIT) + 1)
    old = dataclasses.replace(WELL, memory_bytes=int(LIMIT * comparison.MEMORY_NEAR_LIMIT) - (1 << 20))
    assert compare(old, near)[1] == "worse"
    assert compare(near, near)[1] == "well"


def test_one_that_does_not_run_is_judged_by_the_limits_alone() -> None:
    gone = Seen(running=False, looks=10)
    assert compare(gone, WELL)[1] == "well"
    assert compare(gone, dataclasses.replace(WELL, memory_bytes=LIMIT))[1] == "worse"
