"""promtool and amtool judge what is generated; every alert has its two tests and its runbook."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import generate, rules
from alerts.thresholds import Routing, Thresholds, seconds
from collector.catalogue import CATALOGUE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS = sorted(HERE.glob("*.test.yml"))
ALERTS = {alert.name: alert for alert in rules.alerts(Thresholds())}
RULES = sum(len(group["rules"]) for group in rules.rule_file(Thresholds())["groups"])
ALWAYS = "HyperWatchdog"  # nothing silences it but its setting
ANNOTATIONS = {"summary", "description", "runbook_url", "dashboard_url"}
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "End"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def cases(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What is expected of each scenario of a test file, by its name."""
    return {test["name"]: test["alert_rule_test"] for test in yaml.safe_load(path.read_text())["tests"]}


def test_the_rules_fire_and_stay_silent(tmp_path: Path) -> None:
    # Each alert with its own group alone, which has all that it asks for: a day of all others' rules takes a minute.
    groups = yaml.safe_load(generate.contents()[generate.RULES_FILE])["groups"]
    for test in TESTS:
        name, text = test.name.removesuffix(".test.yml"), test.read_text()
        wanted = [
            one
            for one in groups
            if any(rule.get("alert") == name or f"expr: {rule.get('record')}\n" in text for rule in one["rules"])
        ]
        assert wanted, name
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"groups": wanted}))
        text = text.replace("../../alerts/generated/hyper.rules.yml", f"{name}.yml")
        (tmp_path / test.name).write_text(text)
    done = run("promtool", "test", "rules", *(tmp_path / test.name for test in TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(TESTS)


def test_every_alert_is_tested_firing_and_silent() -> None:
    assert {path.name for path in TESTS} == {f"{name}.test.yml" for name in ALERTS}
    for path in TESTS:
        name = path.name.removesuffix(".test.yml")
        assert yaml.safe_load(path.read_text())["rule_files"] == ["../../alerts/generated/hyper.rules.yml"]
        of = cases(path)
        assert set(of) == ({"fires"} if name == ALWAYS else {"fires", "stays silent"}), name
        assert {case["alertname"] for test in of.values() for case in test} == {name}
        fired = [alert for case in of["fires"] for alert in case["exp_alerts"]]
        assert fired, name
        assert all(set(alert["exp_annotations"]) == ANNOTATIONS for alert in fired)
        assert not any(case["exp_alerts"] for case in of.get("stays silent", ())), name


def test_every_alert_tells_its_value_and_who_it_is_about() -> None:
    for name, alert in ALERTS.items():
        # A state has no number that says more than its name; a container that is down has its exit code.
        told = ("$value", "$labels.status", "| value")
        assert alert.scope == "all" or any(word in alert.description for word in told), name
        assert alert.summary != alert.description
        if alert.scope == "container":
            assert "$labels.name" in alert.summary, name
            assert "$labels.id" in alert.description, name
        elif alert.scope != "all":
            assert "$labels.instance" in alert.summary, name
            assert "$labels.instance" in alert.description, name


def test_nobody_is_woken_by_a_moment() -> None:
    for name, alert in ALERTS.items():
        if alert.severity == "page" and seconds(alert.for_) < 30:
            # What has no `for` looks at a window itself, or at what a person has to undo.
            lasting = "[" in alert.expr or ":ratio_" in alert.expr or name == "HyperContainerQuarantined"
            assert lasting, f"{name} pages for a single sample"


def test_every_rule_of_a_name_that_several_have_is_seen_firing() -> None:
    windows = {(alert.name, alert.labels["window"]) for alert in rules.alerts(Thresholds()) if alert.labels}
    assert windows
    for name, window in windows:
        fired = [alert for case in cases(HERE / f"{name}.test.yml")["fires"] for alert in case["exp_alerts"]]
        assert window in {alert["exp_labels"]["window"] for alert in fired}, (name, window)


@pytest.mark.parametrize("spoil", ["expr", "annotation"])
def test_a_rule_that_says_or_does_otherwise_fails_its_test(spoil: str, tmp_path: Path) -> None:
    names = ["HyperContainerDown", "HyperExporterMissing"]
    document = rules.rule_file(Thresholds())
    for rule in (rule for group in document["groups"] for rule in group["rules"] if rule.get("alert") in names):
        if spoil == "expr":
            rule["expr"] = f"({rule['expr']}) and vector(1) == 2"
        else:
            rule["annotations"]["description"] += "!"
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(document))
    for name in names:
        text = (HERE / f"{name}.test.yml").read_text()
        text = text.replace("../../alerts/generated/hyper.rules.yml", str(tmp_path / "rules.yml"))
        (tmp_path / f"{name}.test.yml").write_text(text)
    done = run("promtool", "test", "rules", *(tmp_path / f"{name}.test.yml" for name in names))
    assert done.stdout.count("FAILED") + done.stderr.count("FAILED") == len(names), done.stdout + done.stderr
    assert done.returncode != 0


def test_every_alert_has_a_runbook_with_what_somebody_on_call_wants() -> None:
    assert {path.stem for path in (ROOT / "docs/runbooks").glob("Hyper*.md")} == set(ALERTS)
    reference = (ROOT / "docs/reference/alerts.md").read_text()
    for name, alert in ALERTS.items():
        text = (ROOT / alert.to_rule(Thresholds())["annotations"]["runbook_url"]).read_text()
        assert text.startswith(f"# {name}\n")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS, name
        diagnosis = text.partition("## Diagnosis")[2].partition("## Mitigation")[0]
        assert "```" in diagnosis, f"{name} has no command to check first"
        assert f"[{name}](../runbooks/{name}.md) | {alert.severity} |" in reference


def test_runbooks_name_only_commands_settings_and_metrics_that_there_are() -> None:
    known = set(re.findall(r"^  ([a-z]+) ", run(Path(sys.executable).parent / "hyper", "--help").stdout, re.MULTILINE))
    assert {"ps", "inspect", "redeploy"} <= known
    settings = {*Thresholds.__dataclass_fields__, *Routing.__dataclass_fields__}
    for path in (ROOT / "docs/runbooks").glob("Hyper*.md"):
        text = path.read_text()
        commands = set(re.findall(r"(?:^ *|`)hyper ([a-z]+)", text, re.MULTILINE))
        assert commands <= known, f"{path.name}: {commands - known}"
        named = set(re.findall(r"--set ([a-z_]+)=", text))
        named |= {word for word in re.findall(r"`([a-z_]+)`", text) if word.endswith(("_for", "_window", "_ratio"))}
        assert named <= settings, f"{path.name}: {named - settings}"
        metrics = set(re.findall(r"\b(?:container|microvm|machine|hyper)_[a-z0-9_]+\b(?!:)", text)) - settings
        assert metrics <= CATALOGUE.keys(), f"{path.name}: nothing exports {metrics - CATALOGUE.keys()}"


@pytest.mark.parametrize(
    "thresholds",
    [
        Thresholds(),
        Thresholds(
            container_down_for="5s", evaluation_interval="1s", slo_interval="1s", exporter_job="x", watchdog=False
        ),
    ],
)
def test_promtool_takes_the_rules(thresholds: Thresholds, tmp_path: Path) -> None:
    path = tmp_path / "hyper.rules.yml"
    generate.write_rules(path, thresholds)
    done = run("promtool", "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RULES - (not thresholds.watchdog)} rules found" in done.stdout


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
    assert f"{RULES} rules found" in done.stdout


@pytest.mark.parametrize("token", ["", "token"])
def test_amtool_takes_the_routes(token: str, tmp_path: Path) -> None:
    path = tmp_path / "alertmanager.yml"
    (tmp_path / "token").write_text("secret")
    file = str(tmp_path / token) if token else ""
    generate.write_alertmanager(path, Routing(webhook_url="http://127.0.0.1:1/x", webhook_token_file=file))
    done = run("amtool", "check-config", path)
    assert done.returncode == 0, done.stdout + done.stderr
