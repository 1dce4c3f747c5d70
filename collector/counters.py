"""What must not go back: counters within an epoch, and OOM kills over all epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.definitions.microvm import OOM_LAYERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from collector.snapshot import Point

MAX_SERIES: Final = 1024


class Floors:
    """Holds each counter at its highest value of this epoch, but those that wrap: they may begin again."""

    def __init__(self) -> None:
        self._highest: dict[tuple[str, tuple[str, ...]], float] = {}
        self._last: list[Point] = []

    def apply(self, points: Iterable[Point]) -> tuple[list[Point], list[str]]:
        """The points, each series once and no counter below its floor, and the names of counters that went back."""
        given = list(points)
        went_back: list[str] = []
        if not self._only_grew(given):
            given, went_back = self._looked_up(given)
        self._last = given
        return given, went_back

    def _only_grew(self, given: Sequence[Point]) -> bool:
        """Whether these are the series of the last sample, in its order, and no counter went back: mostly they are."""
        if len(given) != len(self._last):
            return False
        for (metric, values, value), (before, values_before, floor) in zip(given, self._last, strict=True):
            if metric is not before or values != values_before or (value < floor and metric.type == "counter"):
                return False
        return True

    def _looked_up(self, points: Iterable[Point]) -> tuple[list[Point], list[str]]:
        result, went_back = [], []
        highest = self._highest
        for point in self._last:
            if (key := (point.metric.name, point.label_values)) in highest:
                highest[key] = point.value
        seen = set()
        for point in points:
            key = (point.metric.name, point.label_values)
            if key in seen:
                continue  # two names of a guest that are one after cleaning: a series may be there once
            seen.add(key)
            if point.metric.type == "counter":
                floor = highest.get(key)
                if floor is not None and point.value < floor and not point.metric.wraps:
                    went_back.append(point.metric.name)
                    result.append(point._replace(value=floor))
                    continue
                if floor is not None or len(highest) < MAX_SERIES:
                    highest[key] = point.value
            result.append(point)
        return result, went_back

    def clear(self) -> None:
        """A new epoch: every counter may begin again."""
        self._highest.clear()
        self._last = []


class OomLedger:
    """OOM kills by layer over all epochs: the record's word on those that ended, a source's on the one that runs.

    A layer nobody counts is not there.
    """

    def __init__(self, ended: Mapping[str, int]) -> None:
        self._totals: dict[str, int] = {}
        self._before: Mapping[str, int] = {}
        self.next_epoch(ended)

    def observe(self, layer: str, kills: int) -> None:
        """Kills that a source counts in this epoch; a smaller number than before is ignored."""
        self._raise(layer, self._before.get(layer, 0) + kills)

    def ended(self, kills: Mapping[str, int]) -> None:
        """What the record says of all epochs that have ended."""
        for layer in OOM_LAYERS:
            if layer in kills:
                self._raise(layer, kills[layer])

    def next_epoch(self, ended: Mapping[str, int]) -> None:
        """The container was started again: its sources count from zero."""
        self.ended(ended)
        self._before = dict(self._totals)

    def _raise(self, layer: str, kills: int) -> None:
        self._totals[layer] = max(self._totals.get(layer, 0), kills)

    @property
    def totals(self) -> Mapping[str, int]:
        """Kills by layer since the container was created."""
        return {layer: self._totals[layer] for layer in OOM_LAYERS if layer in self._totals}
