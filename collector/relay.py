"""What of an application's own metrics is relayed. Pure but for `Names`, which all containers of a host share.

An application may say what it likes about itself and nothing about anybody else: names of the standard are refused, its
labels cannot replace those of its container, and a family that contradicts itself, or what another container means by
the same name, is left out. A family is relayed whole or not at all, as a sum over half of one would be wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from collector.catalogue import BASE_LABELS
from collector.snapshot import Family, FamilyType, Sample
from collector.sources.apptext import canonical

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from collector.sources.apptext import Parsed

RESERVED: Final = ("container_", "microvm_", "hyper_", "machine_", "scrape_", "ALERTS")
"""Beginnings of names that are the standard's, or Prometheus' own; so are `up`, and names with a colon (of rules)."""
_OURS: Final = frozenset({*BASE_LABELS, "job", "instance"})
REASONS: Final = ("reserved", "invalid", "ambiguous", "type", "budget")

_ADDED: Final = frozenset({"counter", "histogram"})
"""Types of which series may be added up."""

Labels = tuple[tuple[str, str], ...]


class Names:
    """Which type each name has on this host: that of the container that came first, for as long as any has it."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[str, FamilyType]] = {}
        self._holders: dict[tuple[str, FamilyType], set[str]] = {}
        self._held: dict[str, set[tuple[str, FamilyType]]] = {}

    def claim(self, container_id: str, families: Iterable[Family]) -> tuple[list[Family], list[Family]]:
        """Those families that go with what others have, and those that do not. It gives up all that is not in them."""
        families = list(families)
        before = self._held.get(container_id, set())
        self._give_up(container_id, before - {(family.name, family.type) for family in families})
        accepted, refused, held = [], [], set()
        for family in families:
            key = (family.name, family.type)
            taken = claimed_names(family.name, family.type)
            if any(self._owners.get(name, key) != key for name in taken):
                refused.append(family)
                continue
            for name in taken:
                self._owners[name] = key
            self._holders.setdefault(key, set()).add(container_id)
            held.add(key)
            accepted.append(family)
        self._held[container_id] = held
        return accepted, refused

    def release(self, container_id: str) -> None:
        """The container relays nothing any more."""
        self._give_up(container_id, self._held.pop(container_id, set()))

    def _give_up(self, container_id: str, keys: Iterable[tuple[str, FamilyType]]) -> None:
        for key in keys:
            holders = self._holders[key]
            holders.discard(container_id)
            if not holders:
                del self._holders[key]
                for name in claimed_names(*key):
                    del self._owners[name]


def claimed_names(name: str, kind: FamilyType) -> frozenset[str]:
    """Every name that a family has in either format: no other family may have any of them."""
    if kind == "counter":
        stem = name.removesuffix("_total")
        return frozenset({name, stem, f"{stem}_created"})
    if kind == "histogram":
        return frozenset({name, f"{name}_bucket", f"{name}_count", f"{name}_sum", f"{name}_created"})
    if kind == "summary":
        return frozenset({name, f"{name}_count", f"{name}_sum", f"{name}_created"})
    return frozenset({name})


def select(
    parsed: Sequence[Parsed], names: Names, container_id: str, budget: int, keep: Collection[str] | None = None
) -> tuple[tuple[Family, ...], Mapping[str, int]]:
    """The families that are relayed, and how many series are not, by reason.

    In the order of the text each family is taken that still fits into the budget: one with too many series does not
    take the others with it. `keep`: the names of the labels that stay; None: all do.
    """
    dropped: Counter[str] = Counter()
    fit, left = [], budget
    for family in parsed:
        if is_reserved(family.name) or any(is_reserved(sample.name) for sample in family.samples[:1]):
            dropped["reserved"] += len(family.samples)
        elif (clean := tidy(family)) is None:
            dropped["invalid"] += len(family.samples)
        elif keep is not None and (clean := narrow(clean, keep, adds=family.type in _ADDED)) is None:
            dropped["ambiguous"] += len(family.samples)
        elif (clean := renamed(clean)) is None:
            dropped["invalid"] += len(family.samples)
        elif len(clean.samples) > left:
            dropped["budget"] += len(clean.samples)
        else:
            left -= len(clean.samples)
            fit.append(clean)
    accepted, refused = names.claim(container_id, fit)
    dropped["type"] += sum(len(family.samples) for family in refused)
    return tuple(accepted), {reason: dropped[reason] for reason in REASONS if dropped[reason]}


def is_reserved(name: str) -> bool:
    """Whether a series of this name could be taken for one of ours, of a rule, or of Prometheus itself."""
    return name.startswith(RESERVED) or name == "up" or ":" in name


def tidy(family: Parsed) -> Family | None:
    """The family as both formats write it, with its own labels; None if it is of no type that it could be."""
    samples = family.samples
    kind = family.type
    if kind == "counter" and not family.name.endswith("_total"):
        kind = "unknown"  # OpenMetrics allows a counter no such name
    if kind == "counter" and not all(sample.value >= 0 for sample in samples):
        return None  # below zero, or NaN
    if kind in {"histogram", "summary"}:
        grouped = _grouped(family.name, samples, "le" if kind == "histogram" else "quantile")
        check = _histogram if kind == "histogram" else _summary
        if grouped is None or not all(check(family.name, group) for group in grouped.values()):
            return None
        samples = [sample for group in grouped.values() for sample in group]
    if _twice(samples):
        return None
    return Family(family.name, kind, family.help, tuple(samples))


def narrow(family: Family, keep: Collection[str], *, adds: bool) -> Family | None:
    """The family with no labels but these, and a bucket's or quantile's bound. Series that are then one are added up.

    None if they cannot be: only of counters and of histograms with the same buckets (`adds`) a sum has a meaning.
    """
    bound = {"histogram": "le", "summary": "quantile"}.get(family.type)
    sums: dict[tuple[str, Labels], float] = {}
    parts: Counter[tuple[str, Labels]] = Counter()
    for name, labels, value in family.samples:
        key = (name, tuple(entry for entry in labels if entry[0] in keep or entry[0] == bound))
        sums[key] = sums.get(key, 0) + value
        parts[key] += 1
    if len(sums) < len(family.samples):
        if not adds or not all(map(math.isfinite, sums.values())):
            return None
        whole: dict[Labels, set[int]] = {}
        for (_, labels), count in parts.items():
            whole.setdefault(tuple(entry for entry in labels if entry[0] != bound), set()).add(count)
        if any(len(counts) > 1 for counts in whole.values()):
            return None  # one has a bucket, or a sum, that another has not
    samples = tuple(Sample(name, labels, value) for (name, labels), value in sums.items())
    return Family(family.name, family.type, family.help, samples)


def renamed(family: Family) -> Family | None:
    """The family with no label that one of ours would hide; None if a series is then there twice."""
    if not any(name in _OURS for sample in family.samples for name, _ in sample.labels):
        return family
    samples = tuple(sample._replace(labels=_renamed(sample.labels)) for sample in family.samples)
    return None if _twice(samples) else Family(family.name, family.type, family.help, samples)


def _twice(samples: Collection[Sample]) -> bool:
    return len({(sample.name, sample.labels) for sample in samples}) < len(samples)


def _renamed(labels: Labels) -> Labels:
    """Labels that our own would hide get `exported_` before them, as Prometheus does."""
    if not any(name in _OURS for name, _ in labels):
        return labels
    taken = {name for name, _ in labels}
    renamed = []
    for name, value in labels:
        new = name
        if name in _OURS:
            while new in _OURS or new in taken:
                new = f"exported_{new}"
            taken.add(new)
        renamed.append((new, value))
    return tuple(sorted(renamed))


def _grouped(name: str, samples: Iterable[Sample], bound: str) -> dict[Labels, list[Sample]] | None:
    """Samples by their labels without the bound, which is made canonical; in a group by bound, then count and sum."""
    groups: dict[Labels, list[tuple[tuple[float, str], Sample]]] = {}
    for sample in samples:
        labels = dict(sample.labels)
        order = (math.inf, sample.name)
        has_bound = sample.name in {f"{name}_bucket", name}
        if has_bound:
            text = canonical(labels.pop(bound, ""))
            if text is None:
                return None
            order = (float(text), "")
            sample = sample._replace(labels=tuple(sorted({**labels, bound: text}.items())))
        groups.setdefault(tuple(sorted(labels.items())), []).append((order, sample))
    return {labels: [sample for _, sample in sorted(group, key=_order)] for labels, group in groups.items()}


def _order(entry: tuple[tuple[float, str], Sample]) -> tuple[float, str]:
    return entry[0]


def _histogram(name: str, group: Sequence[Sample]) -> bool:
    """Buckets that grow up to +Inf, whole numbers, and a count and a sum, both or neither, that go with them."""
    buckets = [sample for sample in group if sample.name == f"{name}_bucket"]
    rest = {sample.name: sample.value for sample in group[len(buckets) :]}
    bounds = [_bound(sample, "le") for sample in buckets]
    values = [sample.value for sample in buckets]
    if not bounds or bounds[-1] != math.inf or len(set(bounds)) < len(bounds) or name in rest:
        return False
    if not all(value >= 0 and value.is_integer() for value in values) or values != sorted(values):
        return False
    if not rest:
        return True
    count, total = rest.get(f"{name}_count"), rest.get(f"{name}_sum")
    return count == values[-1] and total is not None and total >= 0 and bounds[0] >= 0


def _summary(name: str, group: Sequence[Sample]) -> bool:
    """Quantiles of 0 to 1 with values not below zero (NaN: nothing was seen), count and sum not below zero."""
    for sample in group:
        if sample.name == name:
            if not 0 <= _bound(sample, "quantile") <= 1 or sample.value < 0:
                return False
        elif not sample.value >= 0 or (sample.name == f"{name}_count" and not sample.value.is_integer()):
            return False
    return True


def _bound(sample: Sample, label: str) -> float:
    return float(dict(sample.labels)[label])


def series(families: Iterable[Family]) -> int:
    """How many series they are."""
    return sum(len(family.samples) for family in families)
