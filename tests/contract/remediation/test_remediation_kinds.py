from __future__ import annotations

import json
import threading
import time
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
from tests.places import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNHEALTHY, FLAPPING = "HyperContainerUnhealthy", "HyperContainerFlapping"
LATER = "2026-01-01T01:00:00Z"


BASE = "127.0.0.1:5000/base:latest"
LOOKING = ("--set", "feed_s=0.05")
AGAIN = (*LOOKING, "--set", "feed_again_s=0.05", "--set", "cooldown_s=0.001")


def hole(ident: str = "DSA-1", fixed: str = "3.0.2-1") -> str:
    """A record of OSV on its line."""
    events = [{"introduced": "0"}, {"fixed": fixed}]
    package = {"ecosystem": "Debian:12", "name": "openssl"}
    affected = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return json.dumps({"id": ident, "modified": "2026-01-01T00:00:00Z", "affected": [affected]}) + "\n"


FEED = hole()


def push(
    digest: str = PUSHED, tag: str = "latest", host: str = "127.0.0.1:5000", repository: str = "web"
) -> dict[str, Any]:
    target = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "repository": repository, "tag": tag,
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
    elif kind == "rebuild":
        hyperd.labels["hyper.remediation.follow"] = "base"
        hyperd.state, hyperd.bases = "running", {BASE: GOOD}
        assert tell(controller, push(repository="base")).json() == {"accepted": 1}
    elif kind == "mend":
        hyperd.labels["hyper.remediation.follow"] = "base,vulnerability"
        hyperd.state, hyperd.packages = "running", {GOOD: "3.0.1-1", PUSHED: "3.0.2-1"}
        (controller.root / "feed").write_text(FEED)
    elif kind == "change":
        hyperd.labels["hyper.remediation.follow"] = "true"
        hyperd.state = "running"
        assert tell(controller, push()).json() == {"accepted": 1}
    else:
        controller.post(webhook())


@pytest.mark.parametrize("stage", ["mute", "busy"])
@pytest.mark.parametrize("kind", ["restart", "redeploy", "rollback", "change", "rebuild", "mend", "quarantine"])
def test_killed_in_the_middle_it_is_finished_once(
    kind: str, stage: str, hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = stage
    feed = {"HYPER_REMEDIATION_FEED_FILE": str(controller.root / "feed")} if kind == "mend" else {}
    start = partial(controller.start, *LOOKING, **feed)
    start()
    bring_about(kind, hyperd, controller)
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    call = {"rebuild": "change", "mend": "change"}.get(kind, kind)
    assert hyperd.done == ([call] if stage == "mute" else [])
    assert controller.outcomes() == []
    hyperd.mode = "ok"
    start()
    until(controller.outcomes)
    if kind == "mend":
        assert hyperd.builds == 1, "what was built before is taken"
    else:
        bring_about(kind, hyperd, controller)
        until(at_least(controller, 2))
    until(controller.idle)
    assert (hyperd.done, controller.outcomes()) == ([call], ["done"])
    intent = next(line for line in controller.audit() if line.get("verdict") == "act")
    assert intent["action"] == {"change": "update", "mend": "rebuild"}.get(kind, kind)
    assert len(hyperd.evidence) == (1 if kind in {"restart", "redeploy", "rollback", "quarantine"} else 0)
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


def starved(by: str) -> str:
    return f'microvm_starved_by{{id="{ID}",name="web",by="{by}"}} 1.0'


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[str]:
    """Two containers' samples; with a file `busy` the host keeps one from the CPU."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            by = "host" if (tmp_path / "busy").exists() else "none"
            lines = (f'container_a{{id="{ID}"}} 1', 'container_a{id="other"} 2', starved(by))
            self.wfile.write("".join(f"{line}\n" for line in lines).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


def test_a_bad_image_is_rolled_back_once_with_evidence_saved_before(
    hyperd: FakeHyperd, controller: Controller, exporter: str
) -> None:
    controller.start("--set", "cooldown_s=0.001", HYPER_EXPORTER_URL=exporter)
    bring_about("rollback", hyperd, controller)
    until(controller.outcomes)
    assert (hyperd.done, hyperd.digest) == (["rollback"], GOOD)
    outcome = next(line for line in controller.audit() if line["kind"] == "outcome")
    samples = next((controller.root / "hyperd/evidence").glob("*/samples.prom"))
    assert outcome["evidence"] == str(samples.parent)
    assert samples.read_text() == f'container_a{{id="{ID}"}} 1\n{starved("none")}\n'
    assert {path.name for path in (controller.root / "data").iterdir()} == {"audit"}, "what it wrote itself"
    intent = next(line for line in controller.audit() if line.get("verdict") == "act")
    assert intent["digest"] == BAD
    assert intent["signals"][0] == "alertmanager: HyperContainerDown"
    assert intent["policy"] == "level rollback, built-in rule"
    hyperd.changed()
    hyperd.id, hyperd.state = ID, "exited"
    controller.post(webhook(starts=LATER))
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["rollback", "redeploy"], "one rollback within the window, then the next step"


def test_without_an_exporter_the_rest_is_saved_and_it_is_said(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start(HYPER_EXPORTER_URL="http://127.0.0.1:1")
    bring_about("rollback", hyperd, controller)
    until(controller.outcomes)
    assert (hyperd.done, [one["samples"] for one in hyperd.evidence]) == (["rollback"], [None])
    where, _, why = controller.audit()[-1]["evidence"].partition(", without samples: ")
    assert [path.name for path in (controller.root / "hyperd/evidence").iterdir()] == [where.rpartition("/")[2]]
    assert why


def test_a_full_disk_does_not_prevent_a_rollback_and_it_is_said(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.evidence_mode = "full"
    controller.start()
    bring_about("rollback", hyperd, controller)
    until(controller.outcomes)
    assert hyperd.done == ["rollback"]
    assert controller.audit()[-1]["evidence"] == "not saved: hyperd answered 507: no room"


def test_by_default_all_beyond_a_restart_waits_for_a_person_and_what_may_be_done_is_done(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    controller.start()
    hyperd.labels = {}
    hyperd.changed()
    controller.post(webhook(copies=3))
    until(controller.outcomes)
    until(controller.idle)
    assert hyperd.done == ["restart"]
    waiting = httpx.get(f"{controller.url}/waiting").json()
    assert [(one["verdict"], one["action"]) for one in waiting] == [("dry_run", "redeploy"), ("dry_run", "rollback")]
    waiting = waiting[1:]
    approve = f"{controller.url}/approve/{waiting[0]['id'][:8]}"
    assert httpx.post(f"{controller.url}/approve/nonsense", json={"actor": "ann"}).status_code == 404
    assert "hyper_remediation_stopped 0.0\n" in metrics(controller)
    assert "hyper_remediation_waiting 2.0\n" in metrics(controller)
    (controller.root / "data/remediation.stop").touch()
    assert "hyper_remediation_stopped 1.0\n" in metrics(controller)
    assert httpx.post(approve, json={"actor": "ann"}).status_code == 409
    assert httpx.post(f"{controller.url}/resume", json={"actor": "ann"}).json() == {"stopped": False}
    answer = httpx.post(approve, json={"actor": "ann"})
    assert (answer.status_code, answer.json()["approves"]) == (202, waiting[0]["id"])
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["restart", "rollback"]
    assert httpx.post(approve, json={"actor": "ann"}).status_code == 404, "once"
    assert [one["action"] for one in httpx.get(f"{controller.url}/waiting").json()] == ["redeploy"]
    assert "stop_lifted" in controller.reasons()
    controller.post(webhook(status="resolved"))
    until(lambda: controller.reasons()[-1] == "resolved")
    assert "hyper_remediation_waiting 0.0\n" in metrics(controller), "a redeploy of what is well is not called for"


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
    controller.start("--set", "held_s=3600")
    controller.post(webhook(labels={"alertname": "HyperHostMemoryLow", **host}, starts=LATER))
    until(at_least(controller, 1))
    controller.post(webhook(labels=ours))
    until(at_least(controller, 2))
    controller.kill()
    controller.start("--set", "held_s=3600")  # what fires is remembered
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


def test_what_failed_while_the_host_was_busy_is_looked_at_again_when_it_no_longer_is(
    hyperd: FakeHyperd, controller: Controller, exporter: str
) -> None:
    busy = controller.root / "busy"
    busy.touch()
    hyperd.state, hyperd.health, hyperd.checked_at = "running", "unhealthy", time.time()
    quick = ("--set", "held_s=0.05", "--set", "sustain_s=0.05", "--set", "rest_s=0.001")
    controller.start(*quick, HYPER_EXPORTER_URL=exporter)
    until(lambda: controller.reasons() == ["host_is_the_cause"])
    assert "at this moment" in controller.audit()[-1]["detail"]
    seen = hyperd.reads
    until(lambda: hyperd.reads >= seen + 5)
    busy.unlink()
    looked = hyperd.reads
    until(lambda: hyperd.reads >= looked + 25)  # longer than an answer of the exporter serves
    assert (controller.reasons(), hyperd.done) == (["host_is_the_cause"], []), "no check was made since"
    hyperd.checked_at = time.time()
    until(controller.outcomes)
    assert (controller.reasons(), hyperd.done) == (["host_is_the_cause", "unhealthy"], ["restart"])


def test_what_is_well_again_when_the_host_no_longer_is_busy_is_left_alone(
    hyperd: FakeHyperd, controller: Controller, exporter: str
) -> None:
    busy = controller.root / "busy"
    busy.touch()
    hyperd.state, hyperd.health = "running", "unhealthy"
    controller.start("--set", "held_s=0.05", HYPER_EXPORTER_URL=exporter)
    controller.post(webhook(name=UNHEALTHY))
    until(at_least(controller, 1))
    hyperd.health = "healthy"
    busy.unlink()
    until(at_least(controller, 2))
    until(controller.idle)
    assert (controller.reasons(), hyperd.done) == (["host_is_the_cause", "not_confirmed"], [])
    assert controller.end() == 0


def test_what_exits_by_itself_does_not_wait_for_a_busy_host(
    hyperd: FakeHyperd, controller: Controller, exporter: str
) -> None:
    (controller.root / "busy").touch()
    controller.start("--set", "held_s=0.05", HYPER_EXPORTER_URL=exporter)
    controller.post(webhook(name="HyperHostCpuSaturated", labels={"alertname": "HyperHostCpuSaturated"}))
    until(at_least(controller, 1))
    hyperd.exit_code = 137
    controller.post(webhook(starts=LATER))
    until(at_least(controller, 2))
    assert (controller.reasons(), hyperd.done) == (["noted", "host_is_the_cause"], []), "a signal ended it"
    hyperd.exit_code = 3
    until(controller.outcomes)
    assert (controller.reasons()[2:], hyperd.done) == (["container_down"], ["redeploy"])


def test_the_policy_file_says_what_is_done_and_when_not(
    hyperd: FakeHyperd, controller: Controller, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[[containers]]\nnames = "web"\nlevel = "restart"\n'
        '[[rules]]\nalerts = ["HyperMemoryPressure"]\notherwise = ["redeploy"]\n'
        '[[rules]]\nalerts = ["HyperContainerUnhealthy"]\ntenants = "default"\notherwise = ["restart"]\n'
        "dry_run = true\n"
    )
    hyperd.labels = {}
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


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def test_a_pipeline_that_pushes_and_pushes_updates_no_more_than_the_guards_allow_and_ends_at_the_newest(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.labels["hyper.remediation.follow"] = "true"
    hyperd.state = "running"
    looking = ("--set", "held_s=0.02", "--set", "bucket_size=1")
    controller.start(*looking, "--set", "cooldown_s=3600")
    for number in range(4):
        hyperd.pullable = digest(number)
        tell(controller, push(digest(number)))
        until(at_least(controller, number + 1))
        until(controller.idle)
    assert controller.reasons() == ["image_pushed", *["cooldown"] * 3]
    assert (hyperd.done, hyperd.digest, hyperd.pulls) == (["change"], digest(0), 1)
    hyperd.state, hyperd.health = "running", "unhealthy"
    controller.post(webhook(name=UNHEALTHY, labels={"alertname": UNHEALTHY, "name": "web"}))
    until(lambda: len(controller.outcomes()) == 2)
    assert hyperd.done == ["change", "restart"], "what heals has a bucket of its own"
    assert controller.end() == 0
    controller.start(*looking, "--set", "cooldown_s=0.001", "--set", "refill_s=3600")
    tell(controller, push(digest(3)))
    until(lambda: controller.reasons()[-1] == "budget_spent")
    assert controller.end() == 0
    controller.start(*looking, "--set", "cooldown_s=0.001", "--set", "refill_s=0.001", "--set", "host_bucket_size=1")
    tell(controller, push(digest(3)))
    until(lambda: controller.reasons()[-1] == "host_budget_spent")
    assert controller.end() == 0
    controller.start(*looking, "--set", "cooldown_s=0.001", "--set", "refill_s=0.001")
    until(lambda: len(controller.outcomes()) == 3)
    until(controller.idle)
    assert (hyperd.done, hyperd.digest) == (["change", "restart", "change"], digest(3)), "the newest, once"


def test_a_push_waits_for_the_stop_switch_the_host_and_the_window(
    hyperd: FakeHyperd, controller: Controller, tmp_path: Path
) -> None:
    hyperd.labels["hyper.remediation.follow"] = "true"
    hyperd.state = "running"
    looking = ("--set", "held_s=0.02")
    stop = controller.root / "data/remediation.stop"
    cause = partial(webhook, starts=LATER, labels={"alertname": "HyperHostMemoryLow"})
    policy = tmp_path / "policy.toml"
    controller.start(*looking)
    stop.touch()
    tell(controller, push())
    until(at_least(controller, 1))
    controller.post(cause())
    until(at_least(controller, 2))
    stop.unlink()
    tell(controller, push())
    until(at_least(controller, 3))
    assert controller.end() == 0
    policy.write_text('[[maintenance]]\nstart = "00:00"\nduration = "24h"\n')
    controller.start(*looking, HYPER_REMEDIATION_POLICY_FILE=str(policy))
    controller.post(cause(status="resolved"))
    until(at_least(controller, 4))
    tell(controller, push())
    until(at_least(controller, 5))
    held = ["stop_switch", "noted", "host_is_the_cause", "resolved", "maintenance"]
    assert (controller.reasons(), hyperd.posts, hyperd.pulls) == (held, 0, 0)
    assert controller.end() == 0
    policy.write_text("dry_run = true\n")
    controller.start(*looking, HYPER_REMEDIATION_POLICY_FILE=str(policy))
    until(at_least(controller, 6))
    until(controller.idle)
    proposed = controller.audit()[-1]
    assert (proposed["verdict"], proposed["action"], hyperd.posts) == ("dry_run", "update", 0)
    controller.post(webhook(labels={"alertname": "HyperCollectorStalled"}))  # what a registry tells does not come by it
    until(at_least(controller, 7))
    hyperd.pullable = BAD
    assert controller.end() == 0
    controller.start(*looking)
    tell(controller, push(BAD))
    until(controller.outcomes)
    assert (hyperd.done, hyperd.digest) == (["change"], BAD)


def test_a_policy_file_may_have_all_written_down_only(
    hyperd: FakeHyperd, controller: Controller, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('dry_run = true\n[[containers]]\nlevel = "full"\n')
    controller.start(HYPER_REMEDIATION_POLICY_FILE=str(policy))
    controller.post(webhook())
    until(at_least(controller, 1))
    until(controller.idle)
    decided = controller.audit()[-1]
    assert (decided["verdict"], decided["action"], hyperd.posts) == ("dry_run", "redeploy", 0)


def test_a_change_that_cannot_be_judged_asks_a_person_and_condemns_nothing(
    hyperd: FakeHyperd, controller: Controller, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[follow]\ncanary_s = 5\n")
    hyperd.mode = "vague"
    controller.start("--set", "cooldown_s=0.001", HYPER_REMEDIATION_POLICY_FILE=str(policy))
    bring_about("change", hyperd, controller)
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.done, hyperd.digest) == (["inconclusive"], [], GOOD)
    waiting = httpx.get(f"{controller.url}/waiting").json()
    assert [(one["verdict"], one["action"], one["to_digest"]) for one in waiting] == [("dry_run", "update", PUSHED)]
    assert "not enough could be seen" in waiting[0]["detail"]
    tell(controller, push())
    until(at_least(controller, 3))
    assert controller.reasons()[-1] == "duplicate", "it is not tried again by itself"
    assert controller.end() == 0
    controller.start("--set", "cooldown_s=0.001", HYPER_REMEDIATION_POLICY_FILE=str(policy))
    assert httpx.post(f"{controller.url}/approve/{waiting[0]['id']}", json={"actor": "ann"}).status_code == 202
    until(lambda: len(controller.outcomes()) == 2)
    assert (controller.outcomes()[-1], hyperd.done, hyperd.digest) == ("done", ["change"], PUSHED)
    assert hyperd.canaries == [5.0, 0.0], "a person has decided: there is no second comparison"
    assert httpx.get(f"{controller.url}/waiting").json() == []


def test_an_image_is_built_again_when_its_base_is_pushed(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start("--set", "cooldown_s=0.001")
    hyperd.state, hyperd.bases = "running", {BASE: GOOD, "docker.io/library/other": BAD}
    for repository, digest in (("other", PUSHED), ("base", GOOD)):
        tell(controller, push(digest, repository=repository))
    until(controller.idle)
    assert controller.reasons() == [], "not a base of it, and one that it was built on already"
    tell(controller, push(repository="base"))
    until(at_least(controller, 1))
    until(controller.idle)
    proposed = controller.audit()[-1]
    assert (proposed["verdict"], proposed["action"], proposed["reason"]) == ("dry_run", "rebuild", "base_pushed")
    assert (hyperd.builds, hyperd.done) == (0, [])
    hyperd.built = GOOD
    assert httpx.post(f"{controller.url}/approve/{proposed['id']}", json={"actor": "me"}).status_code == 202
    until(controller.outcomes)
    assert (hyperd.builds, hyperd.done, controller.outcomes()) == (1, [], ["not_needed"]), "nothing was new"
    hyperd.labels["hyper.remediation.follow"] = "base"
    hyperd.built = PUSHED
    tell(controller, push(BAD, repository="base"))
    until(lambda: len(controller.outcomes()) == 2)
    assert (hyperd.builds, hyperd.done, hyperd.digest) == (2, ["change"], PUSHED)
    assert controller.outcomes()[-1] == "done"
    assert hyperd.canaries == [60.0], "nobody has seen before what was built just now"


def test_what_cannot_run_twice_is_built_again_without_a_comparison(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.mode = "alone"
    controller.start()
    bring_about("rebuild", hyperd, controller)
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.done, hyperd.canaries) == (["done"], ["change"], [60.0, 0.0])


def test_an_image_with_holes_is_built_again_when_a_feed_knows_of_newer_packages(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    feed = controller.root / "feed"
    hyperd.state, hyperd.packages = "running", {GOOD: "3.0.1-1", BAD: "3.0.1-1", PUSHED: "3.0.2-1"}
    controller.start(
        *LOOKING, "--set", "feed_again_s=0.05", "--set", "cooldown_s=0.001", HYPER_REMEDIATION_FEED_FILE=str(feed)
    )
    log = controller.root / "controller-1.log"
    until(lambda: "hyper_remediation_feed_readable 0.0" in metrics(controller))
    assert log.read_text().count("what was read before is kept") == 1, "there is none yet, and that is said once"
    feed.write_text(FEED)
    until(at_least(controller, 1))
    until(controller.idle)
    proposed = controller.audit()[-1]
    assert (proposed["verdict"], proposed["action"], proposed["reason"]) == ("dry_run", "rebuild", "vulnerable")
    assert "newer packages are without DSA-1" in proposed["detail"]
    assert "hyper_remediation_feed_readable 1.0" in metrics(controller)
    hyperd.built = BAD
    assert httpx.post(f"{controller.url}/approve/{proposed['id']}", json={"actor": "me"}).status_code == 202
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.builds, hyperd.done) == (["still_vulnerable"], 1, [])
    assert (hyperd.removed, hyperd.named) == ([BAD], GOOD), "of a build that is no better nothing stays"
    # Another hole: done, as the label has it, and nothing came of it; that is not tried again.
    hyperd.labels["hyper.remediation.follow"] = "true,vulnerability"
    feed.write_text(FEED + hole("CVE-2"))
    until(lambda: len(controller.outcomes()) == 2)
    assert (controller.outcomes()[-1], hyperd.builds, hyperd.done) == ("still_vulnerable", 2, [])
    # A feed that is broken changes nothing, is seen, and is said once.
    feed.write_text(FEED + hole("CVE-2") + '{"id": "CVE-3", "aff')
    until(lambda: "hyper_remediation_feed_readable 0.0" in metrics(controller))
    until(lambda: log.read_text().count("line 3: Invalid JSON") == 1)
    assert controller.end() == 0
    # Nor is it tried again after a restart.
    feed.write_text(FEED + hole("CVE-2"))
    controller.start(
        *LOOKING, "--set", "feed_again_s=0.05", "--set", "cooldown_s=0.001", HYPER_REMEDIATION_FEED_FILE=str(feed)
    )
    reads = hyperd.lists
    until(lambda: hyperd.lists >= reads + 5)
    assert (len(controller.reasons()), hyperd.builds) == (3, 2)
    # What another container's build has mended is taken as it is, unless this one went back from it.
    hyperd.named = PUSHED
    hyperd.history = [
        revision(3, 3.0, GOOD, "rollback", good=False), revision(2, 2.0, PUSHED, "update", good=False),
        revision(1, 1.0, GOOD, "create", good=True),
    ]  # fmt: skip
    feed.write_text(FEED + hole("CVE-3"))
    until(lambda: len(controller.outcomes()) == 3)
    assert (controller.outcomes()[-1], hyperd.builds, hyperd.done) == ("still_vulnerable", 3, [])
    hyperd.history, hyperd.built = [], PUSHED
    feed.write_text(FEED + hole("CVE-4"))
    until(lambda: len(controller.outcomes()) == 4)
    assert (controller.outcomes()[-1], hyperd.builds, hyperd.done) == ("done", 3, ["change"])
    assert hyperd.digest == PUSHED
    assert log.read_text().count("line 3: Invalid JSON") == 1


def test_a_feed_moves_nothing_that_is_to_be_left_alone(hyperd: FakeHyperd, controller: Controller) -> None:
    feed = controller.root / "feed"
    feed.write_text(FEED)
    hyperd.packages, hyperd.labels = {GOOD: "3.0.1-1"}, {"hyper.remediation": "off"}
    controller.start(*LOOKING, HYPER_REMEDIATION_FEED_FILE=str(feed))
    until(lambda: hyperd.lists >= 3)
    assert controller.reasons() == [], "it does not run"
    hyperd.state = "running"
    until(at_least(controller, 1))
    reads = hyperd.lists
    until(lambda: hyperd.lists >= reads + 3)
    hyperd.labels, hyperd.quarantine = {"hyper.remediation.follow": "vulnerability"}, {"since": 1.0}
    feed.write_text(FEED + hole("CVE-2"))
    until(at_least(controller, 2))
    until(controller.idle)
    assert (controller.reasons(), hyperd.builds) == (["policy_off", "in_quarantine"], 0), "each is told once"


def test_alertmanager_in_disorder_leads_to_no_second_action(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    controller.post(webhook(status="resolved"))
    until(at_least(controller, 1))
    controller.post(webhook())  # overtaken by its own end
    until(at_least(controller, 2))
    assert controller.reasons() == ["resolved", "resolved"]
    told = {**webhook(starts=LATER, copies=4), "truncatedAlerts": 7}
    ask = partial(controller.post, told)
    cut = json.dumps(told)[:-20]
    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for broken in (cut, "null", "[]", json.dumps({**told, "alerts": [{**told["alerts"][0], "fingerprint": ""}]})):
        headers = {"Content-Type": "application/json"}
        assert httpx.post(f"{controller.url}/alertmanager", content=broken, headers=headers).status_code == 400
    for thread in threads:
        thread.join()
    until(at_least(controller, 22))
    until(controller.idle)
    assert (hyperd.done, controller.outcomes()) == (["redeploy"], ["done"])
    controller.post(webhook(starts=LATER, status="resolved"))
    controller.post({**told, "alerts": list(reversed(told["alerts"])), "truncatedAlerts": 0})  # late, and once more
    until(at_least(controller, 27))
    until(controller.idle)
    assert (hyperd.done, controller.outcomes(), len(controller.reasons())) == (["redeploy"], ["done"], 27)
    log = (controller.root / "controller-1.log").read_text()
    assert "7 alerts of" in log
