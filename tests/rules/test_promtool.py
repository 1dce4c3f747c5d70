"""promtool and amtool judge what is generated."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import generate, rules
from alerts.thresholds import Routing, Thresholds

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS = sorted(HERE.glob("*.test.yml"))
ALERTS = {alert.name: alert for alert in rules.alerts(Thresholds())}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", TESTS, ids=[path.name for path in TESTS])
def test_the_rules_fire_and_stay_silent(path: Path) -> None:
    done = run("promtool", "test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_firing_and_silent_and_has_a_runbook() -> None:
    assert {path.name for path in TESTS} == {f"{name}.test.yml" for name in ALERTS}
    for path in TESTS:
        name = path.name.removesuffix(".test.yml")
        document = yaml.safe_load(path.read_text())
        assert document["rule_files"] == ["../../alerts/generated/hyper.rules.yml"]
        cases: dict[str, list[Any]] = {test["name"]: test["alert_rule_test"] for test in document["tests"]}
        assert set(cases) == {"fires", "stays silent"}
        assert {case["alertname"] for test in cases.values() for case in test} == {name}
        fired = [alert for case in cases["fires"] for alert in case["exp_alerts"]]
        assert fired
        assert all(
            set(alert["exp_annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
            for alert in fired
        )
        assert not any(case["exp_alerts"] for case in cases["stays silent"])
    assert {path.stem for path in (ROOT / "docs/runbooks").glob("Hyper*.md")} == set(ALERTS)
    reference = (ROOT / "docs/reference/alerts.md").read_text()
    for name, alert in ALERTS.items():
        text = (ROOT / alert.to_rule(Thresholds())["annotations"]["runbook_url"]).read_text()
        assert text.startswith(f"# {name}\n")
        for part in ("## Meaning", "## Impact", "## Diagnosis", "## Mitigation"):
            assert part in text, f"{name} has no {part}"
        assert "hyper " in text
        assert name in reference


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_a_rule_that_says_or_does_otherwise_fails_its_test(name: str, tmp_path: Path) -> None:
    for spoil in ("expr", "annotation"):
        document = rules.rule_file(Thresholds())
        rule = next(rule for rule in document["groups"][0]["rules"] if rule["alert"] == name)
        if spoil == "expr":
            rule["expr"] += " and vector(1) == 2"
        else:
            rule["annotations"]["description"] += "!"
        path = tmp_path / "rules.yml"
        path.write_text(yaml.safe_dump(document))
        case = tmp_path / "case.test.yml"
        text = (HERE / f"{name}.test.yml").read_text()
        case.write_text(text.replace("../../alerts/generated/hyper.rules.yml", str(path)))
        assert run("promtool", "test", "rules", case).returncode != 0, spoil


@pytest.mark.parametrize(
    "thresholds", [Thresholds(), Thresholds(container_down_for="5s", evaluation_interval="1s", exporter_job="x")]
)
def test_promtool_takes_the_rules(thresholds: Thresholds, tmp_path: Path) -> None:
    path = tmp_path / "hyper.rules.yml"
    generate.write_rules(path, thresholds)
    done = run("promtool", "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("token", ["", "token"])
def test_amtool_takes_the_routes(token: str, tmp_path: Path) -> None:
    path = tmp_path / "alertmanager.yml"
    (tmp_path / "token").write_text("secret")
    file = str(tmp_path / token) if token else ""
    generate.write_alertmanager(path, Routing(webhook_url="http://127.0.0.1:1/x", webhook_token_file=file))
    done = run("amtool", "check-config", path)
    assert done.returncode == 0, done.stdout + done.stderr
    acted = run("amtool", "config", "routes", "test", f"--config.file={path}", "remediation=redeploy")
    people = run("amtool", "config", "routes", "test", f"--config.file={path}", "severity=page")
    assert (acted.stdout.strip(), people.stdout.strip()) == ("remediation", "interface")


def test_promtool_takes_the_configuration_of_prometheus(tmp_path: Path) -> None:
    generate.write_rules(tmp_path / "hyper.rules.yml")
    generate.write_prometheus(
        tmp_path / "prometheus.yml",
        rule_file=tmp_path / "hyper.rules.yml",
        alertmanager_address="127.0.0.1:9093",
        exporter_address="127.0.0.1:9720",
        remediation_address="127.0.0.1:9721",
        scrape_interval="1s",
    )
    done = run("promtool", "check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout
