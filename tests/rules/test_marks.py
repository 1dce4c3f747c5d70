"""Marks on the panels: the minute in which a container has another image, and no other, by a real Prometheus' word."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import yaml

from dashboards import marks
from dashboards.promql import Chosen
from tests.panels import filled

if TYPE_CHECKING:
    from pathlib import Path


def test_a_change_of_image_is_marked_and_a_new_container_is_not(tmp_path: Path) -> None:
    expr = filled(marks.digests(Chosen(("namespace", "container")))["expr"])
    (tmp_path / "none.yml").write_text("groups: []\n")
    base = 'namespace="shop", pod="web", container="web"'
    changed = [
        {"labels": '{namespace="shop", pod="web", container="web", digest="sha256:new"}', "value": 1},
    ]
    test = {
        "rule_files": ["none.yml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    # The old one for five minutes, then, started anew, the new one; beside it one that is only new.
                    {"series": f'container_info{{{base}, id="a", epoch="1", digest="sha256:old"}}',
                     "values": "1x20 stale"},
                    {"series": f'container_info{{{base}, id="a", epoch="2", digest="sha256:new"}}',
                     "values": "_x20 1x40"},
                    {"series": 'container_info{namespace="shop", pod="db", container="db", id="b", digest="sha256:x"}',
                     "values": "_x20 1x40"},
                ],
                "promql_expr_test": [
                    {"expr": expr, "eval_time": "4m", "exp_samples": []},
                    {"expr": expr, "eval_time": "5m30s", "exp_samples": changed},
                    {"expr": expr, "eval_time": "7m", "exp_samples": []},
                ],
            }
        ],
    }  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
