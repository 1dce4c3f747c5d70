"""What of an application's own metrics is relayed. Pure but for `Names`, which all containers of a host share.

An application may say what it likes about itself and nothing about anybody else: names of the standard are refused, its
labels cannot replace those of its container, and a family that contradicts itself, or what another container means by
the same name, is left out. A family is relayed whole or not at all, as a sum over half of one would be wrong.

What goes through all series is a generator (`Steps`): it yields how many it has looked at, a few hundred at most at a
time, so that a long text holds up nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from collector.catalogue import BASE_LABELS
from collector.snapshot import Family, FamilyType, Sample
from collector.sources.apptext import canonical

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping, Sequence

    from collector.sources.apptext import Parsed

T = TypeVar("T")

RESERVED: Final = ("container_", "microvm_", "hyper_", "machine_", "scrape_", "ALERTS")
"""Beginnings of names that are the standard's, or Prometheus' own; so are `up`, and names with a colon (of rules)."""
_OURS: Final = frozenset({*BASE_LABELS, "job", "instance"})
REASONS: Final = ("reserved", "invalid", "ambiguous", "type", "budget")

_ADDED: Final = frozenset({"counter", "histogram"})
"""Types of which series may be added up."""

_SLICE: Final = 256

Labels = tuple[tuple[str, str], ...]
_Key = tuple[str, FamilyType]
Refused = Literal["invalid", "ambiguous", "budget"]
if TYPE_CHECKING:
    Steps = Generator[int, None, T]
    Selected = tuple[tuple[Family, ...], Mapping[str, int]]


class Names:
    """Which type each name has on this host: that of the container that came first, for as long as any has it."""

    def __init__(self) -> None:
        self._owners: dict[str, _Key] = {}
        self._holders: dict[_Key, set[str]] = {}
        self._held: dict[str, dict[_Key, tuple[str, ...]]] = {}

    def claim(self, container_id: str, families: Iterable[Family]) -> tuple[list[Family], list[Family]]:
        """Those families that go with what others have, and those that do not. It gives up all that is not in them."""
        claims = [(family, (family.name, family.type)) for family in families]
        wanted = {key for _, key in claims}
        before = self._held.get(container_id, {})
        self._give_up(container_id, {key: taken for key, taken in before.items() if key not in wanted})
        accepted, refused, held = [], [], {}
        for family, key in claims:
            taken = before.get(key)  # it has had them since the last time
            if taken is None:
                taken = claimed_names(*key)
                if not self._take(taken, key):
                    refused.append(family)
                    continue
                self._holders.setdefault(key, set()).add(container_id)
            held[key] = taken
            accepted.append(family)
        self._held[container_id] = held
        return accepted, refused

    def _take(self, names: tuple[str, ...], key: _Key) -> bool:
        for name in names:
            if self._owners.get(name, key) != key:
                return False
        for name in names:
            self._owners[name] = key
        return True

    def release(self, container_id: str) -> None:
        """The container relays nothing any more."""
        self._give_up(container_id, self._held.pop(container_id, {}))

    def _give_up(self, container_id: str, claims: Mapping[_Key, tuple[str, ...]]) -> None:
        for key, taken in claims.items():
            holders = self._holders[key]
            holders.discard(container_id)
            if not holders:
                del self._holders[key]
                for name in taken:
                    del self._owners[name]


def claimed_names(name: str, kind: FamilyType) -> tuple[str, ...]:
    """Every name that a family has in either format, each once: no other family may have any of them."""
    if kind == "counter":
        stem = name.removesuffix("_total")
        return (stem, f"{stem}_total", f"{stem}_created")
    if kind == "histogram":
        return (name, f"{name}_bucket", f"{name}_count", f"{name}_sum", f"{name}_created")
    if kind == "summary":
        return (name, f"{name}_count", f"{name}_sum", f"{name}_created")
    return (name,)


def select(
    parsed: Sequence[Parsed], names: Names, container_id: str, budget: int, keep: Collection[str] | None = None
) -> Steps[Selected]:
    """The families that are relayed, and how many series are not, by reason.

    In the order of the text each family is taken that still fits into the budget: one with too many series does not
    take the others with it. `keep`: the names of the labels that stay; None: all do.
    """
    dropped: Counter[str] = Counter()
    fit, left = [], budget
    for family in parsed:
        yield 1
        if is_reserved(family.name) or any(is_reserved(sample.name) for sample in family.samples[:1]):
            dropped["reserved"] += len(family.samples)
            continue
        clean = yield from _fitting(family, left, keep)
        if isinstance(clean, Family):
            left -= len(clean.samples)
            fit.append(clean)
        else:
            dropped[clean] += len(family.samples)
    accepted, refused = names.claim(container_id, fit)
    dropped["type"] += sum(len(family.samples) for family in refused)
    return tuple(accepted), {reason: dropped[reason] for reason in REASONS if dropped[reason]}


def _fitting(family: Parsed, most: int, keep: Collection[str] | None) -> Steps[Family | Refused]:
    """The family as it is relayed, with at most so many series, or why it is not."""
    if keep is None and len(family.samples) > most:
        return "budget"
    clean = yield from tidy(family, most)
    if keep is not None and isinstance(clean, Family):
        clean = yield from narrow(clean, keep, most, adds=family.type in _ADDED)
    return (yield from renamed(clean)) if isinstance(clean, Family) else clean


def is_reserved(name: str) -> bool:
    """Whether a series of this name could be taken for one of ours, of a rule, or of Prometheus itself."""
    return name.startswith(RESERVED) or name == "up" or ":" in name


def tidy(family: Parsed, most: int) -> Steps[Family | Refused]:
    """The family as both formats write it, with its own labels, unless it is of no type that it could be.

    A histogram or summary with more than `most` bounds for the same labels cannot be narrowed to fewer.
    """
    samples = family.samples
    kind = family.type
    if kind == "counter" and not family.name.endswith("_total"):
        kind = "unknown"  # OpenMetrics allows a counter no such name
    if kind == "counter" and not all(sample.value >= 0 for sample in samples):
        return "invalid"  # below zero, or NaN
    if kind in {"histogram", "summary"}:
        grouped = yield from _grouped(family.name, samples, "le" if kind == "histogram" else "quantile", most)
        if not isinstance(grouped, dict):
            return grouped
        check = _histogram if kind == "histogram" else _summary
        samples = []
        for group in grouped.values():
            group.sort(key=_order)
            ordered = [sample for _, sample in group]
            yield len(group)
            if not check(family.name, ordered):
                return "invalid"
            yield len(group)
            samples += ordered
    if (yield from _twice(samples)):
        return "invalid"
    return Family(family.name, kind, family.help, tuple(samples))


def narrow(family: Family, keep: Collection[str], most: int, *, adds: bool) -> Steps[Family | Refused]:
    """The family with no labels but these, and a bucket's or quantile's bound. Series that are then one are added up.

    They may be not: only of counters and of histograms with the same buckets (`adds`) a sum has a meaning.
    """
    bound = {"histogram": "le", "summary": "quantile"}.get(family.type)
    sums: dict[tuple[str, Labels], float] = {}
    parts: Counter[tuple[str, Labels]] = Counter()
    for piece in _pieces(family.samples):
        for name, labels, value in piece:
            key = (name, tuple(entry for entry in labels if entry[0] in keep or entry[0] == bound))
            sums[key] = sums.get(key, 0) + value
            parts[key] += 1
        yield len(piece)
    if len(sums) > most:
        return "budget"
    if len(sums) < len(family.samples):
        if not adds or not all(map(math.isfinite, sums.values())):
            return "ambiguous"
        whole: dict[Labels, set[int]] = {}
        for counts in _pieces([*parts.items()]):
            for (_, labels), count in counts:
                whole.setdefault(tuple(entry for entry in labels if entry[0] != bound), set()).add(count)
            yield len(counts)
        if any(len(found) > 1 for found in whole.values()):
            return "ambiguous"  # one has a bucket, or a sum, that another has not
    samples = tuple(Sample(name, labels, value) for (name, labels), value in sums.items())
    return Family(family.name, family.type, family.help, samples)


def renamed(family: Family) -> Steps[Family | Refused]:
    """The family with no label that one of ours would hide, unless a series is then there twice."""
    for piece in _pieces(family.samples):
        yield len(piece)
        if any(name in _OURS for sample in piece for name, _ in sample.labels):
            break
    else:
        return family
    samples: list[Sample] = []
    for piece in _pieces(family.samples):
        samples += [sample._replace(labels=_renamed(sample.labels)) for sample in piece]
        yield len(piece)
    if (yield from _twice(samples)):
        return "invalid"
    return Family(family.name, family.type, family.help, tuple(samples))


def _pieces(items: Sequence[T]) -> Iterable[Sequence[T]]:
    if len(items) <= _SLICE:
        return (items,)
    return (items[start : start + _SLICE] for start in range(0, len(items), _SLICE))


def _twice(samples: Sequence[Sample]) -> Steps[bool]:
    if len(samples) == 1:
        return False
    seen: set[tuple[str, Labels]] = set()
    for piece in _pieces(samples):
        seen.update((sample.name, sample.labels) for sample in piece)
        yield len(piece)
    return len(seen) < len(samples)


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


def _grouped(
    name: str, samples: Sequence[Sample], bound: str, most: int
) -> Steps[dict[Labels, list[tuple[tuple[float, str], Sample]]] | Refused]:
    """Samples by their labels without the bound, which is made canonical; each with its place: bounds, count, sum."""
    groups: dict[Labels, list[tuple[tuple[float, str], Sample]]] = {}
    for piece in _pieces(samples):
        for sample in piece:
            labels = dict(sample.labels)
            order = (math.inf, sample.name)
            if sample.name in {f"{name}_bucket", name}:
                text = canonical(labels.pop(bound, ""))
                if text is None:
                    return "invalid"
                order = (float(text), "")
                sample = sample._replace(labels=tuple(sorted({**labels, bound: text}.items())))
            group = groups.setdefault(tuple(sorted(labels.items())), [])
            group.append((order, sample))
            if len(group) > most:
                return "budget"
        yield len(piece)
    return groups


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
