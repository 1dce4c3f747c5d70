"""Prometheus text 0.0.4 and OpenMetrics 1.0 from snapshots.

Sample lines are the same in both formats; they are written when a snapshot comes, in one piece per container and
family, so that a scrape only joins them. Headers differ, and the age of samples is that of the moment.
Source: Prometheus exposition formats; OpenMetrics 1.0.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Final, Literal

from collector.catalogue import BASE_LABELS, EXPORTED, microvm
from collector.metric import HISTOGRAM_PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from collector.metric import Metric
    from collector.snapshot import ContainerSnapshot, Family, Point, Snapshot

Format = Literal["text", "openmetrics"]

CONTENT_TYPES: Final[dict[Format, str]] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

_INDEX: Final = {metric.name: index for index, metric in enumerate(EXPORTED)} | {
    f"{metric.name}_{part}": index
    for index, metric in enumerate(EXPORTED)
    if metric.type == "histogram"
    for part in HISTOGRAM_PARTS
}
_AGE: Final = _INDEX[microvm.SAMPLE_AGE_SECONDS.name]

_PARTS_AT_ONCE: Final = 1000
"""Of an exposition: a few hundred kB."""

Families = list[str | None]
"""Sample lines by position in `EXPORTED`; None: no sample."""


def escape(value: str) -> str:
    """A label value as both formats write it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def escape_help(text: str, form: Format) -> str:
    """A HELP text: OpenMetrics escapes the quote as well."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if form == "openmetrics" else text


def header(metric: Metric, form: Format) -> str:
    """The lines before a family: HELP, TYPE, and in OpenMetrics UNIT where the name ends in the unit."""
    if form == "text":
        kind = "untyped" if metric.type == "unknown" else metric.type
        return f"# HELP {metric.name} {escape_help(metric.help, form)}\n# TYPE {metric.name} {kind}\n"
    name = metric.family
    unit = f"# UNIT {name} {metric.unit}\n" if metric.unit and name.endswith(f"_{metric.unit}") else ""
    return f"# TYPE {name} {metric.type}\n{unit}# HELP {name} {escape_help(metric.help, form)}\n"


_HEADERS: Final[dict[Format, list[str]]] = {
    "text": [header(metric, "text") for metric in EXPORTED],
    "openmetrics": [header(metric, "openmetrics") for metric in EXPORTED],
}


def render_points(points: Iterable[Point], base: str = "") -> tuple[Families, int]:
    """Sample lines by family, and how many there are. `base` is the labels that all have, rendered."""
    families: Families = [None] * len(EXPORTED)
    alone, before = (f"{{{base}}}", f"{{{base},") if base else ("", "{")
    count = 0
    for metric, values, value in points:
        name = metric.name
        if values:
            line = f"{name}{before}{own_labels(metric.labels, values)}}} {value!r}\n"
        else:
            line = f"{name}{alone} {value!r}\n"
        index = _INDEX[name]
        others = families[index]
        families[index] = line if others is None else others + line
        count += 1
    return families, count


@functools.lru_cache(maxsize=8192)
def own_labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """The labels of one series beside the base labels, rendered; most are the same for every container."""
    return ",".join([f'{key}="{escape(text)}"' for key, text in zip(names, values, strict=True)])


def base_labels(values: Sequence[str]) -> str:
    """The base labels of one container, rendered."""
    return ",".join(f'{key}="{escape(value)}"' for key, value in zip(BASE_LABELS, values, strict=True))


def render_family(family: Family, base: str) -> str:
    """The sample lines of an application's family, base labels first."""
    lines = []
    for name, labels, value in family.samples:
        own = ",".join([f'{key}="{escape(text)}"' for key, text in labels])
        lines.append(f"{name}{{{base}{',' if own else ''}{own}}} {number(value)}\n")
    return "".join(lines)


def number(value: float) -> str:
    """A value as both formats write it."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def family_header(family: Family, form: Format) -> str:
    """The lines before an application's family."""
    name, kind = family.name, str(family.type)
    if form == "text" and kind == "unknown":
        kind = "untyped"
    elif form == "openmetrics" and kind == "counter":
        name = name.removesuffix("_total")
    told = f"# HELP {name} {escape_help(family.help, form)}\n" if family.help else ""
    return f"{told}# TYPE {name} {kind}\n"


class _Rendered:
    """One container's lines."""

    __slots__ = ("base", "base_values", "families", "relayed", "relayed_lines", "sampled_at", "series", "snapshot")

    def __init__(self, snapshot: ContainerSnapshot) -> None:
        self.snapshot = snapshot
        self.base_values = snapshot.base_values
        self.base = base_labels(snapshot.base_values)
        self.relayed: tuple[Family, ...] = ()
        self.relayed_lines: dict[str, str] = {}
        self.write(snapshot)

    def write(self, snapshot: ContainerSnapshot) -> None:
        self.snapshot = snapshot
        self.families, self.series = render_points(snapshot.points, self.base)
        self.series += len(snapshot.sampled_at)
        if snapshot.relayed is not self.relayed:
            self.relayed = snapshot.relayed
            self.relayed_lines = {family.name: render_family(family, self.base) for family in self.relayed}
        if self.relayed:
            self.series += sum(len(family.samples) for family in self.relayed)


class Exposition:
    """The lines of the last snapshot, ready to be joined."""

    def __init__(self) -> None:
        self._containers: dict[str, _Rendered] = {}
        self._host: Families = [None] * len(EXPORTED)
        self._relaying: list[_Rendered] = []
        self.series = 0

    def update(self, snapshot: Snapshot) -> None:
        """Take a new snapshot."""
        rendered = {}
        for container_id, container in snapshot.containers.items():
            lines = self._containers.get(container_id)
            if lines is None or lines.base_values != container.base_values:
                lines = _Rendered(container)
            elif lines.snapshot is not container:
                lines.write(container)
            rendered[container_id] = lines
        self._containers = rendered
        self._relaying = [lines for lines in rendered.values() if lines.relayed]
        self._host, host_series = render_points(snapshot.points)
        self.series = host_series + sum(lines.series for lines in rendered.values())

    def render(self, form: Format, own_points: Iterable[Point], now_s: float) -> bytes:
        """The whole exposition. `own_points` are those of scope `self` that the collector does not know."""
        return b"".join(self.pieces(form, own_points, now_s))

    def pieces(self, form: Format, own_points: Iterable[Point], now_s: float) -> Iterator[bytes]:
        """The same in pieces, all of this moment, whenever they are taken.

        The whole is 14 MB of 1000 containers, and as one text it takes as much again to be encoded: fresh pages for
        both would be more than half of a scrape's time.
        """
        own, _ = render_points(own_points)
        containers = list(self._containers.values())
        headers = _HEADERS[form]
        parts: list[str] = []
        families = zip(*[container.families for container in containers], self._host, own, strict=True)
        for index, texts in enumerate(families):
            lines = [*filter(None, texts)]
            if index == _AGE:
                lines = [_ages(container, now_s) for container in containers if container.snapshot.sampled_at]
            if lines:
                parts.append(headers[index])
                parts += lines
        if self._relaying:
            parts += self._relayed(form)
        if form == "openmetrics":
            parts.append("# EOF\n")
        # A lone surrogate cannot be written; everything else can.
        return ("".join(some).encode("utf-8", "replace") for some in _batches(parts))

    def _relayed(self, form: Format) -> Iterator[str]:
        """What applications export, by name: the collector has seen to it that a name has one type."""
        first: dict[str, Family] = {}
        lines: dict[str, list[str]] = {}
        for container in self._relaying:
            for family in container.relayed:
                first.setdefault(family.name, family)
                lines.setdefault(family.name, []).append(container.relayed_lines[family.name])
        for name in sorted(first):
            yield family_header(first[name], form)
            yield from lines[name]


def _batches(parts: list[str]) -> Iterator[list[str]]:
    return (parts[start : start + _PARTS_AT_ONCE] for start in range(0, len(parts), _PARTS_AT_ONCE))


def _ages(lines: _Rendered, now_s: float) -> str:
    name = microvm.SAMPLE_AGE_SECONDS.name
    return "".join(
        f'{name}{{{lines.base},source="{source}"}} {max(0.0, now_s - at_s):.3f}\n'
        for source, at_s in lines.snapshot.sampled_at.items()
    )
