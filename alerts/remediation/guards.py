"""What holds the controller back: token buckets per container and host, a growing cooldown, one rollback at a time.

A container here is its tenant and name, as a change of image makes a new id. The guards are pure functions over the
times of past actions, which the journal remembers: after a restart the controller is as careful as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """How often one container, and all of a host, may be acted on. All times in seconds.

    Attributes:
        bucket_size: Actions at once, from a full bucket.
        refill_s: Time in which one token comes back.
        cooldown_s: Pause after the first action; doubles with each that follows.
        cooldown_max_s: Longest pause.
        quiet_s: A container that needed nothing for so long starts again at the shortest pause.
        host_bucket_size: Actions at once on all containers of the host, from a full bucket.
        host_refill_s: Time in which one token of the host comes back.
        rollback_window_s: A container is rolled back at most once in this time.
        change_window_s: How long after a change of image trouble is taken for its consequence.
        recovery_s: An action after which nothing was needed for so long has helped.
        give_up_count: After so many actions that did not help it is quarantine's turn.
    """

    bucket_size: int = 5
    refill_s: float = 1800.0
    cooldown_s: float = 60.0
    cooldown_max_s: float = 3600.0
    quiet_s: float = 7200.0
    host_bucket_size: int = 20
    host_refill_s: float = 180.0
    rollback_window_s: float = 3600.0
    change_window_s: float = 3600.0
    recovery_s: float = 1800.0
    give_up_count: int = 3


def cooldown_left_s(acted_at: Sequence[float], now: float, limits: Limits) -> float:
    """How long to wait, given the times of past actions, oldest first; 0 if there is nothing to wait for."""
    if not acted_at:
        return 0.0
    streak = 1
    for earlier, later in zip(reversed(acted_at[:-1]), reversed(acted_at[1:]), strict=True):
        if later - earlier > limits.quiet_s:
            break
        streak += 1
    # A power beyond what the cap can hold would overflow for a long streak.
    pause_s = min(limits.cooldown_max_s, limits.cooldown_s * 2.0 ** min(streak - 1, 32))
    # A clock that was set back must not prolong the pause.
    return max(0.0, min(pause_s, acted_at[-1] + pause_s - now))


def streak(acted_at: Sequence[float], now: float, recovery_s: float) -> int:
    """How many actions, each within `recovery_s` of the next, lead up to now without having helped."""
    count, after = 0, now
    for at in reversed(acted_at):
        if after - at > recovery_s:
            break
        count, after = count + 1, at
    return count


def tokens_left(acted_at: Sequence[float], now: float, limits: Limits) -> float:
    """Tokens in the container's bucket now, given the times of past actions, oldest first."""
    return _bucket(acted_at, now, limits.bucket_size, limits.refill_s)


def host_tokens_left(acted_at: Sequence[float], now: float, limits: Limits) -> float:
    """Tokens in the host's bucket now, given the times of past actions on all its containers, oldest first."""
    return _bucket(acted_at, now, limits.host_bucket_size, limits.host_refill_s)


def _bucket(acted_at: Sequence[float], now: float, size: int, refill_s: float) -> float:
    tokens = float(size)
    since: float | None = None
    for at in acted_at:
        if since is not None:
            tokens = min(size, tokens + max(0.0, at - since) / refill_s)
        tokens = max(0.0, tokens - 1.0)
        since = at
    if since is None:
        return tokens
    return min(size, tokens + max(0.0, now - since) / refill_s)
