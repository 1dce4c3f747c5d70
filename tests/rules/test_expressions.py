"""Every metric and label that a rule or a panel names is in the catalogue, and promtool can read every expression."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from alerts import generate as alerts_generate
from alerts import rules as alert_rules
from alerts.alert import DASHBOARDS
from alerts.thresholds import Thresholds
from collector.catalogue import BASE_LABELS, CATALOGUE
from dashboards import generate as dashboards_generate
from tests.panels import filled

if TYPE_CHECKING:
    from collections.abc import Iterator

FROM_PROMETHEUS = {"up", "ALERTS"}
LABELS_OF_ALERTS = {"alertname", "alertstate", "severity", "remediation", *BASE_LABELS}
TARGET_LABELS = {"instance", "job"}
KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
# Words that take a list of labels in parentheses.
GROUPING = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"


def names_and_labels(expr: str) -> tuple[set[str], set[str]]:
    """Names of the metrics in a PromQL expression, and of all labels that it mentions."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    labels = {label.strip() for group in re.findall(GROUPING, bare) for label in group.split(",") if label.strip()}
    bare = re.sub(GROUPING, " ", bare)
    for group in re.findall(r"\{([^}]*)\}", bare):
        labels |= set(re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", group))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    words = re.findall(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?!\w)(\s*\()?", bare)
    return {word for word, call in words if not call and word.lower() not in KEYWORDS}, labels


def expressions() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load(alerts_generate.contents()[alerts_generate.RULES_FILE])["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
            for query in re.findall(
                r'printf "([^"]*)" \S+ \| query', rule.get("annotations", {}).get("description", "")
            ):
                yield f"{rule['alert']} description", query.replace("'%s'", '"x"')
    for name, text in dashboards_generate.contents().items():
        dashboard = json.loads(text)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name} {panel['title']}", target["expr"]
        for mark in dashboard["annotations"]["list"]:
            yield f"{name} marks: {mark['name']}", mark["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name} ${variable['name']}", variable["query"]["query"].partition("(")[2].rpartition(",")[0]


ALL = list(expressions())
RECORDED = {where: expr for where, expr in ALL if ":" in where and " " not in where}


def test_the_reader_of_expressions_sees_names_and_labels() -> None:
    expr = 'sum by (a, b) (rate(m_one{x=~"y{z}", n!="by (q)"}[5m])) / on (id) group_left (s) (m_two == bool 1)'
    assert names_and_labels(expr) == ({"m_one", "m_two"}, {"a", "b", "x", "n", "id", "s"})
    assert names_and_labels("rate(m[$__rate_interval]) > 1e3 and topk(10, n offset 5m)") == ({"m", "n"}, set())


@pytest.mark.parametrize(("where", "expr"), ALL, ids=[where for where, _ in ALL])
def test_only_what_is_exported_is_asked_for(where: str, expr: str) -> None:
    names, labels = names_and_labels(expr)
    assert names or where == "HyperWatchdog", f"{where} asks for no metric: {expr}"
    while recorded := names & RECORDED.keys():  # what is asked for of a recorded series is what it is made of
        names -= recorded
        for one in recorded:
            names |= names_and_labels(RECORDED[one])[0]
    allowed = set(TARGET_LABELS) | (LABELS_OF_ALERTS if "ALERTS" in names else set())
    for name in names - FROM_PROMETHEUS:
        declared = name if name in CATALOGUE else re.sub(r"_(bucket|sum|count)$", "", name)
        assert declared in CATALOGUE, f"{where}: nothing exports {name}"
        metric = CATALOGUE[declared]
        allowed |= {"le"} if metric.type == "histogram" else set()
        allowed |= {*metric.labels, *(BASE_LABELS if metric.scope == "container" else ())}
    assert labels <= allowed, f"{where}: {names} have no label {labels - allowed}"


def test_promtool_can_read_every_expression(tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = []
    for number, (_, expr) in enumerate(ALL):
        rules.append({"record": f"expression:{number}", "expr": filled(expr)})
    path = tmp_path / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALL)} rules found" in done.stdout


def test_alerts_link_to_the_dashboard_that_there_is() -> None:
    uids = {json.loads(text)["uid"] for text in dashboards_generate.contents().values()}
    assert set(DASHBOARDS.values()) <= uids
    for alert in alert_rules.alerts(Thresholds()):
        assert f"/d/{DASHBOARDS[alert.scope]}" in alert.to_rule(Thresholds())["annotations"]["dashboard_url"]


def test_alerts_that_need_the_deep_tier_say_so() -> None:
    reference = (Path(__file__).parents[2] / "docs/reference/alerts.md").read_text()
    for alert in alert_rules.alerts(Thresholds()):
        names, _ = names_and_labels(alert.expr)
        if any(CATALOGUE[name].tier == "deep" for name in names & CATALOGUE.keys()):
            row = next(line for line in reference.splitlines() if f"[{alert.name}]" in line)
            assert "deep tier" in row, f"{alert.name} cannot fire by default"
