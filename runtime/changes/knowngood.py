"""When a revision is known to be good: it has run for a while, healthy if it has a check, and was not started again."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from runtime.changes.book import Book
    from runtime.life import Container, Lives
    from runtime.record import Lifecycle

log = logging.getLogger(__name__)

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 5.0


class KnownGood:
    """Looks at all containers every now and then, and marks revisions in the book."""

    def __init__(self, lives: Lives, book: Book, after_s: float) -> None:
        self._lives = lives
        self._book = book
        self._after_s = after_s
        self._since: dict[str, tuple[int, float]] = {}  # by id: its epoch, and since when it has been well in it
        self._marked: dict[str, int] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        interval_s = min(max(self._after_s / 4, _MIN_INTERVAL_S), _MAX_INTERVAL_S)
        while True:
            try:
                self.look(time.time())
            except (RuntimeFault, OSError) as err:
                log.warning("known good images cannot be written down: %s", err)
            await asyncio.sleep(interval_s)

    def look(self, now: float) -> None:
        """Mark what has been well for long enough."""
        containers = self._lives.all()
        for one in containers:
            if self._marked.get(one.id) != one.record.revision and self._well_since(one, now) <= now - self._after_s:
                self._book.mark_good(one.record, now)
                self._marked[one.id] = one.record.revision
        known = {one.id for one in containers}
        for gone in [id_ for id_ in {*self._since, *self._marked} if id_ not in known]:
            self._since.pop(gone, None)
            self._marked.pop(gone, None)

    def _well_since(self, container: Container, now: float) -> float:
        lifecycle = container.record.lifecycle
        if not is_well(lifecycle):
            self._since.pop(container.id, None)
            return now
        # One without a check has been well since its start, whoever was looking.
        began = (lifecycle.started_at or now) if lifecycle.health == "none" else now
        epoch, since = self._since.setdefault(container.id, (lifecycle.epoch, began))
        if epoch != lifecycle.epoch:
            self._since[container.id] = lifecycle.epoch, began
            return began
        return since


def is_well(lifecycle: Lifecycle) -> bool:
    """Whether a container runs, and is healthy if it has a check."""
    return lifecycle.state == "running" and lifecycle.health in {"none", "healthy"}


def has_failed(lifecycle: Lifecycle) -> bool:
    """Whether a container is unhealthy, or ended by itself while it was to run."""
    if lifecycle.state in {"exited", "dead"}:
        return lifecycle.desired == "running" and lifecycle.exit_code != 0
    return lifecycle.health == "unhealthy"
