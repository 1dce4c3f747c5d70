"""Looks, again and again, for what runs with a hole that a newer package closes: the feed against hyperd's word.

What was told and led to nothing (a maintenance window, a build that failed) is told again after a while, or with the
next feed; what was acted on or proposed is not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import following

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alerts.remediation.feed import FeedFile
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.policy import Container
    from alerts.remediation.settings import Settings
    from alerts.remediation.signals import Signal

log = logging.getLogger("hyper.remediation")


class Scanner:
    """Compares what runs with the feed; `submit` takes the signals, each with its container."""

    def __init__(
        self,
        hyperd: Hyperd,
        feed: FeedFile,
        submit: Callable[[Sequence[tuple[Signal, Container]]], bool],
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hyperd = hyperd
        self._feed = feed
        self._submit = submit
        self._settings = settings
        self._clock = clock
        # Of the images that run, by digest; an image does not change, so it is asked for once with each feed.
        self._fixable: dict[str, frozenset[str]] = {}
        self._told: dict[str, float] = {}
        self._said = ""

    async def run(self) -> None:
        """Look until cancelled, through every absence of hyperd."""
        while True:
            if await asyncio.to_thread(self._feed.refresh):
                self._fixable, self._told = {}, {}
            try:
                await self._look()
            except (HyperdAway, HyperdRefused) as err:
                self._say(err)
            await asyncio.sleep(self._settings.feed_s)

    async def _look(self) -> None:
        running = [one for one in await self._hyperd.containers() if one.state == "running" and not one.in_change]
        digests = {one.image_digest for one in running}
        self._fixable = {digest: ids for digest, ids in self._fixable.items() if digest in digests}
        for digest in sorted(digests - self._fixable.keys()):
            try:
                self._fixable[digest] = await self._of(digest)
            except (HyperdAway, HyperdRefused) as err:  # the others can be looked at all the same
                self._say(err)
        now = self._clock()
        found = [
            (following.signal_of_holes(ids, one, now), one)
            for one in running
            if (ids := self._fixable.get(one.image_digest))
        ]
        told = {signal.incident: self._told.get(signal.incident, float("-inf")) for signal, _ in found}
        due = [(signal, one) for signal, one in found if now - told[signal.incident] >= self._settings.feed_again_s]
        if not due or self._submit(due):
            self._told = told | {signal.incident: now for signal, _ in due}

    async def _of(self, digest: str) -> frozenset[str]:
        """What could be mended in an image by building it again; nothing if it cannot be built here."""
        image = await self._hyperd.image(digest)
        if image is None or image.build is None or image.build.archive_digest is None:
            return frozenset()
        return self._feed.fixable(await self._hyperd.packages(digest))

    def _say(self, err: Exception) -> None:
        if str(err) != self._said:
            log.warning("what runs is not held against the feed for now: %s", err)
        self._said = str(err)
