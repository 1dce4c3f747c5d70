"""A guest's clock follows its host's, which is made to jump and to drift here: on a real guest, by its own agent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from runtime.clocks import Clocks
from runtime.vm.agent import Agent
from tests.contract import agent_vm

if TYPE_CHECKING:
    from runtime.life import Container, Lives

BOUND_NS = 50_000_000
SLEW_NS = 1_000_000


class One:
    """The one container of a host, and the host's containers."""

    def __init__(self, agent: Agent) -> None:
        self.id, self.state, self.halted_at, self.agent = "one", "running", None, agent
        self.record = self
        self.name = "one"

    def all(self) -> list[Container]:
        return [cast("Container", self)]


async def test_a_guest_follows_its_host() -> None:
    with agent_vm.GuestVm() as vm:
        vm.control.close()  # a port has one client
        agent, ahead_ns = Agent(vm.place / "agent.sock"), 0

        def host_ns() -> int:
            return time.time_ns() + ahead_ns

        async def error_ns() -> int:
            found = [await agent.clock_error(5, host_ns) for _ in range(5)]
            return min(found, key=lambda one: one[1])[0]

        clocks = Clocks(cast("Lives", One(agent)), host_ns=host_ns)
        for hours in (0, 1, -2, 24 * 365):  # the first is how far a guest is off that was never told the time
            ahead_ns += hours * 3600 * 10**9
            await clocks.look()
            assert abs(await error_ns()) < BOUND_NS
        ahead_ns += BOUND_NS // 2
        before = await error_ns()
        assert before < -SLEW_NS
        await clocks.look()
        deadline = time.monotonic() + 60
        while abs(now := await error_ns()) > abs(before) - SLEW_NS:
            assert abs(now) < abs(before) + SLEW_NS, "it goes the other way"
            assert time.monotonic() < deadline, f"it is not brought nearer: {now} ns, and was {before} ns"
            await clocks.look()  # as the daemon does: the first one may be forgotten
        assert now < 0, "it did not jump"
        agent.close()
