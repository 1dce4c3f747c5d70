"""An action whose turn has come is looked at again, and does what was decided on; hyperd is pretended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import policy
from alerts.remediation.actions import Performer
from alerts.remediation.hyperd import Image, Rollout
from alerts.remediation.journal import Decision
from alerts.remediation.policyfile import Follow
from alerts.remediation.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

ID = "c" * 64
ILL = policy.Container(
    id=ID, name="web", state="running", desired="running", epoch=3, labels={}, image_digest="old", health="unhealthy"
)


class Hyperd:
    """Has one container, and notes what it is asked to do with it. `on_build` is called while it builds."""

    def __init__(self) -> None:
        self.seen = ILL
        self.done: list[tuple[str, Any]] = []
        self.on_build = lambda: None

    async def container(self, ref: str) -> policy.Container:
        if ref not in (self.seen.id, self.seen.name):
            raise HyperdRefused("no such container", status=404)
        return self.seen

    async def restart(self, container_id: str) -> policy.Container:
        self.done.append(("restart", container_id))
        return self.seen.model_copy(update={"epoch": 4, "health": "none"})

    async def rollback(self, ref: str, reason: str, request_id: str) -> Rollout:
        self.done.append(("rollback", ref))
        return Rollout(id="r", state="done")

    async def change(self, ref: str, image: str, reason: str, request_id: str, **terms: Any) -> Rollout:
        self.done.append(("change", (ref, image, terms["expected_digest"])))
        return Rollout(id="r", state="done")

    async def rollouts(self, ref: str) -> list[Rollout]:
        return []

    async def image(self, reference: str) -> Image | None:
        return Image(digest=reference, references=["app:1"])

    async def rebuild(self, digest: str, *, no_cache: bool) -> Image:
        self.on_build()
        return Image(digest="new")

    async def tag(self, digest: str, name: str) -> None:
        pass


class Evidence:
    async def save(self, intent: Decision, why: str) -> str:
        return "saved"


@pytest.fixture
def hyperd() -> Hyperd:
    return Hyperd()


@pytest.fixture
def performer(hyperd: Hyperd, tmp_path: Path) -> Performer:
    pretended: Any = hyperd
    nothing: Any = None
    evidence: Any = Evidence()
    return Performer(pretended, evidence, tmp_path / "stop", Settings(attempts=3, backoff_s=0), Follow(), nothing)


def intent(action: policy.Action, reason: policy.Reason = "unhealthy", **more: Any) -> Decision:
    return Decision(
        id="1", time=1.0, verdict="act", reason=reason, detail="", action=action, alert="HyperContainerUnhealthy",
        incident="i", container_id=ID, container="web", tenant="default", epoch=3, digest="old", **more,
    )  # fmt: skip


@pytest.mark.parametrize("action", ["restart", "rollback"])
async def test_what_is_still_so_is_acted_on(hyperd: Hyperd, performer: Performer, action: policy.Action) -> None:
    ended = await performer.act(intent(action))
    assert (ended.kind, ended.carried_out) == ("done", True)
    assert [kind for kind, _ in hyperd.done] == [action]


@pytest.mark.parametrize("action", ["restart", "rollback"])
@pytest.mark.parametrize(
    ("meanwhile", "kind"),
    [
        ({"desired": "stopped", "state": "exited"}, "not_needed"),
        ({"quarantine": {"since": 1.0}, "state": "paused"}, "not_needed"),
        ({"health": "healthy"}, "not_needed"),
        ({"name": "other"}, "not_needed"),
        ({"id": "d" * 64}, "gone"),
    ],
    ids=["stopped", "in quarantine", "well", "renamed", "another of this name"],
)
async def test_what_waited_for_its_turn_does_not_undo_what_somebody_did_meanwhile(
    hyperd: Hyperd, performer: Performer, action: policy.Action, meanwhile: dict[str, Any], kind: str
) -> None:
    hyperd.seen = ILL.model_copy(update=meanwhile)
    ended = await performer.act(intent(action))
    assert (ended.kind, ended.carried_out) == (kind, False)
    assert hyperd.done == []


async def test_an_update_is_to_the_digest_that_was_decided_on(hyperd: Hyperd, performer: Performer) -> None:
    ended = await performer.act(intent("update", "image_pushed", image="app:1", to_digest="pushed"))
    assert ended.kind == "done"
    assert hyperd.done == [("change", ("web", "app:1", "pushed"))]


async def test_what_was_built_again_is_changed_to(hyperd: Hyperd, performer: Performer) -> None:
    assert (await performer.act(intent("rebuild", "base_pushed", image="app:1"))).kind == "done"
    assert hyperd.done == [("change", ("web", "app:1", None))]


@pytest.mark.parametrize("fails", [False, True], ids=["it is built", "hyperd breaks off"])
async def test_a_stop_during_a_build_holds_for_what_follows(
    hyperd: Hyperd, performer: Performer, tmp_path: Path, fails: bool
) -> None:
    def stop() -> None:
        (tmp_path / "stop").touch()
        if fails:
            raise HyperdAway("no answer", sent=True)

    hyperd.on_build = stop
    ended = await performer.act(intent("rebuild", "base_pushed", image="app:1"))
    assert (ended.kind, ended.carried_out) == ("stop_switch", False)
    assert hyperd.done == []
