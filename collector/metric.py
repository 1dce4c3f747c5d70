"""What a metric is: the one declaration from which exposition, Influx fields, dashboards and docs are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

Type = Literal["counter", "gauge", "histogram", "unknown"]
Scope = Literal["container", "host", "self", "remediation"]
Tier = Literal["default", "deep"]

HISTOGRAM_PARTS: Final = ("bucket", "count", "sum")
"""What the series of a histogram are called, behind its name."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the standard.

    Attributes:
        name: its Prometheus name; base units, `_total` on counters.
        type: `unknown` is for counts whose outside name has no `_total`, which OpenMetrics does not allow a counter.
        unit: base unit, "" for a plain number. It need not be part of the name (`container_memory_rss` is bytes).
        help: one sentence for people.
        group: beginning of `name`, and the InfluxDB measurement; the rest of the name is the field.
        source: where the number comes from: a kernel file, a QMP or agent command, a member of the record.
        labels: names of its labels, beside `BASE_LABELS` for scope `container`.
        scope: `container` series carry the base labels; `host` and `self` are one per host; `remediation` is exported
            by the alert controller and never by `hyper-exporter`.
        tier: `deep` is exported on request alone: by setting, by a label of the container, while an alert of it fires.
        compat: what else exports this name with this meaning, e.g. "cAdvisor".
        wraps: a counter that the kernel keeps in 32 bits, so that it begins again within an epoch.
        when: the condition on which a running container has it; None: always.
    """

    name: str
    type: Type
    unit: str
    help: str
    group: str
    source: str
    labels: tuple[str, ...] = ()
    scope: Scope = "container"
    tier: Tier = "default"
    compat: str | None = None
    when: str | None = None
    wraps: bool = False

    @property
    def influx_measurement(self) -> str:
        """Measurement of the InfluxDB line."""
        return self.group

    @property
    def influx_field(self) -> str:
        """Field of the InfluxDB line: measurement, "_" and field make the Prometheus name again."""
        return self.name.removeprefix(f"{self.group}_")

    @property
    def family(self) -> str:
        """Name of the OpenMetrics family: a counter's name without `_total`."""
        return self.name.removesuffix("_total") if self.type == "counter" else self.name

    def part(self, suffix: str, *labels: str) -> Metric:
        """Series of a histogram: one of `HISTOGRAM_PARTS`, with labels beside the histogram's own; it counts up."""
        return replace(self, name=f"{self.name}_{suffix}", type="counter", labels=(*self.labels, *labels))

    def __hash__(self) -> int:
        """Hash of the name, which is unique; hashing all members is too slow for every sample."""
        return hash(self.name)
