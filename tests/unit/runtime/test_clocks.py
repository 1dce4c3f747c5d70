"""Guests' clocks: asked when the host's has moved, now and then, and no more; set by a jump, or brought nearer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from runtime import clocks
from runtime.clocks import Clocks
from runtime.errors import GuestFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.life import Container, Lives

MS = 1_000_000
SECOND = 1_000_000_000


class World:
    """The host's two clocks, and the agent of a guest with one."""

    def __init__(self, container: Container, lives: Lives) -> None:
        self.raw = 5 * SECOND
        self.host = 1_700_000_000 * SECOND
        self.guest = self.host
        self.doubt = 0
        self.answers = True
        self.forgets = False  # what it was told to come nearer by
        self.asked = 0
        self.set: list[str] = []
        self.clocks = Clocks(lives, host_ns=lambda: self.host, raw_ns=lambda: self.raw)
        container.agent = self  # type: ignore[assignment]  # pretended

    def goes_on(self, seconds: float, *, host_ns: int = 0, guest_ns: int = 0) -> None:
        """All clocks go on; the host's and the guest's by so much more."""
        self.raw += int(seconds * SECOND)
        self.host += int(seconds * SECOND) + host_ns
        self.guest += int(seconds * SECOND) + guest_ns

    async def clock_error(self, _timeout_s: float, host_ns: Callable[[], int]) -> tuple[int, int]:
        self.asked += 1
        if not self.answers:
            raise GuestFailed("no answer")
        return self.guest - host_ns(), self.doubt

    async def set_clock(self, _timeout_s: float, *, slew: bool, host_ns: Callable[[], int]) -> None:
        self.set.append("nearer" if slew else "jump")
        if not (slew and self.forgets):
            self.guest = host_ns()


@pytest.fixture
def world(running: tuple[Container, Lives]) -> World:
    return World(*running)


async def test_a_guest_is_asked_at_first_and_then_only_when_the_host_has_moved(world: World) -> None:
    await world.clocks.look()
    assert (world.asked, world.set) == (1, [])
    for _ in range(20):
        world.goes_on(1, host_ns=20_000)  # 20 millionths, as NTP steers
        await world.clocks.look()
    assert world.asked == 1


@pytest.mark.parametrize("jump_ns", [3600 * SECOND, -3600 * SECOND, 60 * MS, -60 * MS])
async def test_a_jump_is_followed_at_the_next_look(world: World, jump_ns: int) -> None:
    await world.clocks.look()
    world.goes_on(1, host_ns=jump_ns)
    await world.clocks.look()
    assert world.set == ["jump"]
    assert world.guest == world.host
    world.goes_on(1)
    await world.clocks.look()
    assert world.asked == 2, "and that is it"


async def test_the_host_was_suspended(world: World) -> None:
    """Neither the raw clock nor the guest's went on meanwhile."""
    await world.clocks.look()
    world.host += 8 * 3600 * SECOND
    await world.clocks.look()
    assert world.set == ["jump"]


async def test_a_host_that_is_slewed_takes_its_guests_along_without_a_jump(world: World) -> None:
    await world.clocks.look()
    for _ in range(30):
        world.goes_on(1, host_ns=500_000)  # 500 millionths: the most that the kernel does for NTP
        await world.clocks.look()
    assert world.set == ["nearer"]


async def test_a_guest_that_did_not_come_nearer_is_told_again(world: World) -> None:
    world.forgets = True
    world.guest -= 20 * MS
    await world.clocks.look()
    world.forgets = False
    for _ in range(25):
        world.goes_on(1)
        await world.clocks.look()
    assert (world.asked, world.set) == (3, ["nearer"] * 2)


async def test_a_guest_that_drifts_is_found_now_and_then(world: World) -> None:
    await world.clocks.look()
    world.goes_on(clocks.NOW_AND_THEN_S - 1, guest_ns=-15 * MS)
    await world.clocks.look()
    assert world.asked == 1
    world.goes_on(2)
    await world.clocks.look()
    assert (world.asked, world.set) == (2, ["nearer"])


async def test_what_an_exchange_cannot_tell_is_not_corrected_and_asked_again(world: World) -> None:
    world.guest += 30 * MS
    world.doubt = 25 * MS
    await world.clocks.look()
    assert world.set == []
    world.doubt = 1 * MS
    world.goes_on(clocks.AGAIN_S)
    await world.clocks.look()
    assert (world.asked, world.set) == (2, ["nearer"])


async def test_who_does_not_answer_is_asked_again_alone(world: World) -> None:
    world.guest -= 60 * SECOND
    world.answers = False
    await world.clocks.look()
    world.goes_on(1)
    await world.clocks.look()
    assert world.asked == 1
    world.answers = True
    world.goes_on(clocks.AGAIN_S)
    await world.clocks.look()
    assert (world.asked, world.set) == (2, ["jump"])
    world.goes_on(clocks.AGAIN_S)
    await world.clocks.look()
    assert world.asked == 2


async def test_one_whose_clock_cannot_be_kept_for_any_reason_is_told_and_keeps_nobody_else_waiting(
    running: tuple[Container, Lives], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one, lives = running

    class Odd:
        async def clock_error(self, *_: object) -> tuple[int, int]:
            raise OverflowError("integer division result too large for a float")

    other = dataclasses.replace(one, id="cd" * 32, agent=Odd())  # type: ignore[arg-type]  # pretended
    lives.add(other)
    world.guest -= 60 * SECOND
    await world.clocks.look()
    assert world.set == ["jump"]
    assert caplog.messages == ["the clock of web: a defect"]
    world.goes_on(clocks.AGAIN_S)
    await world.clocks.look()
    assert (world.asked, len(caplog.messages)) == (1, 2), "it is asked again, alone"


async def test_who_is_paused_stands_still_or_is_being_started_is_not_asked(
    running: tuple[Container, Lives], world: World
) -> None:
    one, _ = running
    one.halted_at = 1.0
    await world.clocks.look()
    one.halted_at, one.agent = None, None
    world.goes_on(1, host_ns=SECOND)
    await world.clocks.look()
    one.agent = world  # type: ignore[assignment]  # pretended
    one.record = dataclasses.replace(one.record, lifecycle=dataclasses.replace(one.record.lifecycle, state="paused"))
    world.goes_on(1, host_ns=SECOND)
    await world.clocks.look()
    assert world.asked == 0
