from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collector.catalogue import Metric, remediation
from collector.metric import HISTOGRAM_PARTS
from tests.contract.remediation.harness import ID, Controller, FakeHyperd, at_least, until, webhook


def test_one_firing_alert_is_one_redeploy_however_often_it_is_told(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    for _ in range(5):
        assert controller.post(webhook(copies=3)).json() == {"accepted": 3}
    until(controller.idle)
    assert len(hyperd.redeploys) == 1
    assert hyperd.redeploys[0]["actor"] == "remediation"
    assert "HyperContainerDown" in hyperd.redeploys[0]["reason"]
    assert "exit code 3" in hyperd.redeploys[0]["reason"]
    hyperd.state = "exited"  # down again, but this is still the same firing of the same alert
    controller.post(webhook())
    until(controller.idle)
    assert hyperd.posts == 1
    assert controller.reasons().count("container_down") == 1
    assert set(controller.reasons()) == {"container_down", "duplicate"}
    assert len(controller.reasons()) == 16
    assert controller.outcomes() == ["done"]
    intent = next(line for line in controller.audit() if line["reason"] == "container_down")
    assert (intent["container_id"], intent["epoch"], intent["action"]) == (ID, 1, "redeploy")
    exemplars = told_of_itself(controller)
    assert exemplars == {("hyper_remediation_action_duration_seconds_bucket", intent["id"])}
    assert controller.end() == 0


def told_of_itself(controller: Controller) -> set[tuple[str, str]]:
    """Sees that both formats have what the catalogue has, and nothing else; gives the exemplars, of OpenMetrics."""
    text = httpx.get(f"{controller.url}/metrics")
    openmetrics = httpx.get(
        f"{controller.url}/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = [*parse_openmetrics(openmetrics.text)]
    samples = {(s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples}
    assert samples == {
        (s.name, tuple(sorted(s.labels.items()))) for family in parse_text(text.text) for s in family.samples
    }
    declared = {
        name
        for metric in vars(remediation).values()
        if isinstance(metric, Metric)
        for name in (
            [f"{metric.name}_{part}" for part in HISTOGRAM_PARTS] if metric.type == "histogram" else [metric.name]
        )
    }
    assert {name for name, _ in samples} <= declared
    return {(s.name, s.exemplar.labels["decision"]) for family in families for s in family.samples if s.exemplar}


def test_the_cooldown_holds_back_a_new_alert_also_after_a_restart(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    controller.post(webhook())
    until(controller.outcomes)
    assert controller.end() == 0
    controller.start()
    hyperd.state = "exited"
    controller.post(webhook(starts="2026-01-01T01:00:00Z"))
    until(lambda: len(controller.reasons()) == 2)
    assert controller.reasons() == ["container_down", "cooldown"]
    assert hyperd.posts == 1
    metrics = httpx.get(f"{controller.url}/metrics").text
    assert 'hyper_remediation_decisions_total{decision="skip",reason="cooldown"} 1.0' in metrics
    assert "hyper_remediation_last_action_timestamp_seconds" in metrics


def test_what_calls_for_no_action_gets_none_and_is_audited(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    stop = controller.root / "data/remediation.stop"
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("resolved", {}, webhook(status="resolved", starts="2025-01-01T00:00:00Z")),
        ("no_action_for_alert", {}, webhook(name="HyperDiskFull")),
        ("no_container_named", {}, webhook(labels={"alertname": "HyperContainerDown", "id": "../../etc"})),
        ("container_unknown", {}, webhook(labels={"alertname": "HyperContainerDown", "name": "other"})),
        ("container_mismatch", {}, webhook(labels={"alertname": "HyperContainerDown", "id": ID, "name": "db"})),
        ("wanted_stopped", {"desired": "stopped"}, webhook()),
        ("already_running", {"state": "running"}, webhook()),
        ("in_transition", {"state": "stopping"}, webhook()),
        ("policy_off", {"labels": {"hyper.remediation": "off"}}, webhook()),
        ("policy_unknown", {"labels": {"hyper.remediation": "Redeploy!"}}, webhook()),
        ("stop_switch", {"stop": True}, webhook()),
        ("container_down", {"labels": {"hyper.remediation": "dry-run"}}, webhook()),
        ("duplicate", {}, webhook()),
    ]
    for count, (reason, world, body) in enumerate(cases, 1):
        defaults = {"state": "exited", "desired": "running", "labels": {}, "exit_code": 3}
        stop.unlink(missing_ok=True)
        if world.pop("stop", False):
            stop.touch()
        for key, value in {**defaults, **world}.items():
            setattr(hyperd, key, value)
        assert controller.post(body).status_code == 200
        until(at_least(controller, count))
        assert controller.reasons()[-1] == reason
    assert hyperd.posts == 0
    assert [line["verdict"] for line in controller.audit()].count("dry_run") == 1
    newest = httpx.get(f"{controller.url}/audit", params={"limit": 2}).json()
    assert [line["reason"] for line in newest] == ["duplicate", "container_down"]
