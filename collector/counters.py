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
        """The points with counters that went back held at their floor, and the names of those that did."""
        result, went_back = [], []
        highest = self._highest
        for point in points:
            if point.metric.type == "counter":
                key = (point.metric.name, point.label_values)
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
    """OOM kills by layer, added up over the epochs that this process has seen."""

    def __init__(self) -> None:
        self._ended = dict.fromkeys(OOM_LAYERS, 0)
        self._epoch = dict.fromkeys(OOM_LAYERS, 0)

    def observe(self, layer: str, kills: int) -> None:
        """Kills that a source counts in this epoch; a smaller number than before is ignored."""
        self._epoch[layer] = max(self._epoch[layer], kills)

    def ended_by_oom(self) -> None:
        """The record says that an OOM kill ended this epoch; it counts if no source had counted it."""
        if not self._epoch["container"] and not self._epoch["guest"]:
            self._epoch["container"] = 1

    def next_epoch(self) -> None:
        """The container was started again: its sources count from zero."""
        for layer in OOM_LAYERS:
            self._ended[layer] += self._epoch[layer]
            self._epoch[layer] = 0

    @property
    def totals(self) -> Mapping[str, int]:
        """Kills by layer since this process first saw the container."""
        return {layer: self._ended[layer] + self._epoch[layer] for layer in OOM_LAYERS}
