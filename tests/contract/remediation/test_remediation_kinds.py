from __future__ import annotations

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.contract.remediation.harness import (
    BAD,
    GOOD,
    ID,
    IMAGE,
    PUSHED,
    Controller,
    FakeHyperd,
    at_least,
    event,
    revision,
    until,
    webhook,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNHEALTHY, FLAPPING = "HyperContainerUnhealthy", "HyperContainerFlapping"
LATER = "2026-01-01T01:00:00Z"


def push(digest: str = PUSHED, tag: str = "latest", host: str = "127.0.0.1:5000") -> dict[str, Any]:
    target = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "repository": "web", "tag": tag,
              "digest": digest, "url": "http://x"}  # fmt: skip
    one = {"id": "1", "timestamp": "2026-01-01T00:00:00.5Z", "action": "push", "target": target,
           "request": {"host": host}, "actor": {}}  # fmt: skip
    return {"events": [one, {**one, "action": "pull"}, {**one, "target": {**target, "tag": ""}}]}


def tell(controller: Controller, body: dict[str, Any]) -> httpx.Response:
    headers = {"Content-Type": "application/vnd.docker.distribution.events.v1+json"}
    return httpx.post(f"{controller.url}/registry", content=json.dumps(body), headers=headers)


def bring_about(kind: str, hyperd: FakeHyperd, controller: Controller) -> None:
    """What leads to an action of this kind."""
    if kind == "restart":
        hyperd.state, hyperd.health = "running", "unhealthy"
        controller.post(webhook(name=UNHEALTHY))
    elif kind == "rollback":
        hyperd.labels["hyper.remediation"] = "rollback"
        hyperd.changed()
        controller.post(webhook())
    elif kind == "quarantine":
        hyperd.labels["hyper.remediation"] = "full"
        hyperd.state, hyperd.deaths = "running", 5
        controller.post(webhook(name=FLAPPING))
    elif kind == "change":
        hyperd.labels["hyper.remediation.follow"] = "true"
        hyperd.state = "running"
        assert tell(controller, push()).json() == {"accepted": 1}
    else:
        controller.post(webhook())


@pytest.mark.parametrize("stage", ["mute", "busy"])
@pytest.mark.parametrize("kind", ["restart", "rollback", "change", "quarantine"])
def test_killed_in_the_middle_it_is_finished_once(
    kind: str, stage: str, hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = stage
    controller.start()
    bring_about(kind, hyperd, controller)
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    assert hyperd.done == ([kind] if stage == "mute" else [])
    assert controller.outcomes() == []
    hyperd.mode = "ok"
    controller.start()
    until(controller.outcomes)
    bring_about(kind, hyperd, controller)
    until(at_least(controller, 2))
    until(controller.idle)
    assert (hyperd.done, controller.outcomes()) == ([kind], ["done"])
    intent = next(line for line in controller.audit() if line.get("verdict") == "act")
    assert intent["action"] == {"change": "update"}.get(kind, kind)
    assert len(hyperd.evidence) == (1 if kind in {"rollback", "quarantine"} else 0)
    assert f'hyper_remediation_actions_total{{action="{intent["action"]}",outcome="done"' in metrics(controller)


def test_killed_while_evidence_is_saved_it_goes_on_from_there(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.evidence_mode = "mute"
    controller.start()
    bring_about("rollback", hyperd, controller)
    until(lambda: hyperd.evidence)
    controller.kill()
    assert hyperd.done == []
    hyperd.evidence_mode = "ok"
    controller.start()
    until(controller.outcomes)
    assert (hyperd.done, len(hyperd.evidence)) == (["rollback"], 1)


def metrics(controller: Controller) -> str:
    return httpx.get(f"{controller.url}/metrics").text


@pytest.fixture
def exporter() -> Iterator[str]:
    """Two containers' samples."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'container_a{{id="{ID}"}} 1\ncontainer_a{{id="other"}} 2\n'.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bad_image_is_rolled_back_once_with_evidence_saved_before(
    hyperd: FakeHyperd, controller: Controller, exporter: str
) -> None:
    controller.start("--set", "cooldown_s=0.001", HYPER_EXPORTER_URL=exporter)
    bring_about("rollback", hyperd, controller)
    until(controller.outcomes)
    assert (hyperd.done, hyperd.digest) == (["rollback"], GOOD)
    outcome = next(line for line in controller.audit() if line["kind"] == "outcome")
    samples = next((controller.root / "data/evidence").glob("*/samples.prom"))
    assert outcome["evidence"] == str(samples.parent)
    assert samples.read_text() == f'container_a{{id="{ID}"}} 1\n'
    assert samples.stat().st_mode & 0o777 == 0o600
    intent = next(line for line in controller.audit() if line.get("verdict") == "act")
    assert intent["digest"] == BAD
    assert intent["signals"][0] == "alertmanager: HyperContainerDown"
    assert intent["policy"] == "level rollback, built-in rule"
    hyperd.changed()
    hyperd.id, hyperd.state = ID, "exited"
    controller.post(webhook(starts=LATER))
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["rollback", "redeploy"], "one rollback within the window, then the next step"


def test_a_full_disk_does_not_prevent_a_rollback_and_it_is_said(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.evidence_mode = "full"
    controller.start()
    bring_about("rollback", hyperd, controller)
    until(controller.outcomes)
    assert hyperd.done == ["rollback"]
    assert controller.audit()[-1]["evidence"] == "not saved: hyperd answered 507: no room"


def test_by_default_a_rollback_waits_for_a_person_and_what_may_be_done_is_done(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    controller.start()
    hyperd.changed()
    controller.post(webhook(copies=3))
    until(controller.outcomes)
    until(controller.idle)
    assert hyperd.done == ["redeploy"]
    waiting = httpx.get(f"{controller.url}/waiting").json()
    assert [(one["verdict"], one["action"]) for one in waiting] == [("dry_run", "rollback")]
    approve = f"{controller.url}/approve/{waiting[0]['id'][:8]}"
    assert httpx.post(f"{controller.url}/approve/nonsense", json={"actor": "ann"}).status_code == 404
    (controller.root / "data/remediation.stop").touch()
    assert httpx.post(approve, json={"actor": "ann"}).status_code == 409
    assert httpx.post(f"{controller.url}/resume", json={"actor": "ann"}).json() == {"stopped": False}
    answer = httpx.post(approve, json={"actor": "ann"})
    assert (answer.status_code, answer.json()["approves"]) == (202, waiting[0]["id"])
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["redeploy", "rollback"]
    assert httpx.post(approve, json={"actor": "ann"}).status_code == 404, "once"
    assert httpx.get(f"{controller.url}/waiting").json() == []
    assert "stop_lifted" in controller.reasons()


def test_what_is_no_longer_as_it_was_is_not_approved(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.labels["hyper.remediation"] = "dry-run"
    controller.start()
    controller.post(webhook())
    until(at_least(controller, 1))
    hyperd.digest = PUSHED
    decision = httpx.get(f"{controller.url}/waiting").json()[0]
    answer = httpx.post(f"{controller.url}/approve/{decision['id']}", json={})
    assert answer.status_code == 409
    assert "another image" in answer.json()["error"]["message"]
    assert hyperd.posts == 0


def test_without_a_known_good_revision_it_is_not_rolled_back(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    hyperd.labels["hyper.remediation"] = "rollback"
    hyperd.changed()
    hyperd.history[1]["good"] = False
    hyperd.state = "running"
    controller.post(webhook(name="HyperMemoryNearLimit"))
    until(at_least(controller, 1))
    assert (controller.reasons(), hyperd.done) == (["no_known_good"], [])
    hyperd.history[1]["good"] = True
    hyperd.mode = "hopeless"  # hyperd knows better
    controller.post(webhook(name="HyperMemoryNearLimit", starts=LATER))
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.done) == (["no_known_good"], [])


def test_while_host_or_collector_is_the_cause_nothing_is_done(hyperd: FakeHyperd, controller: Controller) -> None:
    host = {"instance": "h:1", "severity": "ticket"}
    ours = {"alertname": "HyperContainerDown", "id": ID, "name": "web", "instance": "h:1"}
    controller.start()
    controller.post(webhook(labels={"alertname": "HyperHostMemoryLow", **host}, starts=LATER))
    until(at_least(controller, 1))
    controller.post(webhook(labels=ours))
    until(at_least(controller, 2))
    controller.kill()
    controller.start()  # what fires is remembered
    controller.post(webhook(labels=ours))
    until(at_least(controller, 3))
    controller.post(webhook(labels={"alertname": "HyperHostMemoryLow", **host}, starts=LATER, status="resolved"))
    until(at_least(controller, 4))
    controller.post(webhook(labels={"alertname": "HyperCollectorStalled", **host}, starts="2026-01-01T02:00:00Z"))
    until(at_least(controller, 5))
    controller.post(webhook(labels=ours))
    until(at_least(controller, 6))
    controller.post(webhook(labels={**ours, "instance": "h:2"}))
    until(controller.outcomes)
    assert controller.reasons() == [
        "noted", "host_is_the_cause", "host_is_the_cause", "resolved", "noted", "collector_is_the_cause",
        "container_down",
    ]  # fmt: skip
    assert hyperd.done == ["redeploy"]


def test_the_policy_file_says_what_is_done_and_when_not(
    hyperd: FakeHyperd, controller: Controller, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[containers]]\nnames = "web"\nlevel = "restart"\n'
        '[[rules]]\nalerts = ["HyperMemoryPressure"]\notherwise = ["redeploy"]\n'
        '[[rules]]\nalerts = ["HyperContainerUnhealthy"]\ntenants = "default"\notherwise = ["redeploy"]\n'
        "dry_run = true\n"
    )
    controller.start("--set", "cooldown_s=0.001", HYPER_REMEDIATION_POLICY_FILE=str(policy))
    hyperd.state = "running"
    controller.post(webhook(name="HyperMemoryPressure"))  # it has lasted for months
    until(controller.outcomes)
    assert hyperd.done == ["restart"], "a redeploy is beyond the level"
    hyperd.health = "unhealthy"
    controller.post(webhook(name=UNHEALTHY, starts=LATER))
    until(lambda: "unhealthy" in controller.reasons())
    assert controller.audit()[-1]["verdict"] == "dry_run"
    assert controller.end() == 0
    policy.write_text('[[maintenance]]\nstart = "00:00"\nduration = "24h"\n')
    controller.start(HYPER_REMEDIATION_POLICY_FILE=str(policy))
    hyperd.state = "exited"
    controller.post(webhook(starts="2026-01-01T02:00:00Z"))
    until(lambda: "maintenance" in controller.reasons())
    policy.write_text('[[maintenance]]\nstart = "24:00"\nduration = "24h"\n')
    log = tmp_path / "log"
    assert controller.spawn(log, HYPER_REMEDIATION_POLICY_FILE=str(policy)).wait(30) == 2
    assert "maintenance.0.start" in log.read_text()


def test_hyperds_own_events_are_signals(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.labels["hyper.remediation"] = "full"
    hyperd.state, hyperd.health = "running", "unhealthy"
    hyperd.to_say = [event("health_status: healthy"), event("health_status: unhealthy")]
    controller.start("--set", "sustain_s=0.1", "--set", "flap_count=3")
    until(controller.outcomes)
    assert hyperd.done == ["restart"], "unhealthy, and still so after a while"
    hyperd.deaths = 3
    hyperd.to_say = [event("die", exitCode="143")] * 5 + [event("die", number, exitCode="1") for number in range(3)]
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["restart", "quarantine"]
    assert hyperd.quarantine is not None
    hyperd.state = "exited"
    controller.post(webhook())
    until(lambda: "in_quarantine" in controller.reasons())
    assert hyperd.done == ["restart", "quarantine"]


def test_a_tag_is_followed_only_to_what_the_registry_gives(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    hyperd.state = "running"
    for body, accepted in ((push(), 1), (push(tag="dev"), 1), (push(host="elsewhere"), 1), ({"events": []}, 0)):
        assert tell(controller, body).json() == {"accepted": accepted}
    until(controller.idle)
    assert (hyperd.pulls, controller.reasons()) == (0, []), "it does not follow"
    hyperd.labels["hyper.remediation.follow"] = "true"
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("same_digest", {}, GOOD),
        ("policy_off", {"labels": {**hyperd.labels, "hyper.remediation": "off"}}, PUSHED),
        ("digest_moved", {"labels": {"hyper.remediation.follow": "true"}, "pullable": BAD}, PUSHED),
        ("known_bad", {"history": [
            revision(3, 3.0, GOOD, "rollback", good=False), revision(2, 2.0, BAD, "update", good=False),
            revision(1, 1.0, GOOD, "create", good=True)]}, BAD),
        ("image_pushed", {"pullable": PUSHED}, PUSHED),
    ]  # fmt: skip
    for count, (reason, world, digest) in enumerate(cases, 1):
        for key, value in world.items():
            setattr(hyperd, key, value)
        tell(controller, push(digest))
        until(at_least(controller, count))
        assert controller.reasons()[-1] == reason
    until(controller.outcomes)
    assert (hyperd.done, hyperd.digest) == (["change"], PUSHED)
    tell(controller, push(PUSHED))
    until(at_least(controller, 6))
    assert controller.reasons()[-1] in {"duplicate", "same_digest"}
    for body in (b"{", b"[]", json.dumps({"events": [{"action": 7}]}).encode()):
        answer = httpx.post(f"{controller.url}/registry", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
    assert IMAGE.endswith(":latest")


def test_alertmanager_in_disorder_leads_to_no_second_action(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    controller.post(webhook(status="resolved"))
    until(at_least(controller, 1))
    controller.post(webhook())  # overtaken by its own end
    until(at_least(controller, 2))
    assert controller.reasons() == ["resolved", "resolved"]
    ask = partial(controller.post, {**webhook(starts=LATER, copies=4), "truncatedAlerts": 7})
    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(at_least(controller, 22))
    until(controller.idle)
    assert (hyperd.done, controller.outcomes()) == (["redeploy"], ["done"])
    log = (controller.root / "controller-1.log").read_text()
    assert "7 alerts of" in log
