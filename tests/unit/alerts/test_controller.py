from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from alerts.remediation import policy, work
from alerts.remediation.actions import Ended
from alerts.remediation.controller import Controller
from alerts.remediation.journal import Decision, Journal
from alerts.remediation.policyfile import PolicyFile
from alerts.remediation.signals import PUSH, Signal

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 6


class Slow:
    """A performer whose actions last until they are let go; every container is down. It stands for all else as well."""

    def __init__(self) -> None:
        self.at_work = self.most = self.ended = 0
        self.go_on = asyncio.Event()

    async def container(self, ref: str) -> policy.Container:
        return policy.Container(
            id=ref.removeprefix("web") * 64, name=ref, state="exited", desired="running", epoch=1, image_digest="old",
            labels={policy.FOLLOW_LABEL: "true"},
        )  # fmt: skip

    async def history(self, ref: str) -> list[policy.Revision]:
        del ref
        return []

    async def look(self, container_id: str) -> None:
        del container_id

    def judge(self, *_: object) -> None:
        pass

    async def pull(self, image: str) -> str:
        del image
        return "new"

    async def act(self, intent: Decision) -> Ended:
        del intent
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await self.go_on.wait()
        self.at_work -= 1
        self.ended += 1
        return Ended("done", True, "")


class Silent:
    """Observes nothing."""

    def decided(self, *_: object) -> None:
        pass

    concluded = audit_failed = decided


@pytest.mark.parametrize("renews", [False, True])
def test_so_many_actions_at_once_and_no_more(renews: bool, tmp_path: Path) -> None:
    async def play() -> Slow:
        slow, journal = Slow(), Journal(tmp_path)
        names = [f"web{number}" for number in range(COUNT)]
        # By its name alone: what a signal says of the id is not asked about here.
        known: Any = {name: (await slow.container(name)).model_copy(update={"id": name}) for name in names}

        async def container(ref: str) -> policy.Container:
            return known[ref]  # type: ignore[no-any-return]  # of Any, see above

        anything: Any = slow
        anything.container = container
        one = Controller(journal, anything, anything, Silent(), tmp_path / "stop", PolicyFile(), anything)
        for name in names:
            if renews:
                told = Signal("registry", PUSH, name, 0.0, labels={"name": name}, image="x", digest="new")
                one.submit_holes([(told, known[name])])
            else:
                one.submit_signal(Signal("alertmanager", policy.DOWN, name, 0.0, labels={"name": name}))
        async with asyncio.timeout(30):
            while len(journal.unfinished()) < COUNT:  # noqa: ASYNC110 -- the journal tells no event
                await asyncio.sleep(0.001)
        assert slow.at_work == work.MAX_ACTIONS_AT_ONCE
        slow.go_on.set()
        await one.drain(30)
        journal.close()
        return slow

    slow = asyncio.run(play())
    assert (slow.most, slow.ended) == (work.MAX_ACTIONS_AT_ONCE, COUNT)
