"""Writes `docs/reference/metrics.md` from the catalogue: `python -m collector.reference [--write]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector.catalogue import ABSENT, BASE_LABELS, CATALOGUE, OF_STOCK_AGENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from collector.metric import Metric

PAGE: Final = Path(__file__).resolve().parents[1] / "docs/reference/metrics.md"

_SECTIONS: Final = (
    ("container_", "The workload", "What the container itself uses, by the guest's word and by its record."),
    ("microvm_", "The micro-VM", "The host's bill, the hypervisor, and the guest as a machine."),
    ("machine_", "The host", "The machine that all of it runs on."),
    ("hyper_", "Ourselves", "The runtime, the collector, the exporter, the remediation controller."),
)

_INTRODUCTION: Final = """\
<!-- Written by `python -m collector.reference --write` from collector/catalogue.py. Do not edit. -->
# Metrics

Every metric of Hyperpulse, one table per part. `hyper-exporter` exports all of them but those of the remediation
controller, which exports its own.

- Series of a container carry the base labels {labels}; the table names the others.
- Of the container's own labels `container_info` has those that the setting `info_labels` names, in cAdvisor's way:
  `com.example/team` is `container_label_com_example_team`. At most 16, each cut at 128 characters; none unless named.
  Its `size` is the class (`hyper run --size`) of the container's vCPUs and memory limit, such as `S2`, else `other`.
- A metric that cannot be known is absent, never zero. "When" says on what a metric of a running container depends;
  those of a view are absent while that view does not answer, `microvm_source_up` tells which.
- "Tier": `default` is at most 60 series for an ordinary container. `deep` is exported for all containers with
  `deep = true` (`hyper-exporter --deep`), for one with the label `hyper.metrics.tier=deep`, and, with
  `alertmanager_url` set, for one that has an alert. A part of a metric may be deep, too: writes to the read-only image,
  `part="page_cache"`.
- Of a set of states (`state`, `status`, `by`) only the one that holds has a series, with the value 1.
- A counter does not go back within an epoch, unless its meaning says so; a restart begins a new one, and
  `container_start_time_seconds` moves.
- In InfluxDB the measurement is the part of the name before the dot in "Influx", the field what follows it.
  Tags are the labels; what is of no container has the tag `node` beside them, the name of its host. The
  remediation controller writes to no InfluxDB: its metrics have no such name.
- Of a guest with a stock `qemu-ga` in place of our agent the guest's view has {of_stock_agent},
  and no other. Its network and disks are the whole guest's; `container_fs_limit_bytes` is without what is kept for root
  (before QEMU 9.1), and an interface without an address has no counters.
- What an application exports itself is relayed beside these [if a label asks for it](../how-to/see-the-application.md).
- A metric of type "unknown" counts, but its name, taken over from cAdvisor, does not follow the rule for counters.
"""


def page() -> str:
    """The whole page."""
    labels = ", ".join(f"`{name}`" for name in BASE_LABELS)
    of_stock_agent = ", ".join(f"`{metric.name}`" for metric in OF_STOCK_AGENT)
    parts = [_INTRODUCTION.format(labels=labels, of_stock_agent=of_stock_agent)]
    for prefix, title, text in _SECTIONS:
        metrics = [metric for metric in CATALOGUE.values() if metric.name.startswith(prefix)]
        parts.append(f"\n## {title}\n\n{text}\n\n{_table(metrics)}")
    parts.append("\n## Not exported\n\nNames that people may look for, and why they are not here.\n\n")
    parts.append("| name | why |\n|---|---|\n")
    parts += [f"| `{name}` | {reason} |\n" for name, reason in ABSENT.items()]
    return "".join(parts)


def _table(metrics: Iterable[Metric]) -> str:
    rows = ["| name | type | unit | labels | tier | meaning | source | when | as in | Influx |", "|---" * 10 + "|"]
    for metric in metrics:
        cells = (
            f"`{metric.name}`",
            metric.type,
            metric.unit,
            ", ".join(f"`{name}`" for name in metric.labels),
            metric.tier,
            metric.help,
            metric.source,
            metric.when or "",
            metric.compat or "",
            f"`{metric.influx_measurement}.{metric.influx_field}`" if metric.scope != "remediation" else "",
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page, or write it to its place."""
    parser = argparse.ArgumentParser(prog="python -m collector.reference", description="Reference page of all metrics.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} instead of printing it")
    if parser.parse_args(argv).write:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
