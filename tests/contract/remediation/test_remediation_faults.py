from __future__ import annotations

import subprocess

import httpx
import pytest

from tests.contract.remediation.harness import Controller, FakeHyperd, at_least, until, webhook


def test_hyperd_that_is_away_is_asked_again_and_the_result_audited(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.stop()
    controller.start()
    controller.post(webhook())
    until(lambda: "attempt 1" in (controller.root / "controller-1.log").read_text())
    hyperd.start()
    until(controller.outcomes)
    assert controller.outcomes() == ["done"]
    assert len(hyperd.redeploys) == 1


def test_hyperd_that_stays_away_is_given_up_and_the_next_repetition_tries_again(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.stop()
    controller.start("--set", "attempts=2")
    controller.post(webhook())
    until(lambda: controller.reasons() == ["hyperd_away"])
    hyperd.mode = "busy"
    hyperd.start()
    controller.post(webhook())
    until(lambda: controller.outcomes() == ["failed"])
    assert hyperd.posts == 2
    assert "no kernel" in controller.audit()[-1]["detail"]
    assert controller.audit()[-1]["carried_out"] is False
    hyperd.mode = "ok"
    controller.post(webhook())
    until(lambda: len(controller.reasons()) == 3)
    assert controller.reasons()[-1] == "cooldown", "what failed may be tried again, but not at once"


@pytest.mark.parametrize(("mode", "carried_out"), [("broken", True), ("taken", True), ("refusing", False)])
def test_a_redeploy_that_failed_is_not_made_again_at_once(
    mode: str, carried_out: bool, hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = mode
    controller.start()
    controller.post(webhook())
    until(controller.outcomes)
    controller.post(webhook())
    until(at_least(controller, 2))
    assert controller.reasons() == ["container_down", "cooldown"]
    assert controller.outcomes() == ["failed"]
    outcome = next(line for line in controller.audit() if line["kind"] == "outcome")
    assert outcome["carried_out"] is carried_out
    assert ("not now" in outcome["detail"]) or ("port 80 is taken" in outcome["detail"])
    assert hyperd.posts == 1


def test_killed_after_hyperd_acted_it_is_not_done_again(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.mode = "mute"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts == 1)
    controller.kill()
    assert controller.outcomes() == []
    hyperd.mode = "ok"
    hyperd.state = "exited"  # it has failed anew; what the intent asked for was done all the same
    controller.start()
    until(controller.outcomes)
    controller.post(webhook())
    until(lambda: len(controller.reasons()) == 2)
    assert (hyperd.posts, controller.outcomes()) == (1, ["done"])
    assert controller.reasons() == ["container_down", "duplicate"]


def test_killed_before_hyperd_acted_it_is_done_once(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.mode = "busy"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    assert controller.reasons() == ["container_down"]
    assert (controller.outcomes(), hyperd.redeploys) == ([], [])
    with (controller.root / "data/audit/remediation.jsonl").open("ab") as file:
        file.write(b'{"kind":"outcome","id":"cut off by the cra')
    hyperd.mode = "ok"
    controller.start()
    controller.post(webhook())
    until(lambda: (controller.root / "data/audit/remediation.jsonl").read_text().count('"outcome":"done"') == 1)
    until(controller.idle)
    controller.kill()
    controller.start()
    until(controller.idle)
    assert len(hyperd.redeploys) == 1


def test_killed_with_an_intent_it_holds_to_the_stop_switch_after_the_restart(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = "busy"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    hyperd.mode = "ok"
    (controller.root / "data/remediation.stop").touch()
    controller.start()
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.redeploys) == (["stop_switch"], [])


def test_what_cannot_be_audited_is_not_done(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.root.joinpath("data").mkdir()
    # A file-size limit stands in for a full disk: the write fails in the middle.
    command = ["prlimit", "--fsize=60", "--pid"]
    controller.start()
    assert controller.process is not None
    subprocess.run([*command, str(controller.process.pid)], check=True)
    controller.post(webhook())
    failed = 'hyper_remediation_decisions_total{decision="skip",reason="audit_unwritable"} 1.0'
    until(lambda: failed in httpx.get(f"{controller.url}/metrics").text)
    assert hyperd.posts == 0
