"""How many clones of each kind should wait: as many as were asked for lately, but at least the configured depth.

A kind is a size, and with an image a size for that image, which begins to count when it is asked for a second time.

Times are seconds of the monotonic clock, and given by the caller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.vm.machine import Shape

WINDOW_S = 60.0
_WANTED_S = 600.0  # a kind that nobody has started for so long gets no new members
_MOST_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """What members there are of: `image` is the file of the one that they are for; None: for any."""

    shape: Shape
    image: Path | None = None


class Demand:
    """What was asked for. `least` is the depth of every kind in use."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._asked: dict[Kind, deque[float]] = {}
        self._once: dict[Kind, float] = {}  # with an image, and asked for once: when
        self._always: set[Kind] = set()

    def keep(self, kind: Kind) -> None:
        """Treat a kind as in use from now on, whether it is asked for or not."""
        self._always.add(kind)
        self._asked.setdefault(kind, deque(maxlen=_MOST_REMEMBERED))

    def ask(self, kind: Kind, now: float) -> None:
        """Somebody wants a clone for this image. It is the first time: one for any is what they can have."""
        self._once = {one: time for one, time in self._once.items() if now - time <= _WANTED_S}
        if kind not in self._asked and self._once.pop(kind, None) is None:
            self._once[kind] = now
            kind = Kind(kind.shape)
        self._asked.setdefault(kind, deque(maxlen=_MOST_REMEMBERED)).append(now)

    def depth(self, kind: Kind, now: float) -> int:
        """How many of this kind should wait; 0 for one that is not in use any more."""
        asked = self._asked.get(kind)
        if asked is None:
            return 0
        while len(asked) > 1 and now - asked[0] > WINDOW_S:
            asked.popleft()
        if kind not in self._always and (not asked or now - asked[-1] > _WANTED_S):
            del self._asked[kind]
            return 0
        return max(self._least, sum(now - time <= WINDOW_S for time in asked))

    def forget(self, kind: Kind) -> None:
        """As if it had never been asked for."""
        self._asked.pop(kind, None)

    def last_asked(self, kind: Kind) -> float:
        """When it was asked for last."""
        asked = self._asked.get(kind)
        return asked[-1] if asked else float("-inf")

    def kinds(self) -> list[Kind]:
        """The kinds that are in use."""
        return list(self._asked)
