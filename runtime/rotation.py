"""Keeping logs from growing for ever: their beginnings are given back to the disk, and floods wait in the guest.

A log is one file for all the life of a container; QEMU appends to it, whether a daemon runs or not. What is too old is
punched out of its front (fallocate(2), FALLOC_FL_PUNCH_HOLE), up to the end of a record: the places of all that follows
stay what they were. So nothing that is being written or read can be lost or doubled by it, and a daemon that is killed
in the middle leaves nothing to repair: a log begins with the first record after the hole.

The guest may write only as much ahead as it was given credit for. It is given more while the log is looked after; a
container that floods while no daemon runs, or whose output somebody takes slowly, waits like a writer to a full pipe.
`docs/explanation/streams.md` says what holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import logs
from runtime.errors import GuestFailed
from runtime.inotify import FileWatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.life import Container, Lives

log = logging.getLogger(__name__)

_KEEP_SIZE, _PUNCH_HOLE = 0x1, 0x2
_INTERVAL_S = 0.25
_BUSY_INTERVAL_S = 0.02
_CREDIT_TIMEOUT_S = 5.0
_RETRY_S = 5.0
_RETURN_S = 5.0  # those who read when a daemon before ended are back by then: they ask ten times a second
_READ_BYTES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(eq=False, slots=True)
class Place:
    """Where somebody reads a log. One who stands for the container (`holds_up`) makes it wait for him."""

    container_id: str
    position: int
    holds_up: bool


@dataclass(slots=True)
class _Growth:
    """What is known of one log. `limit` is where the guest's credit ends, in bytes of the file."""

    begin: int | None = None
    size: int = 0
    epoch: int = -1
    limit: int = 0
    retry_at: float = 0.0
    cutting: asyncio.Task[None] | None = None
    granting: asyncio.Task[None] | None = None


class Rotation:
    """Looks after the logs of all containers. `max_bytes` of each are kept for certain."""

    def __init__(self, lives: Lives, max_bytes: int) -> None:
        self.watch = FileWatch()
        self._lives = lives
        self._max_bytes = max_bytes
        self._step_bytes = max(max_bytes // 16, 4096)
        self._known: dict[str, _Growth] = {}
        self._places: set[Place] = set()
        self._began = time.monotonic()
        self._punches = True
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Look after the logs until cancelled."""
        self._began = time.monotonic()
        while True:
            busy = False
            containers = self._lives.all()
            for container in containers:
                busy |= self._look(container)
            if len(self._known) > len(containers):
                living = {container.id for container in containers}
                self._known = {id_: one for id_, one in self._known.items() if id_ in living}
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BUSY_INTERVAL_S if busy else _INTERVAL_S):
                    await self._wanted.wait()

    def begin(self, container: Container) -> int:
        """Where the log begins now: all before it has been given back."""
        known = self._known.setdefault(container.id, _Growth())
        if known.begin is None:
            known.begin = _begin_of(container)
        return known.begin

    @contextlib.contextmanager
    def reading(self, container: Container, position: int, *, holds_up: bool) -> Iterator[Place]:
        """Keep for a reader what it has not read yet, within the bounds of the disk; it moves its place on."""
        place = Place(container.id, position, holds_up)
        self._places.add(place)
        self._wanted.set()  # it has most likely just been started, and has credit for little
        try:
            yield place
        finally:
            self._places.discard(place)

    def attended(self, container: Container) -> bool:
        """Whether somebody who stands for it still reads what it wrote."""
        return any(place.holds_up and place.container_id == container.id for place in self._places)

    @property
    def readers(self) -> int:
        """How many are reading a log."""
        return len(self._places)

    def _look(self, container: Container) -> bool:
        """Cut one log and give its guest credit, if it is time; whether it grows fast."""
        known = self._known.setdefault(container.id, _Growth())
        try:
            size = container.log_path.stat().st_size
        except OSError:
            size = 0
        grown, known.size = size - known.size, size
        places = [place for place in self._places if place.container_id == container.id]
        if time.monotonic() - self._began < _RETURN_S:
            places.append(Place(container.id, self.begin(container), holds_up=True))  # who comes back may be there
        if size > self._max_bytes and self._punches and known.cutting is None:
            self._cut(container, known, places)
        if container.state in {"running", "stopping"}:
            self._grant(container, known, places)
        return grown > self._max_bytes // 8

    def _cut(self, container: Container, known: _Growth, places: list[Place]) -> None:
        begin = self.begin(container)
        wanted = min([known.size - self._max_bytes, *(place.position for place in places)])
        # Whoever is too slow for this is passed over. A guest that keeps to its credit cannot bring it about for one
        # who holds it up.
        target = max(wanted, known.size - 3 * self._max_bytes - self._step_bytes)
        if target - begin >= self._step_bytes:
            known.cutting = asyncio.create_task(self._punch(container, known, begin, target))

    async def _punch(self, container: Container, known: _Growth, begin: int, target: int) -> None:
        try:
            with container.log_path.open("r+b") as file:
                # Only a guest that goes beyond its credit gets so far, perhaps with records so small that going through
                # them takes longer than writing them.
                hurry = known.size - begin > 3 * self._max_bytes + self._step_bytes
                end = await asyncio.to_thread(_last_boundary, file.fileno(), begin, target, hurry=hurry)
                known.begin = end  # first: no reader takes what is about to go
                await asyncio.to_thread(punch, file.fileno(), end)
        except OSError as err:
            if err.errno == errno.EOPNOTSUPP:
                self._punches = False
            if err.errno != errno.ENOENT:
                log.warning("the log of %s cannot be cut: %s", container.record.name, err.strerror)
        finally:
            known.cutting = None

    def _grant(self, container: Container, known: _Growth, places: list[Place]) -> None:
        """The guest may be `max_bytes` ahead of the slowest of those who hold it up; without one, of now."""
        if known.granting is not None or container.agent is None or time.monotonic() < known.retry_at:
            return
        held_up = min([known.size, *(place.position for place in places if place.holds_up)])
        allowed = max(0, held_up + self._max_bytes - known.size)
        epoch = container.record.lifecycle.epoch
        left = known.limit - known.size
        worth = max(1, self._max_bytes // 8)  # less would only take away what it still has from a daemon before
        if allowed >= worth and (known.epoch != epoch or allowed - left >= worth):
            known.granting = asyncio.create_task(self._give(container, known, epoch, allowed))

    async def _give(self, container: Container, known: _Growth, epoch: int, credit: int) -> None:
        limit = known.size + credit  # or more, by what the guest writes before it hears of it
        try:
            if container.agent is not None:
                await container.agent.call("hyper-log-credit", _CREDIT_TIMEOUT_S, credit=credit)
            known.epoch, known.limit = epoch, limit
        except GuestFailed as err:
            log.debug("container %s: no credit for its log: %s", container.record.name, err)
            known.retry_at = time.monotonic() + _RETRY_S
        finally:
            known.granting = None


def _begin_of(container: Container) -> int:
    """Where the log begins, as the file itself says: with the first record after the hole at its front."""
    try:
        with container.log_path.open("rb") as file:
            # An empty file, or one that is all hole, has no data to seek (ENXIO).
            start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
            if start == 0:
                head = os.pread(file.fileno(), 1, 0)
                if head != b"\0":
                    return 0
            data = os.pread(file.fileno(), _READ_BYTES, start)
    except OSError:
        return 0
    found = data.find(logs.MAGIC)
    return start + max(found, 0)


def _last_boundary(descriptor: int, begin: int, target: int, *, hurry: bool) -> int:
    """The end of the last record that ends at or before `target`, found by going from record to record.

    In a hurry most of them are passed over, and where one begins is guessed from several that follow one another.
    """
    position = begin
    if hurry and target - begin > _READ_BYTES:
        position = target - _READ_BYTES
        position += logs.first(os.pread(descriptor, _READ_BYTES, position))
    while position < target:
        data = os.pread(descriptor, min(_READ_BYTES, target - position), position)
        step = logs.whole(data)
        if not step:
            break
        position += step
    return position


def punch(descriptor: int, end: int) -> None:
    """Give the blocks before `end` back to the disk; the rest of a block that is needed becomes zeros."""
    mode, begin = _KEEP_SIZE | _PUNCH_HOLE, 0
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(begin), ctypes.c_int64(end)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
