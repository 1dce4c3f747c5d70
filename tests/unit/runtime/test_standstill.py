"""VMs that QEMU has stopped: noticed once, told of, let go on when there is room, and never against a user's will."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest

from runtime import record as records
from runtime import reserve as reserves
from runtime import sessions, standstill, view
from runtime.errors import DiskFull, GuestFailed
from runtime.reserve import NONE
from runtime.spec import ExecSpec
from runtime.standstill import NEARLY_FULL_BYTES, RESUME_BYTES, Standstill
from runtime.vm import monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runtime.events import Events
    from runtime.life import Container, Lives


class World:
    """The disk, QEMU, and the supervisor."""

    def __init__(self, container: Container, lives: Lives, events: Events) -> None:
        self.container = container
        self.free = 0
        self.status: object = "io-error"
        self.answers = True
        self.asked = self.continued = 0
        self.closed = 0
        self.standstill = Standstill(lives, self, events, NONE, container.directory)  # type: ignore[arg-type]  # pretended

    async def execute(self, name: str) -> Any:
        assert name == "query-status"
        self.asked += 1
        return {"status": self.status}

    async def resume(self, container: Container) -> None:
        assert container.lock.locked()
        self.continued += 1
        if not self.answers:
            raise GuestFailed("no answer")
        self.status = "running"

    async def call(self, *_: object, **__: object) -> None:
        raise AssertionError("the agent was asked")

    async def open(self, _session: int) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def world(running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch) -> World:
    one, lives = running
    events = lives._events
    made = World(one, lives, events)
    one.agent = one.streams = made  # type: ignore[assignment]  # pretended

    @contextlib.asynccontextmanager
    async def opened(_: Path) -> AsyncIterator[World]:
        if not made.answers:
            raise GuestFailed("QEMU's monitor does not answer")
        yield made

    monkeypatch.setattr(monitor, "opened", opened)
    monkeypatch.setattr(reserves, "free_bytes", lambda _: made.free)
    return made


def told(lives: Lives) -> list[str]:
    return [one.action for one in lives._store.events(0, 0, 100)]


async def test_it_is_noticed_and_told_once_and_goes_on_when_there_is_room(
    running: tuple[Container, Lives], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, lives = running
    for free in (0, 0, RESUME_BYTES - 1):
        world.free = free
        await world.standstill.look()
        assert one.halted_at is not None
    assert [text for text in caplog.messages if "stands still" in text] == [caplog.messages[0]]
    assert (told(lives), world.closed, world.continued) == (["halt"], 1, 0)
    shown = view.container(one, [])
    assert shown["status"].endswith("(stopped: disk full)")
    assert shown["halted"] == {"since": one.halted_at, "reason": "disk full"}
    assert shown["state"] == "running"
    with pytest.raises(DiskFull, match=r"web stands still.*hyper system prune"):
        await sessions.begin(one, ExecSpec(args=("true",)))
    world.free = RESUME_BYTES
    await world.standstill.look()
    assert (one.halted_at, world.continued, told(lives)) == (None, 1, ["halt", "resume"])
    assert view.container(one, [])["halted"] is None
    assert "stopped" not in view.container(one, [])["status"]


async def test_one_that_fills_the_disk_while_it_is_asked_is_not_let_go_on_for_what_was_free_before(
    running: tuple[Container, Lives], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, lives = running
    world.free = RESUME_BYTES
    ask = world.execute

    async def fills(name: str) -> Any:
        world.free = 0
        return await ask(name)

    monkeypatch.setattr(world, "execute", fills)
    await world.standstill.look()
    assert one.halted_at is not None
    assert (told(lives), world.continued) == (["halt"], 0)


async def test_a_user_who_pauses_it_or_does_something_else_to_it_is_first(
    running: tuple[Container, Lives], world: World
) -> None:
    one, lives = running
    await world.standstill.look()
    world.free = RESUME_BYTES
    async with one.lock:
        await asyncio.wait_for(world.standstill.look(), 5)
    lives.change(one, "paused")
    assert "(Paused)" in view.container(one, [])["status"]
    await world.standstill.look()
    assert world.continued == 0
    # Unpaused by its user, who has let it go on so.
    lives.change(one, "running")
    world.status, world.free = "running", 0
    await world.standstill.look()
    assert (one.halted_at, world.continued, told(lives)) == (None, 0, ["halt", "pause", "unpause", "resume"])


async def test_a_qemu_that_does_not_answer_is_asked_again(running: tuple[Container, Lives], world: World) -> None:
    one, _ = running
    world.answers = False
    await world.standstill.look()
    assert one.halted_at is None
    world.answers = True
    await world.standstill.look()
    world.answers, world.free = False, RESUME_BYTES
    await world.standstill.look()
    assert (one.halted_at is not None, world.continued) == (True, 1)
    world.answers = True
    await world.standstill.look()
    assert (one.halted_at, world.continued) == (None, 2)


async def test_with_room_nobody_is_asked_but_now_and_then(
    running: tuple[Container, Lives], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = running
    world.status, world.free = "running", NEARLY_FULL_BYTES
    for _ in range(10):
        await world.standstill.look()
    assert world.asked == 1
    world.status = "io-error"
    monkeypatch.setattr(standstill, "NOW_AND_THEN_S", 0.0)
    world.standstill._all_due = 0.0
    await world.standstill.look()
    assert (world.asked, world.continued, one.halted_at) == (2, 1, None)


@pytest.mark.parametrize("status", ["running", "paused", None, 3, ["io-error"]])
async def test_no_other_state_is_taken_for_it(running: tuple[Container, Lives], world: World, status: object) -> None:
    world.status = status
    await world.standstill.look()
    assert running[0].halted_at is None


async def test_a_full_state_directory_gets_the_record_later(
    running: tuple[Container, Lives], world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, lives = running
    write = records.write

    def full(_directory: Path, _record: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "write", full)
    with caplog.at_level(logging.WARNING):
        lives.change(one, "exited", exit_code=3)
        lives.change(one, error="late")
        await world.standstill.look()
    assert len(caplog.messages) == 1
    assert one.state == "exited"
    assert records.read(one.directory).lifecycle.state == "running"
    monkeypatch.setattr(records, "write", write)
    await world.standstill.look()
    assert records.read(one.directory) == one.record
