"""InfluxDB line protocol from a snapshot: measurement = group, fields by the catalogue, base labels as tags.

All fields are floats, so that no later point can have another type than the first. Time is that of the sample.
Source: InfluxDB v2, line protocol reference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from collector.catalogue import BASE_LABELS, SOURCES, microvm
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from collector.snapshot import ContainerSnapshot, Snapshot

_NS: int = 1_000_000_000
_ESCAPED = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": " ", "\r": " ", "\t": " ", "\\": "_"})


def lines(snapshot: Snapshot) -> Iterator[str]:
    """The snapshot as lines without their ends: one per measurement, label values and container."""
    yield from _lines(snapshot.points, (), snapshot.taken_at)
    for container in snapshot.containers.values():
        tags = tuple(zip(BASE_LABELS, container.base_values, strict=True))
        yield from _lines([*container.points, *_ages(container)], tags, container.taken_at)


def tag_value(value: str) -> str:
    """A tag value as it is written. Servers differ on a backslash before an escaped character, so there is none."""
    return value.translate(_ESCAPED).encode("utf-8", "replace").decode()


def _ages(container: ContainerSnapshot) -> Iterator[Point]:
    for source in SOURCES:
        if source in container.sampled_at:
            age_s = max(0.0, container.taken_at - container.sampled_at[source])
            yield Point(microvm.SAMPLE_AGE_SECONDS, (source,), age_s)


def _lines(points: Iterable[Point], tags: Iterable[tuple[str, str]], at_s: float) -> Iterator[str]:
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for metric, values, value in points:
        if math.isfinite(value):
            own = tuple(zip(metric.labels, values, strict=True))
            grouped.setdefault((metric.group, own), []).append(f"{metric.influx_field}={float(value)!r}")
    base = "".join(f",{key}={text}" for key, raw in tags if (text := tag_value(raw)))
    for (measurement, own), fields in grouped.items():
        extra = "".join(f",{key}={text}" for key, raw in own if (text := tag_value(raw)))
        yield f"{measurement}{base}{extra} {','.join(fields)} {round(at_s * _NS)}"
