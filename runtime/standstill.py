"""VMs that QEMU has stopped, as the host's disk was full: noticed, told of, and let go on when there is room again.

QEMU stops a VM whose write finds no room (status `io-error`; `werror=enospc` is its default), and does the write again
at `cont`: nothing is lost. It tells of it on the monitor only, and nobody listens there all the time. So VMs are asked,
every second while the disk is nearly full, or one of them stands still, and else now and then. Of very many it is asked
less often: it takes a tenth of a processor at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from runtime import reserve as reserves
from runtime.errors import GuestFailed, RuntimeFault
from runtime.events import of_container
from runtime.vm import monitor

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.events import Events
    from runtime.life import Container, Lives
    from runtime.reserve import Reserve
    from runtime.supervisor import Supervisor

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
NOW_AND_THEN_S: Final = 300.0  # a disk may have been full for less than the time between two looks
NEARLY_FULL_BYTES: Final = 64 << 20
RESUME_BYTES: Final = 32 << 20  # with less all of them would stop again at once
_REST = 10  # times as long as a look has kept the processor
_ASK_TIMEOUT_S = 2.0
_MOST_AT_ONCE = 16
_STOPPED_BY_QEMU = "io-error"  # RunState of qapi/run-state.json


class Standstill:
    """Looks after the VMs of `lives` and the reserve of the disk that `directory` is on."""

    def __init__(self, lives: Lives, supervisor: Supervisor, events: Events, reserve: Reserve, directory: Path) -> None:
        self._lives = lives
        self._supervisor = supervisor
        self._events = events
        self._reserve = reserve
        self._directory = directory
        self._all_due = 0.0
        self._asking = asyncio.Semaphore(_MOST_AT_ONCE)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            began_s = time.thread_time()
            try:
                await self.look()
            except (RuntimeFault, OSError) as err:
                log.warning("whether the disk is full cannot be seen: %s", err)
            await asyncio.sleep(max(LOOK_S, _REST * (time.thread_time() - began_s)))

    async def look(self) -> None:
        """Make the reserve whole if there is room, see which VMs stand still, and let them go on if there is room.

        Raises:
            OSError: the directory's file system cannot be asked.
        """
        self._reserve.refill()
        self._lives.write_again()
        free = reserves.free_bytes(self._directory)
        running = [one for one in self._lives.all() if one.state == "running"]
        halted = any(one.halted_at is not None for one in running)
        if free < NEARLY_FULL_BYTES or halted or time.monotonic() >= self._all_due:
            self._all_due = time.monotonic() + NOW_AND_THEN_S
            await asyncio.gather(*(self._ask(one) for one in running))
        halted = any(one.halted_at is not None for one in running)
        # What was free before they were asked may be what they have filled since.
        if halted and reserves.free_bytes(self._directory) >= RESUME_BYTES and not self._reserve.missing_bytes:
            await asyncio.gather(*(self._resume(one) for one in running if one.halted_at is not None))

    async def _ask(self, container: Container) -> None:
        """Ask QEMU whether the VM stands still. One that does not answer is not taken for one that does."""
        async with self._asking:
            try:
                async with asyncio.timeout(_ASK_TIMEOUT_S), monitor.opened(container.directory) as qmp:
                    answer = await qmp.execute("query-status")
            except (TimeoutError, GuestFailed):
                return
        stands = isinstance(answer, dict) and answer.get("status") == _STOPPED_BY_QEMU
        if container.state != "running" or stands == (container.halted_at is not None):
            return
        if not stands:  # it was paused and unpaused meanwhile
            self._goes_on(container)
            return
        container.halted_at = time.time()
        if container.agent is not None:
            container.agent.close()  # whoever waits for its answer now would wait for nothing
        log.warning(
            "container %s stands still: the disk of %s is full; it goes on when %d MiB are free",
            container.record.name, self._directory, (RESUME_BYTES + self._reserve.missing_bytes) >> 20,
        )  # fmt: skip
        self._events.tell(of_container(container.record, "halt", reason="disk full"))

    async def _resume(self, container: Container) -> None:
        """Let a VM go on, unless something else is being done to it: then at the next look, if it is still to run."""
        if container.lock.locked():
            return
        async with container.lock:
            if container.state != "running" or container.halted_at is None:
                return
            try:
                await self._supervisor.resume(container)
            except GuestFailed as err:
                log.warning("container %s could not be let go on: %s", container.record.name, err)
                return
            self._goes_on(container)

    def _goes_on(self, container: Container) -> None:
        if container.halted_at is None:  # it has ended
            return
        container.halted_at = None
        log.info("container %s goes on: there is room on the disk again", container.record.name)
        self._events.tell(of_container(container.record, "resume"))
