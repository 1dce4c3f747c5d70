"""What the collector hands out: immutable snapshots, one of the whole host per round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from collector.metric import Metric


class Point(NamedTuple):
    """One value of one series. `label_values` go with `metric.labels`; base labels are the snapshot's."""

    metric: Metric
    label_values: tuple[str, ...]
    value: float


class Sample(NamedTuple):
    """One value of an application's own: the series' whole name, its labels by name, its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


FamilyType = Literal["counter", "gauge", "histogram", "summary", "unknown"]


@dataclass(frozen=True, slots=True)
class Family:
    """What an application exports under one name: fit for both of Prometheus' formats as it stands.

    Samples of one histogram or summary follow one another, a histogram's buckets in their order. A `counter` has
    `_total` at its end.
    """

    name: str
    type: FamilyType
    help: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The few numbers that `hyper stats` shows; None is unknown, never zero."""

    cpu_ratio: float | None = None
    memory_bytes: float | None = None
    network_rx_bytes: float | None = None
    network_tx_bytes: float | None = None
    block_read_bytes: float | None = None
    block_write_bytes: float | None = None
    pids: float | None = None
    overhead_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class ContainerSnapshot:
    """One container after one round.

    Attributes:
        base_values: the values of `BASE_LABELS`.
        taken_at: time of the sample, seconds since 1970.
        removed: it is gone, and these are its last words.
        sampled_at: time of the last good sample by source.
        down: the sources that gave none this time, and why.
        relayed: what its application exports, as far as it is relayed; the same object as long as nothing new came.
    """

    id: str
    name: str
    state: str
    base_values: tuple[str, ...]
    points: tuple[Point, ...]
    summary: Summary
    memory_limit_bytes: int
    taken_at: float
    removed: bool = False
    sampled_at: Mapping[str, float] = field(default_factory=dict)
    down: Mapping[str, str] = field(default_factory=dict)
    relayed: tuple[Family, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The host after one round. `points` are those of scope `host` and those of the collector itself."""

    round: int
    taken_at: float
    containers: Mapping[str, ContainerSnapshot]
    points: tuple[Point, ...]
