"""How many clones of each size should wait: as many as were asked for lately, but at least the configured depth.

Times are seconds of the monotonic clock, and given by the caller.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.vm.machine import Shape

WINDOW_S = 60.0
_WANTED_S = 600.0  # a size that nobody has started for so long gets no new members
_MOST_REMEMBERED = 1024


class Demand:
    """What was asked for. `least` is the depth of every size in use."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._asked: dict[Shape, deque[float]] = {}
        self._always: set[Shape] = set()

    def keep(self, shape: Shape) -> None:
        """Treat a size as in use from now on, whether it is asked for or not."""
        self._always.add(shape)
        self._asked.setdefault(shape, deque(maxlen=_MOST_REMEMBERED))

    def ask(self, shape: Shape, now: float) -> None:
        """Somebody wants a clone of this size."""
        self._asked.setdefault(shape, deque(maxlen=_MOST_REMEMBERED)).append(now)

    def depth(self, shape: Shape, now: float) -> int:
        """How many of this size should wait; 0 for one that is not in use any more."""
        asked = self._asked.get(shape)
        if asked is None:
            return 0
        while len(asked) > 1 and now - asked[0] > WINDOW_S:
            asked.popleft()
        if shape not in self._always and (not asked or now - asked[-1] > _WANTED_S):
            del self._asked[shape]
            return 0
        return max(self._least, sum(now - time <= WINDOW_S for time in asked))

    def shapes(self) -> list[Shape]:
        """The sizes that were asked for."""
        return list(self._asked)
