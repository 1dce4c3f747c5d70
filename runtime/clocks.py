"""Guests' clocks follow the host's, which may jump (a hand or NTP sets it, the host was suspended) or be slewed.

A guest counts on from what it was told, at the rate that the host's counter had when it was measured. So its clock runs
as CLOCK_MONOTONIC_RAW does, to a few millionths: whatever the host's clock does beside that one, it does not. The two
are compared every second, which asks no guest; guests are asked when the distance has changed, when the daemon has come
back, and now and then for the millionths. A clock that is a little off is brought nearer without a jump, so that time
never goes back for a program in the guest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from runtime import keeping
from runtime.errors import GuestFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from runtime.life import Container, Lives

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
NOW_AND_THEN_S: Final = 600.0  # at 10 millionths a clock is 6 ms off by then
AGAIN_S: Final = 10.0  # a guest that did not answer, or is being brought nearer
NEAR_NS: Final = 10_000_000
JUMP_NS: Final = 40_000_000  # the kernel brings a clock nearer by half a millisecond a second: 80 s for this
_TIMEOUT_S = 2.0
_MOST_AT_ONCE = 16


def _raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class Clocks:
    """Keeps the clocks of the VMs of `lives` that run; one that is paused gets the time when it goes on."""

    def __init__(
        self,
        lives: Lives,
        *,
        host_ns: Callable[[], int] = time.time_ns,
        raw_ns: Callable[[], int] = _raw_ns,
    ) -> None:
        self._lives = lives
        self._host_ns = host_ns
        self._raw_ns = raw_ns
        self._distance_ns = 0
        self._all_due_ns = self._again_due_ns = -1
        self._missed: set[str] = set()
        self._asking = asyncio.Semaphore(_MOST_AT_ONCE)

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Compare the host's two clocks, and set those of guests that must be off by what has changed."""
        raw_ns = self._raw_ns()
        distance_ns = self._host_ns() - raw_ns
        moved = abs(distance_ns - self._distance_ns) > NEAR_NS
        again = bool(self._missed) and raw_ns >= self._again_due_ns
        if not (moved or again or raw_ns >= self._all_due_ns):
            return
        running = [one for one in self._lives.all() if one.state == "running" and one.halted_at is None]
        if moved or raw_ns >= self._all_due_ns:
            self._distance_ns = distance_ns
            self._all_due_ns = raw_ns + int(NOW_AND_THEN_S * 1e9)
        else:
            running = [one for one in running if one.id in self._missed]
        results = await asyncio.gather(*map(self._follow, running))
        self._missed = {one.id for one, done in zip(running, results, strict=True) if not done}
        self._again_due_ns = raw_ns + int(AGAIN_S * 1e9)

    async def _follow(self, container: Container) -> bool:
        """Bring one guest's clock to the host's; False: it is to be asked again.

        It did not answer, or so slowly that nothing can be told; or it is being brought nearer, which a guest forgets
        if its kernel takes another clocksource meanwhile, as it does a second after its boot.
        """
        agent = container.agent
        if agent is None:
            return True  # it is being started, and told the time, or has ended
        async with self._asking:
            try:
                error_ns, doubt_ns = await agent.clock_error(_TIMEOUT_S, self._host_ns)
                if abs(error_ns) - doubt_ns < NEAR_NS:
                    return doubt_ns < NEAR_NS
                slew = abs(error_ns) < JUMP_NS
                await agent.set_clock(_TIMEOUT_S, slew=slew, host_ns=self._host_ns)
            except GuestFailed:
                return False
            except Exception as err:  # noqa: BLE001 -- told; the others' clocks are kept all the same
                keeping.tell(f"the clock of {container.record.name}", err)
                return False
        how = "is brought nearer" if slew else "has been set"
        log.info("the clock of %s was %+.3f s off the host's, and %s", container.record.name, error_ns / 1e9, how)
        return not slew
