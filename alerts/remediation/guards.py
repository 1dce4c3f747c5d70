"""What holds the controller back: a token bucket and an exponential cooldown per container, and the stop switch.

The guards are pure functions over the times of past actions, which the journal remembers: after a restart the
controller is as careful as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """How often one container may be acted on. All times in seconds.

    Attributes:
        bucket_size: Actions at once, from a full bucket.
        refill_s: Time in which one token comes back.
        cooldown_s: Pause after the first action; doubles with each that follows.
        cooldown_max_s: Longest pause.
        quiet_s: A container that needed nothing for so long starts again at the shortest pause.
    """

    bucket_size: int = 5
    refill_s: float = 1800.0
    cooldown_s: float = 60.0
    cooldown_max_s: float = 3600.0
    quiet_s: float = 7200.0


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


def tokens_left(acted_at: Sequence[float], now: float, limits: Limits) -> float:
    """Tokens in the bucket now, given the times of past actions, oldest first."""
    tokens = float(limits.bucket_size)
    since: float | None = None
    for at in acted_at:
        if since is not None:
            tokens = min(limits.bucket_size, tokens + max(0.0, at - since) / limits.refill_s)
        tokens = max(0.0, tokens - 1.0)
        since = at
    if since is None:
        return tokens
    return min(limits.bucket_size, tokens + max(0.0, now - since) / limits.refill_s)
