from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from alerts import generate, rules
from alerts.errors import BadSetting
from alerts.remediation import policy
from alerts.thresholds import Routing, Thresholds, override, seconds

if TYPE_CHECKING:
    from pathlib import Path


QUIET = Thresholds(watchdog=False)


@pytest.mark.parametrize("name", sorted(generate.contents()))
def test_the_committed_file_is_what_the_generator_writes(name: str) -> None:
    committed = (generate.GENERATED / name).read_text()
    assert committed == generate.contents()[name], "run `python -m alerts --write` and commit the result"


def test_there_is_no_other_committed_file() -> None:
    assert {path.name for path in generate.GENERATED.iterdir()} == set(generate.contents())


def rule_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(rule for group in document["groups"] for rule in group["rules"] if rule.get("alert") == name)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "alerts", *arguments], capture_output=True, text=True, check=False)


def test_the_command_writes_other_thresholds_where_it_is_told(tmp_path: Path) -> None:
    done = command(
        "--write", "--out", str(tmp_path), "--set", "container_down_for=5s", "--set", "group_wait=0s",
        "--set", "webhook_url=http://127.0.0.1:1234/alertmanager",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load((tmp_path / generate.RULES_FILE).read_text())
    down = rule_of(document, "HyperContainerDown")
    assert down["for"] == "5s"
    assert "down for 5s" in down["annotations"]["description"]
    routes = yaml.safe_load((tmp_path / generate.ALERTMANAGER_FILE).read_text())
    assert routes["route"]["group_wait"] == "0s"
    assert routes["receivers"][1]["webhook_configs"][0]["url"] == "http://127.0.0.1:1234/alertmanager"
    assert "container_down_for=30s" in command().stdout.splitlines()


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("container_down_for", "name=value"),
        ("container_down=5s", "no such setting"),
        ("container_down_for=soon", "duration"),
        ("memory_near_limit_ratio=90", "ratio"),
        ("memory_near_limit_ratio=nan", "ratio"),
        ("webhook_url=ftp://x", "URL"),
        ("watchdog=no", "true or false"),
        ("many_down_count=2.5", "whole number"),
        ("influx_backlog_bytes=-1", "whole number"),
        ("slo_start_s=inf", "number above 0"),
        ("host_overcommit_factor=much", "number above 0"),
        ('exporter_job=x"} or vector(1)', "letters"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(pair: str, says: str) -> None:
    with pytest.raises(BadSetting, match=pair.partition("=")[0]) as caught:
        override([pair])
    assert says in str(caught.value)
    done = command("--write", "--out", "/nonexistent", "--set", pair)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_settings_are_laid_over_one_another() -> None:
    thresholds, routing = override(["memory_near_limit_ratio=0.5", "repeat_interval=1m"], Thresholds(oom_window="1h"))
    assert thresholds == Thresholds(oom_window="1h", memory_near_limit_ratio=0.5)
    assert routing == Routing(repeat_interval="1m")


def test_what_is_labelled_for_remediation_is_what_the_controller_acts_on() -> None:
    labelled = {
        rule["alert"]: rule["labels"]["remediation"]
        for group in rules.rule_file(Thresholds())["groups"]
        for rule in group["rules"]
        if "remediation" in rule.get("labels", ())
    }
    assert labelled == dict(policy.ACTIONS)


def test_the_watchdog_can_be_left_out() -> None:
    names = {alert.name for alert in rules.alerts(Thresholds())} - {alert.name for alert in rules.alerts(QUIET)}
    assert names == {"HyperWatchdog"}


def test_every_threshold_is_in_a_rule() -> None:
    """A setting that changes nothing is a promise that is not kept."""
    before = rules.rule_file(Thresholds())
    for name, value in asdict(Thresholds()).items():
        other: Any = not value if isinstance(value, bool) else value * 0.9 if isinstance(value, float) else value
        other = value + 1 if type(value) is int else other
        if isinstance(value, str):
            other = "7m" if name.endswith(("_for", "_window", "_interval")) else f"{value}/other"
        assert rules.rule_file(replace(Thresholds(), **{name: other})) != before, name


def test_durations_have_a_length() -> None:
    assert [seconds(one) for one in ("10s", "1h30m", "500ms", "3d")] == [10, 5400, 0.5, 259200]


def test_the_command_writes_who_is_told(tmp_path: Path) -> None:
    settings = tmp_path / "receivers.toml"
    settings.write_text("[[receivers]]\nname = 'hook'\nkind = 'webhook'\nurl = 'http://127.0.0.1:1/x'\n")
    done = command("--write", "--out", str(tmp_path), "--receivers", str(settings))
    assert done.returncode == 0, done.stderr
    routes = yaml.safe_load((tmp_path / generate.ALERTMANAGER_FILE).read_text())
    assert routes["receivers"][-1]["name"] == "hook"
    done = command("--write", "--out", str(tmp_path), "--receivers", str(tmp_path / "none.toml"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
