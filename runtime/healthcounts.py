"""How long the health checks of a container took, and why they failed: `health.json` beside its record.

It is replaced after each check, and goes on over restarts of the daemon; a start of the container begins it anew.
`docs/reference/state-directory.md` describes it.
"""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

SCHEMA: Final = 1
FILE_NAME: Final = "health.json"
MAX_BYTES: Final = 65_536
BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
Reason = Literal["exit", "timeout", "error"]


class HealthCounts:
    """The counts of one epoch of one container."""

    def __init__(self, directory: Path, epoch: int) -> None:
        self._path = directory / FILE_NAME
        self._epoch = epoch
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._seconds = 0.0
        self._failures: dict[str, int] = {}
        self._go_on()

    def _go_on(self) -> None:
        """Take up what an earlier daemon counted of this epoch; anything else is begun anew."""
        try:
            with self._path.open("rb") as file:
                raw = json.loads(file.read(MAX_BYTES))
            buckets, failures = [int(count) for count in raw["buckets"]], dict(raw["failures"])
            if (raw["schema"], raw["epoch"], raw["bounds"]) != (SCHEMA, self._epoch, list(BOUNDS_S)):
                return
            if len(buckets) == len(self._buckets):
                self._buckets, self._seconds, self._failures = buckets, float(raw["seconds"]), failures
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as err:
            log.warning("%s is not gone on with: %s", self._path, err)

    def add(self, seconds: float, reason: Reason | None) -> None:
        """Count a check; one that did not end has no duration. What cannot be written is tried again with the next."""
        if reason is not None:
            self._failures[reason] = self._failures.get(reason, 0) + 1
        if reason in {None, "exit"}:
            self._buckets[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds += max(0.0, seconds)
        text = json.dumps(
            {
                "schema": SCHEMA,
                "epoch": self._epoch,
                "bounds": BOUNDS_S,
                "buckets": self._buckets,
                "seconds": self._seconds,
                "failures": self._failures,
            }
        )
        temporary = self._path.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            temporary.write_text(text)
            temporary.replace(self._path)
        except OSError as err:
            log.warning("%s cannot be written: %s", self._path, err)
