"""Whether a new container does as well as the old one: properties of the comparison, and each threshold by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.changes import comparison
from runtime.changes.comparison import Seen, compare

LIMIT = 1 << 30
CHECK = ("/bin/check",)
STALLS = [(resource, kind) for resource in comparison.RESOURCES for kind in comparison.KINDS]
WELL = Seen(
    looks=10, answers=10, oom_kills=0, memory_bytes=100 << 20, memory_limit_bytes=LIMIT, cpu_cores=0.5, checked=True,
    check=CHECK, check_times_s=(0.01, 0.02, 0.02, 0.03, 9.0), stalled=dict.fromkeys(STALLS, 0.01), pressure_s=10.0,
    host_wait_s=0.0,
)  # fmt: skip
SIGNALS = (
    "exits", "failed health checks", "killed for memory", "latency", "cpu pressure", "memory pressure", "io pressure",
    "memory", "cpu",
)  # fmt: skip


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
        check=draw(st.sampled_from([(), CHECK, ("other",)])),
        check_times_s=tuple(draw(st.lists(st.floats(0, 10), max_size=8))),
        stalled=draw(st.dictionaries(st.sampled_from(STALLS), st.floats(0, 1))),
        pressure_s=draw(st.floats(0, 600)),
        host_wait_s=draw(st.none() | st.floats(0, 100)),
    )


@given(seen(), seen())
def test_the_verdict_follows_from_the_rows(old: Seen, new: Seen) -> None:
    rows, verdict = compare(old, new)
    said = {row.verdict for row in rows}
    assert (verdict == "worse") == ("worse" in said)
    assert (verdict == "inconclusive") == ("unknown" in said and "worse" not in said)
    assert tuple(row.signal for row in rows) == SIGNALS
    assert all(row.old and row.new for row in rows)
    assert all(row.why for row in rows if row.verdict == "silent")
    assert all(row.signal in comparison.silence(rows) for row in rows if row.verdict == "silent")
    assert all(row.signal in comparison.doubt(rows, "web") for row in rows if row.verdict == "unknown")


@given(seen(), seen())
def test_nothing_well_is_said_of_what_was_not_seen(old: Seen, new: Seen) -> None:
    blind = dataclasses.replace(new, answers=0, looks=10)
    assert compare(old, blind)[1] != "well"
    if old.running:
        assert compare(dataclasses.replace(old, answers=0, looks=10), new)[1] != "well"


@given(seen(), seen())
def test_a_new_one_that_ended_was_killed_or_is_unhealthy_is_worse(old: Seen, new: Seen) -> None:
    for bad in ({"exits": 1}, {"oom_kills": 1}, {"unhealthy": True, "checked": True}):
        assert compare(old, dataclasses.replace(new, **bad))[1] == "worse"


@given(seen(), seen(), st.none() | st.floats(0, 100))
def test_what_the_host_let_wait_makes_no_verdict(old: Seen, new: Seen, more_s: float | None) -> None:
    """The longer it did, the less is said: what was worse or better may become nothing, and never the other way."""

    def waited(one: Seen) -> Seen:
        longer = None if more_s is None or one.host_wait_s is None else one.host_wait_s + more_s
        return dataclasses.replace(one, host_wait_s=longer)

    for less, more in zip(compare(old, new)[0], compare(waited(old), waited(new))[0], strict=True):
        by_host = less.signal == "latency" or less.signal.endswith("pressure")
        assert (more.verdict == less.verdict) or (by_host and more.verdict in {"same", "silent", "unknown"})
        if more_s is None and by_host:
            assert more.verdict in {"same", "silent", "unknown"}


@given(seen())
def test_who_does_the_same_is_not_worse(one: Seen) -> None:
    same = dataclasses.replace(one, exits=0, oom_kills=one.oom_kills and 0, unhealthy=False, running=True)
    assert compare(same, same)[1] in ("well", "inconclusive")


@given(seen(), seen(), st.integers(0, LIMIT), st.floats(0, 16))
def test_more_of_it_never_does_better(old: Seen, new: Seen, memory_bytes: int, cores: float) -> None:
    rank = {"better": 0, "same": 1, "silent": 1, "unknown": 1, "worse": 2}
    more = dataclasses.replace(
        new,
        memory_bytes=None if new.memory_bytes is None else new.memory_bytes + memory_bytes,
        cpu_cores=None if new.cpu_cores is None else new.cpu_cores + cores,
        failed_checks=new.failed_checks + 1,
        check_times_s=tuple(one + cores for one in new.check_times_s),
        stalled={key: min(one + cores, 1.0) for key, one in new.stalled.items()},
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


# --- latency and pressure


def latency(median_s: float, count: int = 5, **members: Any) -> Seen:
    return dataclasses.replace(WELL, check_times_s=(median_s,) * count, **members)


def pressure(resource: comparison.Resource, kind: comparison.Kind, share: float, **members: Any) -> Seen:
    return dataclasses.replace(WELL, stalled={**WELL.stalled, (resource, kind): share}, **members)


def said(old: Seen, new: Seen, signal: str) -> tuple[str, str]:
    """What follows of one signal, and the verdict on all."""
    rows, verdict = compare(old, new)
    return next(row.verdict for row in rows if row.signal == signal), verdict


def test_the_median_of_the_checks_is_compared() -> None:
    most = 0.2 * comparison.LATENCY_RATIO + comparison.LATENCY_SLACK_S
    assert said(latency(0.2), latency(most), "latency") == ("same", "well")
    assert said(latency(0.2), latency(most * 1.01), "latency") == ("worse", "worse")
    assert said(latency(most * 1.01), latency(0.2), "latency") == ("better", "well")
    # Ten times as long is not worse where it is nothing that anybody would feel.
    assert said(latency(0.005), latency(0.05), "latency") == ("same", "well")
    slow_once = dataclasses.replace(WELL, check_times_s=(0.02, 0.02, 0.02, 5.0, 5.0))
    assert said(latency(0.02), slow_once, "latency") == ("same", "well")


def test_times_that_cannot_be_compared_say_nothing() -> None:
    slow = latency(9.0)
    for old, new, why in (
        (WELL, latency(9.0, comparison.MIN_CHECKS - 1), "fewer than 5 checks"),
        (latency(0.01, 4), slow, "fewer than 5 checks"),
        (WELL, dataclasses.replace(slow, check=("other",)), "another health check"),
        (dataclasses.replace(WELL, check=()), slow, "no health check"),
        (Seen(running=False), slow, "the old one does not run"),
    ):
        rows, verdict = compare(old, new)
        (row,) = (row for row in rows if row.signal == "latency")
        assert (row.verdict, row.why, verdict) == ("silent", why, "well")


@pytest.mark.parametrize("resource", comparison.RESOURCES)
@pytest.mark.parametrize("kind", comparison.KINDS)
def test_pressure_by_some_tasks_or_all(resource: comparison.Resource, kind: comparison.Kind) -> None:
    signal = f"{resource} pressure"
    most = 0.01 * comparison.PRESSURE_RATIO + comparison.PRESSURE_SLACK[resource]
    assert said(WELL, pressure(resource, kind, most), signal) == ("same", "well")
    assert said(WELL, pressure(resource, kind, most * 1.01), signal) == ("worse", "worse")
    assert said(pressure(resource, kind, most * 1.01), WELL, signal) == ("better", "well")


def test_pressure_of_a_moment_or_of_no_psi_says_nothing() -> None:
    stalls = pressure("cpu", "some", 0.9)
    for new in (
        dataclasses.replace(stalls, pressure_s=comparison.MIN_PRESSURE_S / 2),
        dataclasses.replace(stalls, looks=4, answers=4),
        dataclasses.replace(stalls, stalled={}),
    ):
        assert said(WELL, new, "cpu pressure") == ("silent", "well")


@pytest.mark.parametrize("host_wait_s", [None, 5.0], ids=["not told", "waited"])
@pytest.mark.parametrize("signal", ["latency", "io pressure"])
def test_what_may_be_the_hosts_doing_is_asked_about(signal: str, host_wait_s: float | None) -> None:
    """It can only make things worse: what does well all the same does well, and no baseline is what waited."""

    def of(value: float, **members: Any) -> Seen:
        return latency(value, **members) if signal == "latency" else pressure("io", "some", value, **members)

    waited = {"host_wait_s": host_wait_s}
    assert said(of(0.01), of(0.9), signal) == ("worse", "worse")
    assert said(of(0.01), of(0.9, **waited), signal) == ("unknown", "inconclusive")
    assert said(of(0.01, **waited), of(0.9), signal) == ("worse", "worse")
    assert said(of(0.01), of(0.02, **waited), signal) == ("same", "well")
    assert said(of(0.5, **waited), of(0.6), signal) == ("silent", "well")
    assert said(of(0.9, **waited), of(0.01), signal) == ("same", "well")
    rows, _ = compare(of(0.01), of(0.9, **waited))
    assert "host" in comparison.doubt(rows, "web")
    assert comparison.silence(rows) == ""


def test_what_the_host_cannot_have_caused_is_the_images() -> None:
    """Five checks of two seconds each are ten; a VM that waited for one of them took the others by itself."""
    assert said(latency(0.01), latency(2.0, host_wait_s=1.0), "latency") == ("worse", "worse")
    assert said(latency(0.01), latency(2.0, host_wait_s=3.0), "latency") == ("unknown", "inconclusive")
    assert said(WELL, pressure("io", "some", 0.9, host_wait_s=1.0), "io pressure") == ("worse", "worse")
    assert said(WELL, pressure("io", "some", 0.9, host_wait_s=4.0), "io pressure") == ("unknown", "inconclusive")


def test_memory_near_the_limit_is_worse_only_if_the_old_one_was_not() -> None:
    near = dataclasses.replace(WELL, memory_bytes=int(LIMIT * comparison.MEMORY_NEAR_LIMIT) + 1)
    old = dataclasses.replace(WELL, memory_bytes=int(LIMIT * comparison.MEMORY_NEAR_LIMIT) - (1 << 20))
    assert compare(old, near)[1] == "worse"
    assert compare(near, near)[1] == "well"


def test_one_that_does_not_run_is_judged_by_the_limits_alone() -> None:
    gone = Seen(running=False, looks=10)
    assert compare(gone, WELL)[1] == "well"
    assert compare(gone, dataclasses.replace(WELL, memory_bytes=LIMIT))[1] == "worse"
