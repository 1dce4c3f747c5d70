from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alerts.remediation.guards import Limits, cooldown_left_s, tokens_left

LIMITS = Limits(bucket_size=3, refill_s=100, cooldown_s=10, cooldown_max_s=60, quiet_s=1000)
times = st.lists(st.floats(0, 1e6), max_size=64).map(sorted)


def test_the_cooldown_doubles_up_to_its_end_and_begins_anew_after_a_quiet_time() -> None:
    assert cooldown_left_s([], 0, LIMITS) == 0
    assert cooldown_left_s([100], 100, LIMITS) == 10
    assert cooldown_left_s([100], 104, LIMITS) == 6
    assert cooldown_left_s([100], 111, LIMITS) == 0
    assert cooldown_left_s([100, 200], 200, LIMITS) == 20
    assert cooldown_left_s([100, 200, 300], 300, LIMITS) == 40
    assert cooldown_left_s([100, 200, 300, 400, 500], 500, LIMITS) == 60
    assert cooldown_left_s([100, 200, 300, 1400], 1400, LIMITS) == 10
    assert cooldown_left_s([100 * n for n in range(2000)], 199_900, LIMITS) == 60


def test_a_clock_that_was_set_back_does_not_prolong_the_pause() -> None:
    assert cooldown_left_s([1_000_000], 5, LIMITS) == 10


def test_a_token_comes_back_in_its_time() -> None:
    assert tokens_left([], 0, LIMITS) == 3
    assert tokens_left([0, 0, 0], 0, LIMITS) == 0
    assert tokens_left([0, 0, 0], 50, LIMITS) == 0.5
    assert tokens_left([0, 0, 0], 100, LIMITS) == 1
    assert tokens_left([0, 0, 0, 100], 100, LIMITS) == 0
    assert tokens_left([0], 10_000, LIMITS) == 3


@given(times, st.floats(0, 1e6))
def test_the_guards_stay_within_their_bounds(acted_at: list[float], now: float) -> None:
    assert 0 <= cooldown_left_s(acted_at, now, LIMITS) <= LIMITS.cooldown_max_s
    assert 0 <= tokens_left(acted_at, now, LIMITS) <= LIMITS.bucket_size


@given(st.integers(1, 200), st.floats(0.1, 50))
def test_no_rhythm_of_alerts_gets_more_than_the_bucket_gives(alerts: int, every_s: float) -> None:
    acted_at: list[float] = []
    for number in range(alerts):
        now = number * every_s
        if not cooldown_left_s(acted_at, now, LIMITS) and tokens_left(acted_at, now, LIMITS) >= 1:
            acted_at.append(now)
    assert len(acted_at) <= LIMITS.bucket_size + alerts * every_s / LIMITS.refill_s + 1
