"""Who is told what: the routes as amtool reads them, and what silences what, as Alertmanager's rules say."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from alerts import alertmanager, generate, receivers, rules
from alerts.errors import BadSetting
from alerts.thresholds import Thresholds

if TYPE_CHECKING:
    from pathlib import Path

    from alerts.alert import Alert

SETTINGS = """
[[receivers]]
name = "on-call"
kind = "pagerduty"
severities = ["page"]
routing_key_file = "{dir}/key"

[[receivers]]
name = "chat"
kind = "slack"
api_url_file = "{dir}/url"
channel = "#hyper"

[[receivers]]
name = "bank"
kind = "email"
namespaces = 'bank\\.eu|bank-test'
to = "bank@example.com"
sender = "hyper@example.com"
smarthost = "mail.example.com:587"
username = "hyper"
password_file = "{dir}/password"

[[receivers]]
name = "tickets"
kind = "webhook"
severities = ["ticket"]
url = "https://tickets.example.com/alerts"
token_file = "{dir}/token"

[dead_man]
url = "https://dead-man.example.com/hyper"
token_file = "{dir}/token"
interval = "30s"
"""
ALERTS = {alert.name: alert for alert in rules.alerts(Thresholds())}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("routes")
    for name in ("key", "url", "password", "token"):
        (root / name).write_text(f"https://secret.example.com/{name}")
    (root / "receivers.toml").write_text(SETTINGS.format(dir=root))
    path = root / "alertmanager.yml"
    generate.write_alertmanager(path, receivers=receivers.load(root / "receivers.toml"))
    return path


def test_amtool_takes_all_kinds_of_receivers_and_no_secret_stands_in_the_file(config: Path) -> None:
    done = subprocess.run(["amtool", "check-config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 receivers" in done.stdout
    assert "secret" not in config.read_text()
    for setting in ("routing_key_file", "api_url_file", "auth_password_file", "credentials_file"):
        assert setting in config.read_text()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("alertname=HyperContainerDown severity=page namespace=shop remediation=redeploy", "remediation,on-call,chat"),
        ("alertname=HyperContainerDown severity=page namespace=bank.eu remediation=redeploy",
         "remediation,on-call,chat,bank"),
        ("alertname=HyperOomKill severity=ticket namespace=shop", "chat,tickets"),
        ("alertname=HyperOomKill severity=ticket namespace=bankxeu", "chat,tickets"),
        ("alertname=HyperOomKill severity=ticket namespace=bank-test", "chat,bank,tickets"),
        ("alertname=HyperExporterDown severity=page instance=h:1", "remediation,on-call,chat"),
        ("alertname=HyperRuntimeDown severity=page instance=h:1", "on-call,chat"),
        ("alertname=HyperStartFallbacks severity=info instance=h:1", "interface"),
        ("alertname=HyperWatchdog severity=none", "dead-man"),
        ("alertname=SomebodyElses", "interface"),
    ],
)  # fmt: skip
def test_who_gets_what(config: Path, labels: str, told: str) -> None:
    command = ["amtool", "config", "routes", "test", f"--config.file={config}", *labels.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == told


def test_without_receivers_the_controller_alone_is_told(tmp_path: Path) -> None:
    path = tmp_path / "alertmanager.yml"
    generate.write_alertmanager(path)
    for labels, told in (
        (["severity=page", "remediation=redeploy"], "remediation"),
        (["severity=page"], "interface"),
        (["alertname=HyperWatchdog"], "interface"),
    ):
        command = ["amtool", "config", "routes", "test", f"--config.file={path}", *labels]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == told


def labels(alert: Alert, **more: str) -> dict[str, str]:
    """Labels that the alert has when it fires: of container `c1` of host `h1` unless told otherwise."""
    own = {"alertname": alert.name, "severity": alert.severity, "cause": alert.cause}
    if alert.scope == "container":
        own |= {"id": "c1", "namespace": "shop"}
    if alert.scope in {"container", "host"}:
        own |= {"instance": "h1:9720"}
    if alert.scope == "remediation":
        own |= {"instance": "h1:9721"}
    return own | more


def silences(source: dict[str, str], target: dict[str, str]) -> bool:
    """Alertmanager's own rule: both sides match, labels that both lack are equal, and no alert silences itself."""

    def matches(matchers: list[str], of: dict[str, str]) -> bool:
        for matcher in matchers:
            label, operator, value = re.fullmatch(r'(\w+) (=~|!~|!=|=) "(.*)"', matcher).groups()  # type: ignore[union-attr] -- a matcher of another form is a mistake
            has = of.get(label, "")
            hit = re.fullmatch(value, has) is not None if "~" in operator else has == value
            if hit == operator.startswith("!"):
                return False
        return True

    def applies(rule: dict[str, Any]) -> bool:
        same = all(source.get(label, "") == target.get(label, "") for label in rule["equal"])
        both = matches(rule["target_matchers"], source) and matches(rule["source_matchers"], target)
        return (
            same and not both and matches(rule["source_matchers"], source) and matches(rule["target_matchers"], target)
        )

    return any(applies(rule) for rule in alertmanager.inhibitions())


OF_CONTAINER = {name for name, alert in ALERTS.items() if alert.scope == "container"}
OF_HOST = {name for name, alert in ALERTS.items() if alert.scope == "host"}
BURNS = {"HyperAvailabilityBurnsFast", "HyperAvailabilityBurnsSlowly"}
TOLD_STILL = {"HyperContainerFlapping", "HyperOomKill", "HyperVmEvent"}
AWAY = {*BURNS, "HyperRelayDown"}
BLIND = {"HyperExporterDown", "HyperCollectorStalled"}


@pytest.mark.parametrize(
    ("source", "silenced"),
    [
        ("HyperExporterDown", (OF_CONTAINER | OF_HOST) - BLIND),
        ("HyperCollectorStalled", (OF_CONTAINER | OF_HOST) - BLIND),
        ("HyperManyContainersDown", {"HyperContainerDown", *BURNS}),
        ("HyperContainerDown", OF_CONTAINER - {"HyperContainerDown", *TOLD_STILL}),
        ("HyperContainerFlapping", AWAY),
        ("HyperContainerUnhealthy", AWAY),
        ("HyperVmStopped", {"HyperAgentUnhealthy", "HyperContainerUnhealthy", "HyperHostViewLost", *AWAY}),
        ("HyperQemuSilent", {"HyperAgentUnhealthy", "HyperContainerUnhealthy", "HyperHostViewLost", *AWAY}),
        ("HyperAgentUnhealthy", AWAY),
        ("HyperProbeFailing", {"HyperRelayDown", "HyperAvailabilityBurnsSlowly"}),
        ("HyperAvailabilityBurnsFast", {"HyperRelayDown", "HyperAvailabilityBurnsSlowly"}),
        ("HyperDiskFull", {"HyperDiskFillsSoon"}),
        ("HyperInodesFull", {"HyperDiskFillsSoon"}),
        ("HyperHostMemoryLow", {"HyperHostOvercommitted"}),
        ("HyperHostCpuSaturated", {"HyperStarvedByHost"}),
    ],
)
def test_what_silences_what(source: str, silenced: set[str]) -> None:
    found = {name for name, alert in ALERTS.items() if silences(labels(ALERTS[source]), labels(alert))}
    assert found == silenced


def test_a_full_disk_of_the_host_silences_the_guests_that_are_halted_for_it_and_no_others() -> None:
    full, stopped = labels(ALERTS["HyperHostDiskFull"]), ALERTS["HyperVmStopped"]
    assert silences(full, labels(stopped, status="io-error"))
    assert not silences(full, labels(stopped, status="guest-panicked"))
    assert not silences(full, labels(stopped, status="io-error", instance="h2:9720"))
    assert not silences(full, labels(ALERTS["HyperContainerDown"]))


def test_nothing_else_silences_anything() -> None:
    quiet = {name for name, alert in ALERTS.items() if alert.severity != "page"} - {"HyperHostCpuSaturated"} | {
        "HyperRuntimeDown",
        "HyperRuntimeRestarting",
        "HyperHostDiskFull",
        "HyperExporterMissing",
    }
    for source in quiet:
        assert not [name for name, alert in ALERTS.items() if silences(labels(ALERTS[source]), labels(alert))], source


def test_another_container_or_host_is_not_silenced() -> None:
    for source in ALERTS.values():
        for target in ALERTS.values():
            if source.scope == "container" == target.scope:
                assert not silences(labels(source), labels(target, id="c2"))
            assert not silences(labels(source), labels(target, instance="h2:9720", id="c2"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("receivers = 3", "receivers"),
        ("[[receivers]]\nname = 'a'\nkind = 'pigeon'", "receivers.0"),
        ("[[receivers]]\nname = 'a'\nkind = 'slack'\nchannel = '#a'\napi_url = 'https://secret'", "api_url"),
        ("[[receivers]]\nname = 'a'\nkind = 'pagerduty'\nrouting_key_file = 'key'", "routing_key_file"),
        ("[[receivers]]\nname = 'interface'\nkind = 'webhook'\nurl = 'http://x'", "interface is taken"),
        ("[[receivers]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://x'\n" * 2, "a is taken"),
        ("[[receivers]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://x'\nnamespaces = '('", "regular expression"),
        ("[[receivers]]\nname = 'a'\nkind = 'webhook'\nurl = 'http://x'\nseverities = []", "severities"),
        ("[dead_man]\nurl = 'http://x'\ninterval = 'soon'", "interval"),
        ("[", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_member(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "receivers.toml"
    path.write_text(text)
    with pytest.raises(BadSetting, match=says) as caught:
        receivers.load(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="No such file"):
        receivers.load(tmp_path / "receivers.toml")
