"""What must not go back: counters within an epoch, and OOM kills over all epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.definitions.microvm import OOM_LAYERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from collector.snapshot import Point

MAX_SERIES: Final = 1024


class Floors:
    """Holds each counter at its highest value of this epoch."""

    def __init__(self) -> None:
        self._highest: dict[tuple[str, tuple[str, ...]], float] = {}

    def apply(self, points: Iterable[Point]) -> tuple[list[Point], list[str]]:
        """The points, each series once and no counter below its floor, and the names of counters that went back."""
        result, went_back = [], []
        highest = self._highest
        seen = set()
        for point in points:
            key = (point.metric.name, point.label_values)
            if key in seen:
                continue  # two names of a guest that are one after cleaning: a series may be there once
            seen.add(key)
            if point.metric.type == "counter":
                floor = highest.get(key)
                if floor is not None and point.value < floor:
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


class OomLedger:
    """OOM kills by layer, added up over the epochs that this process has seen. A layer nobody counts is not there."""

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}
        self._epoch: dict[str, int] = {}

    def observe(self, layer: str, kills: int) -> None:
        """Kills that a source counts in this epoch; a smaller number than before is ignored."""
        self._epoch[layer] = max(self._epoch.get(layer, 0), kills)

    def ended(self, *, oom_killed: bool) -> None:
        """The record says whether an OOM kill ended this epoch; it counts if no source had counted it."""
        seen = self._epoch.get("container", 0) + self._epoch.get("guest", 0)
        self.observe("container", int(oom_killed and not seen))

    def next_epoch(self) -> None:
        """The container was started again: its sources count from zero."""
        self._ended = dict(self.totals)
        self._epoch = {}

    @property
    def totals(self) -> Mapping[str, int]:
        """Kills by layer since this process first saw the container."""
        return {
            layer: self._ended.get(layer, 0) + self._epoch.get(layer, 0)
            for layer in OOM_LAYERS
            if layer in self._ended or layer in self._epoch
        }
