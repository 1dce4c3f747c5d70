"""What hyperd counts of its own work, from `runtime.json` (docs/reference/state-directory.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from collector.channel import parse_object
from collector.definitions import hyper
from collector.errors import MalformedError
from collector.keptfile import KeptFile
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SCHEMA: Final = 1
MAX_KINDS: Final = 64


def read(state_dir: Path) -> tuple[Point, ...]:
    """The points; none if hyperd has never run.

    Raises:
        SourceError: it is not what hyperd writes.
    """
    file = KeptFile(state_dir / "runtime.json")
    try:
        text = file.read(1 << 20)
    finally:
        file.close()
    return () if text is None else parse(text)


def parse(text: bytes) -> tuple[Point, ...]:
    """The points of a runtime.json.

    Raises:
        MalformedError: not of schema 1, or a member is missing or of the wrong shape.
    """
    members = parse_object(text)
    if members.get("schema") != SCHEMA:
        raise MalformedError(f"runtime.json: schema {SCHEMA} expected")
    info = (_text(members.get("version")), _text(members.get("accel")))
    points = [Point(hyper.RUNTIME_INFO, info, 1.0)]
    for metric, key in (
        (hyper.RUNTIME_START_TIME_SECONDS, "started_at"),
        (hyper.RUNTIME_LAST_UPDATE_TIMESTAMP_SECONDS, "updated_at"),
    ):
        points.append(Point(metric, (), _number(members, key)))
    for metric, key in (
        (hyper.TEMPLATES_READY, "templates_ready"),
        (hyper.POOL_WAITING, "pool_waiting"),
        (hyper.RESERVE_MISSING_BYTES, "reserve_missing_bytes"),
        (hyper.IMAGES, "images"),
    ):
        if key in members:  # of these a version of hyperd has more, another fewer
            points.append(Point(metric, (), _number(members, key)))
    for kind, counts in _entries(members, "operations"):
        if not isinstance(counts, dict):
            raise MalformedError("runtime.json: operations")
        points.extend(
            Point(hyper.OPERATIONS_TOTAL, (kind, outcome), _number(counts, outcome)) for outcome in ("ok", "failed")
        )
        points.append(Point(hyper.OPERATION_SECONDS_TOTAL, (kind,), _number(counts, "seconds")))
    for metric, key in ((hyper.STARTS_TOTAL, "starts"), (hyper.START_FALLBACKS_TOTAL, "fallbacks")):
        counts = dict(_entries(members, key))
        points.extend(Point(metric, (kind,), _number(counts, kind)) for kind in counts)
    return tuple(points)


def _entries(members: Mapping[str, object], key: str) -> Iterator[tuple[str, object]]:
    entries = members.get(key, {})
    if not isinstance(entries, dict) or len(entries) > MAX_KINDS:
        raise MalformedError(f"runtime.json: {key}")
    return iter(sorted(entries.items()))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(members: Mapping[str, object], key: str) -> float:
    value = members.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise MalformedError(f"runtime.json: {key} is no count")
    return float(value)
