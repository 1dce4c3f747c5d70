"""InfluxDB line protocol from a snapshot: measurement = group, fields by the catalogue, base labels as tags.

What is of no container has the tag `node` instead: in one bucket there may be many hosts.

All fields are floats, so that no later point can have another type than the first. The values of a view have the time
of its sample, all others that of the round.
Source: InfluxDB v2, line protocol reference.
"""

from __future__ import annotations

import functools
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from collector.catalogue import BASE_LABELS, SOURCES, microvm
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from collector.snapshot import ContainerSnapshot, Snapshot

_NS: int = 1_000_000_000
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_ESCAPED = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\ ", "\r": r"\ ", "\t": r"\ ", "\\": "_"})


def lines(snapshot: Snapshot, node: str, written: Mapping[str, Mapping[str, float]] = _NOTHING) -> Iterator[str]:
    """The snapshot as lines without their ends: one per measurement, label values, time and container.

    `node` is the name of this host. `written` is `sampled_at` by container of the snapshot before. A view that gave
    nothing since shows its last values for a while: they are not written again.
    """
    yield from _lines(((point, snapshot.taken_at) for point in snapshot.points), (("node", node),))
    for container in snapshot.containers.values():
        tags = tuple(zip(BASE_LABELS, container.base_values, strict=True))
        yield from _lines(_timed(container, written.get(container.id, _NOTHING)), tags)


def tag_value(value: str) -> str:
    """A tag value as it is written. Servers differ on a backslash before an escaped character, so there is none."""
    return value.translate(_ESCAPED).encode("utf-8", "replace").decode()


@functools.cache
def view_of(source: str) -> str | None:
    """The view that a metric of this source is of; None: it is nobody's sample, or compared or counted by ourselves."""
    view, colon, _ = source.partition(":")
    return view if colon and view in SOURCES else None


def _timed(container: ContainerSnapshot, written: Mapping[str, float]) -> Iterator[tuple[Point, float]]:
    """The container's points, each with the time of its sample."""
    round_s, sampled_at = container.taken_at, container.sampled_at
    for point in container.points:
        view = view_of(point.metric.source)
        at_s = sampled_at.get(view, round_s) if view is not None else round_s
        if view is None or at_s != written.get(view):
            yield point, at_s
    for source in SOURCES:
        if source in sampled_at:
            yield Point(microvm.SAMPLE_AGE_SECONDS, (source,), max(0.0, round_s - sampled_at[source])), round_s


def _lines(points: Iterable[tuple[Point, float]], tags: Iterable[tuple[str, str]]) -> Iterator[str]:
    grouped: dict[tuple[str, tuple[tuple[str, str], ...], float], list[str]] = {}
    for (metric, values, value), at_s in points:
        if math.isfinite(value):
            own = tuple(zip(metric.labels, values, strict=True))
            grouped.setdefault((metric.group, own, at_s), []).append(f"{metric.influx_field}={float(value)!r}")
    base = "".join(f",{key}={text}" for key, raw in tags if (text := tag_value(raw)))
    for (measurement, own, at_s), fields in grouped.items():
        extra = "".join(f",{key}={text}" for key, raw in own if (text := tag_value(raw)))
        yield f"{measurement}{base}{extra} {','.join(fields)} {round(at_s * _NS)}"
