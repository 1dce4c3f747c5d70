"""Marks on the panels, by a real Prometheus' word: what is marked for a container, and that nothing else is."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from dashboards import marks
from dashboards.promql import Chosen
from tests.panels import filled

if TYPE_CHECKING:
    from pathlib import Path


def checked(tmp_path: Path, tests: list[dict[str, Any]]) -> None:
    (tmp_path / "none.yml").write_text("groups: []\n")
    test = {"rule_files": ["none.yml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_action_is_marked_on_the_container_that_the_controller_was_told_of(tmp_path: Path) -> None:
    acted = 'hyper_remediation_last_action_timestamp_seconds{instance="h:9721"}'
    fired = 'alertstate="firing", namespace="shop", pod="web", container="web", instance="h:9720", id="a"'
    marked = {"labels": '{container="web", alertname="HyperContainerDown"}', "value": 300_000}

    def on(container: str) -> str:
        chosen = Chosen(("instance", "namespace", "pod", "container"))
        return filled(marks.actions_on(chosen)["expr"], container=container)

    series = [
        # Down from 4:30 to 5:15; the controller acted at 5:00, which is seen from then on for good.
        {"series": f'ALERTS{{{fired}, alertname="HyperContainerDown", remediation="redeploy", severity="page"}}',
         "values": "_x18 1x3 stale"},
        {"series": f'ALERTS{{{fired}, alertname="HyperMemoryPressure", severity="ticket"}}', "values": "1x80"},
        {"series": acted, "values": "_x20 300x60"},
    ]  # fmt: skip
    cases = [("web", "4m45s", []), ("web", "5m30s", [marked]), ("db", "5m30s", []), ("web", "9m", [])]
    asked = [{"expr": on(name), "eval_time": at, "exp_samples": samples} for name, at, samples in cases]
    checked(tmp_path, [{"interval": "15s", "input_series": series, "promql_expr_test": asked}])


def test_alerts_of_other_containers_are_not_marked(tmp_path: Path) -> None:
    chosen = Chosen(("instance", "namespace", "pod", "container"))
    of = 'namespace="shop", pod="web", instance="h:9720", alertstate="firing"'
    series = [
        {"series": f'ALERTS{{{of}, container="web", alertname="HyperOomKill", severity="ticket"}}', "values": "1x20"},
        {"series": f'ALERTS{{{of}, container="db", alertname="HyperContainerDown", severity="page"}}',
         "values": "1x20"},
        {"series": 'ALERTS{instance="h:9720", alertstate="firing", alertname="HyperRuntimeDown", severity="page"}',
         "values": "1x20"},
    ]  # fmt: skip
    names = [
        (marks.alerts(chosen)["expr"], "web", ["HyperOomKill"]),
        (marks.pages(chosen)["expr"], "web", []),
        (marks.pages(Chosen(("instance",)))["expr"], ".*", ["HyperContainerDown", "HyperRuntimeDown"]),
    ]
    asked = [
        {
            "expr": f"count by (alertname) ({filled(expr, container=container)})",
            "eval_time": "2m",
            "exp_samples": [{"labels": f'{{alertname="{one}"}}', "value": 1} for one in fire],
        }
        for expr, container, fire in names
    ]
    checked(tmp_path, [{"interval": "15s", "input_series": series, "promql_expr_test": asked}])


def test_a_change_of_image_is_marked_and_a_new_container_is_not(tmp_path: Path) -> None:
    expr = filled(marks.digests(Chosen(("namespace", "container")))["expr"])
    base = 'namespace="shop", pod="web", container="web"'
    changed = [
        {"labels": '{namespace="shop", pod="web", container="web", digest="sha256:new"}', "value": 1},
    ]
    series = [
        # The old one for five minutes, then, started anew, the new one; beside it one that is only new.
        {"series": f'container_info{{{base}, id="a", epoch="1", digest="sha256:old"}}', "values": "1x20 stale"},
        {"series": f'container_info{{{base}, id="a", epoch="2", digest="sha256:new"}}', "values": "_x20 1x40"},
        {"series": 'container_info{namespace="shop", pod="db", container="db", id="b", digest="sha256:x"}',
         "values": "_x20 1x40"},
    ]  # fmt: skip
    asked = [
        {"expr": expr, "eval_time": "4m", "exp_samples": []},
        {"expr": expr, "eval_time": "5m30s", "exp_samples": changed},
        {"expr": expr, "eval_time": "7m", "exp_samples": []},
    ]
    checked(tmp_path, [{"interval": "15s", "input_series": series, "promql_expr_test": asked}])
