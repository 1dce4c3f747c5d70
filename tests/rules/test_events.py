"""What counts as an event, by a real Prometheus' word: minute by minute, in alerts and on dashboards."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from alerts import promql
from collector.catalogue import container, microvm
from dashboards.promql import Chosen

if TYPE_CHECKING:
    from pathlib import Path

    from collector.catalogue import Metric

    Situation = tuple[str, dict[str, str], tuple[int, int, int] | None]
    """Whether the target answers, what it says of a container by each of its names, and from when to when there are how
    many events. Targets are asked once a minute; the window is of ten."""

ANSWERS = "1x80"
AWAY = "1x20 _x25 1x40"
"""Prometheus is away from minute 21 to 45, longer than the window."""

EITHER: dict[str, Situation] = {
    "begins with its first": (ANSWERS, {"web": "_x20 2x60"}, (20, 29, 2)),
    "grows": (ANSWERS, {"web": "3x19 5x60"}, (20, 29, 2)),
    "goes back": (ANSWERS, {"web": "4x19 1x60"}, (20, 29, 1)),
    "stands still": (ANSWERS, {"web": "4x80"}, None),
    "one scrape fails": ("1x29 0 1x60", {"web": "4x29 stale 4x60"}, None),
    "one scrape fails soon after the first": ("1x22 0 1x60", {"web": "_x20 2x2 stale 2x60"}, (20, 29, 2)),
    "its target does not answer for long": ("1x20 0x25 1x40", {"web": "4x20 stale _x24 4x40"}, None),
    "Prometheus is away": (AWAY, {"web": "4x20 _x25 4x40"}, None),
    "its first while Prometheus is away": (AWAY, {"web": "_x46 2x40"}, (46, 55, 2)),
    "gets another name": (ANSWERS, {"web": "4x29 stale", "shop": "_x30 4x60"}, None),
}
BEGINS_ANEW: dict[str, Situation] = {
    "who counts is started again": (ANSWERS, {"web": "2x20 stale _x30 2x60"}, (52, 61, 2)),
}
GOES_ON: dict[str, Situation] = {
    "it is not known for a while": (ANSWERS, {"web": "4x20 stale _x30 4x60"}, None),
    "Prometheus is new": ("_x30 1x60", {"web": "_x30 4x60"}, None),
    "its first after that": ("_x30 1x60", {"web": "_x45 2x60"}, (45, 54, 2)),
}


@pytest.mark.parametrize(
    ("form", "metric", "situations"),
    [
        (promql.events(microvm.EVENTS_TOTAL, "10m"), microvm.EVENTS_TOTAL, EITHER | BEGINS_ANEW),
        (Chosen(()).events(microvm.EVENTS_TOTAL, "10m"), microvm.EVENTS_TOTAL, EITHER | BEGINS_ANEW),
        (promql.kept_events(container.OOM_EVENTS_TOTAL, "10m"), container.OOM_EVENTS_TOTAL, EITHER | GOES_ON),
    ],
    ids=["alerts", "dashboards", "kept"],
)
def test_what_is_new_counts_and_nothing_else(
    form: str, metric: Metric, situations: dict[str, Situation], tmp_path: Path
) -> None:
    series, asked = [], []
    for place, (up, names, _) in situations.items():
        target = f'instance="{place}", job="hyper-exporter"'
        series.append({"series": f"up{{{target}}}", "values": up})
        for name, values in names.items():
            labels = f'{{{target}, id="{place}", name="{name}", event="watchdog"}}'
            series.append({"series": metric.name + labels, "values": values})
    for minute in range(15, 75):
        counted = [
            {"labels": f'{{instance="{place}"}}', "value": span[2]}
            for place, (_, _, span) in situations.items()
            if span is not None and span[0] <= minute <= span[1]
        ]
        asked.append({"expr": f"sum by (instance) ({form}) > 0", "eval_time": f"{minute}m", "exp_samples": counted})
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    (tmp_path / "none.yml").write_text("groups: []\n")
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["none.yml"], "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
