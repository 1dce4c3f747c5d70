"""What hyperd counts of a container's health checks, from `health.json` (docs/reference/state-directory.md)."""

from __future__ import annotations

import math
import os
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from collector.channel import parse_object
from collector.definitions import container
from collector.errors import MalformedError, UnreachableError
from collector.snapshot import Point
from runtime import healthcounts

if TYPE_CHECKING:
    from pathlib import Path

MAX_BOUNDS: Final = 32
_BUCKET: Final = container.HEALTHCHECK_DURATION_SECONDS.part("bucket", "le")
_COUNT: Final = container.HEALTHCHECK_DURATION_SECONDS.part("count")
_SUM: Final = container.HEALTHCHECK_DURATION_SECONDS.part("sum")


class HealthReader:
    """The counts of one container. The file is replaced after each check: as long as it is the same it is not read."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / healthcounts.FILE_NAME)
        self._known: tuple[tuple[int, int, int], tuple[Point, ...]] | None = None

    def read(self, epoch: int) -> tuple[Point, ...]:
        """The points of this epoch; none as long as no check was made in it.

        Raises:
            SourceError: it is not what hyperd writes.
        """
        try:
            status = os.stat(self._path)  # noqa: PTH116 -- once a round for each container: a path object costs more
            signature = (status.st_ino, status.st_mtime_ns, epoch)
            if self._known is None or self._known[0] != signature:
                with open(self._path, "rb") as file:  # noqa: PTH123 -- as above
                    text = file.read(healthcounts.MAX_BYTES)
                self._known = (signature, parse(text, epoch))
        except FileNotFoundError:
            return ()
        except OSError as err:
            raise UnreachableError(f"health.json: {err.strerror}") from err
        return self._known[1]


def parse(text: bytes, epoch: int) -> tuple[Point, ...]:
    """The points of a health.json; none of another epoch than the record's.

    Raises:
        MalformedError: not of schema 1, or a member is missing or of the wrong shape.
    """
    members = parse_object(text)
    if members.get("schema") != healthcounts.SCHEMA:
        raise MalformedError(f"health.json: schema {healthcounts.SCHEMA} expected")
    bounds, buckets, failures = (members.get(key) for key in ("bounds", "buckets", "failures"))
    if not isinstance(bounds, list) or not isinstance(buckets, list) or not isinstance(failures, dict):
        raise MalformedError("health.json: bounds, buckets or failures")
    if not len(buckets) == len(bounds) + 1 <= MAX_BOUNDS or len(failures) > MAX_BOUNDS:
        raise MalformedError("health.json: so many buckets")
    limits = [_number(bound) for bound in bounds]
    if sorted(set(limits)) != limits:
        raise MalformedError("health.json: bounds out of order")
    counts = [_number(bucket) for bucket in buckets]
    if members.get("epoch") != epoch:
        return ()
    totals = list(accumulate(counts))
    words = (*(str(limit) for limit in limits), "+Inf")
    points = [Point(_BUCKET, (word,), total) for word, total in zip(words, totals, strict=True)]
    points += [Point(_COUNT, (), totals[-1]), Point(_SUM, (), _number(members.get("seconds")))]
    points += [
        Point(container.HEALTHCHECK_FAILURES_TOTAL, (reason,), _number(count))
        for reason, count in sorted(failures.items())
    ]
    return tuple(points)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise MalformedError("health.json: no count")
    return float(value)
