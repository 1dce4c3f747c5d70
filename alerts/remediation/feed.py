"""The file of vulnerabilities that the operator leaves to the controller, read again whenever it has changed."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, Protocol

from alerts.errors import BadFeed
from alerts.remediation import osv

if TYPE_CHECKING:
    from pathlib import Path

    from alerts.remediation.hyperd import Packages

log = logging.getLogger("hyper.remediation")


class Observer(Protocol):
    """What is told of each reading, for metrics."""

    def feed(self, *, readable: bool, written_at: float | None = None) -> None:
        """The feed could be read, and was written then (seconds since 1970); or it could not."""


class FeedFile:
    """A feed and its file. What cannot be read leaves the feed as it is; without a file it is empty."""

    def __init__(self, path: Path | None, observer: Observer) -> None:
        self._path = path
        self._observer = observer
        self._seen: tuple[int, ...] | None = None
        self._said = ""
        self._feed = osv.Feed()

    def fixable(self, packages: Packages) -> frozenset[str]:
        """The ids of what an image's packages have and newer ones have not."""
        return self._feed.fixable(packages)

    def refresh(self) -> bool:
        """Read the file if it is another one, or was written; whether there is a new feed. Blocks."""
        if self._path is None:
            return False
        try:
            read = self._read(self._path)
        except OSError as err:
            self._seen = None
            return self._fault(err.strerror or str(err))
        except BadFeed as err:
            return self._fault(str(err))
        if read is None:
            return False
        self._feed, written_at = read
        self._said = ""
        self._observer.feed(readable=True, written_at=written_at)
        log.info("%s: %d records", self._path, self._feed.records)
        return True

    def _fault(self, text: str) -> bool:
        self._observer.feed(readable=False)
        if text != self._said:
            log.error("remediation_feed_file %s: %s; what was read before is kept", self._path, text)
        self._said = text
        return False

    def _read(self, path: Path) -> tuple[osv.Feed, float] | None:
        """The feed and when it was written; None if it is the one that was seen last, or is being written."""
        # Without O_NONBLOCK the opening of a pipe would wait for somebody to write to it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise BadFeed("it is no file")
            if _mark(before) == self._seen:
                return None
            raw = file.read(osv.MAX_BYTES + 1)
            if _mark(os.fstat(file.fileno())) != _mark(before):
                return None
        self._seen = _mark(before)
        return osv.parse(raw), before.st_mtime


def _mark(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written, or another one takes its place."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
