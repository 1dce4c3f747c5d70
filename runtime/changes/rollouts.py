"""The rollouts of this host: beginning one, waiting for it, finding those that a daemon before this one has left.

A name has one at a time. A rollout goes on whoever waits for it; what stands in the store decides what becomes of it
when the daemon ends in the middle: before the switch it is undone (and a rollback is begun again), after it finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import creation, evidence, quarantine
from runtime.changes import book as books
from runtime.changes import switching
from runtime.changes.course import Course
from runtime.changes.rollout import TRIGGERS, UNCOMMITTED, Rollout, Side
from runtime.errors import Conflict, DigestMoved, InvalidInput, NoKnownGood, NotFound, RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from runtime.changes.book import Book
    from runtime.changes.rollout import Kind, Revision, Trigger
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.spec import Spec

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a rollback that a daemon's end has interrupted


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants a change, and why; `request_id` names it, so that it is made once however often it is asked for."""

    actor: str = "user"
    reason: str = ""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """How careful a change is to be. Times are seconds."""

    canary_s: float = 0.0
    timeout_s: float = 120.0
    watch_s: float = 0.0
    drain_s: float = 10.0
    rollback_on: tuple[Trigger, ...] = TRIGGERS


class Rollouts:
    """Begins and remembers them; `Course` does them."""

    def __init__(self, engine: Engine, book: Book) -> None:
        self._engine = engine
        self._book = book
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def change(
        self, reference: str, image: str, terms: Terms, asked: Asked, expected_digest: str | None = None
    ) -> Rollout:
        """Change the image of a container, and wait until that has ended.

        Args:
            reference: The container.
            image: The new image.
            terms: How careful to be.
            asked: By whom, and why.
            expected_digest: What the image has to be here; None: whatever it is.

        Raises:
            NotFound, ImageUnknown: no such container; the image is not here.
            InvalidInput: the image has nothing to run; or an observation of what cannot run twice was asked for.
            DigestMoved: the image is another one than was expected.
            Conflict: it has the image already, is in quarantine, or is being changed. Nothing has been begun then.
        """
        known = await self._known("change", reference, asked)
        if known is not None:
            return known
        container = self._engine.lives.find(reference)
        found = await self._engine.images.resolve(image)
        if expected_digest not in (None, found.digest):
            raise DigestMoved(
                f"{image} is {found.digest} here, not {expected_digest} as was expected: decide again, or name the"
                " image by its digest",
                field="expected_digest",
            )
        if found.digest == container.record.image_digest:
            name = container.record.name
            raise Conflict(
                f"{name} has the image {found.digest} already: pull a newer one first (hyper pull {image}), or give it"
                f" a fresh VM (hyper redeploy {name})",
                field="image",
            )
        return await self._begin(container, "update", Side(secrets.token_hex(32), image, found.digest), terms, asked)

    async def rollback(self, reference: str, to_digest: str | None, asked: Asked) -> Rollout:
        """Back to the newest good revision of another digest, or to the newest revision of one digest.

        Raises:
            NoKnownGood: there is none whose image is here.
            NotFound, Conflict: as `change`.
        """
        known = await self._known("rollback", reference, asked)
        if known is not None:
            return known
        container = self._engine.lives.find(reference)
        target = await self._target(container, to_digest)
        side = Side(secrets.token_hex(32), target.image, target.digest)
        return await self._begin(container, "rollback", side, Terms(), asked)

    def rollouts(self, reference: str) -> list[Rollout]:
        """Those of a name, the newest first.

        Raises:
            NotFound: neither a container nor a history has the name.
        """
        return self._book.rollouts(*self._named(reference))

    def history(self, reference: str) -> list[Revision]:
        """What a name has stood for, the newest first; also of one whose container is gone.

        Raises:
            NotFound: neither a container nor a history has the name.
        """
        tenant, name = self._named(reference)
        compared = {one.new.container_id: one.comparison for one in self._book.rollouts(tenant, name)}
        return [
            dataclasses.replace(one, comparison=compared.get(one.container_id, ())) if one.kind in _CALLS else one
            for one in self._book.history(tenant, name)
        ]

    def holds(self, container_id: str) -> bool:
        """Whether a container is one of the two of a rollout that goes on."""
        return any(container_id in _ids(one) for one in self._book.open_rollouts())

    def demand_none(self, container: Container) -> None:
        """Refuse what would get in the way of a rollout.

        Raises:
            Conflict: one of its name goes on.
        """
        if self.holds(container.id):
            raise Conflict(
                f"the image of {container.record.name} is being changed: wait until that has ended"
                f" (hyper history {container.record.name})",
                field="container",
            )

    async def close(self) -> None:
        """Leave all that goes on as it is; whoever comes back finishes or undoes it."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # --- coming back

    async def reopen(self) -> frozenset[str]:
        """First thing of a daemon that comes back, before any container is settled.

        Returns the ids of new containers that are to be removed: their rollouts are undone. How they are is saved.
        """
        doomed = set()
        by_id = {one.id: one for one in self._engine.lives.all()}
        for rollout in self._book.open_rollouts():
            if rollout.state not in UNCOMMITTED:
                continue
            old, new = by_id.get(rollout.old.container_id), by_id.get(rollout.new.container_id)
            if new is not None:
                doomed.add(new.id)
                path = await evidence.keep(self._engine, new, "hyperd ended in the middle of a change to its image")
                if path is not None:
                    self._book.advance(rollout, evidence=(*rollout.evidence, path))
                if old is not None and new.record.name == rollout.name:
                    switching.swap_back(self._engine, old, new, rollout.name)
        return frozenset(doomed)

    def resume(self) -> None:
        """Once all containers are settled: go on with what was left, in the background."""
        for rollout in self._book.open_rollouts():
            log.info("the %s of %s, which was %s, goes on", rollout.kind, rollout.name, rollout.state)
            self._start(rollout, self._go_on(Course(self._engine, self._book, rollout)))
        for one in self._engine.lives.all():
            if not one.record.revision and not self.holds(one.id):
                self._adopt(one)  # it was made before there was a history

    async def _go_on(self, course: Course) -> None:
        rollout = course.rollout
        if rollout.state not in UNCOMMITTED:
            await course.complete()
        elif rollout.kind == "rollback" and rollout.attempts < MAX_ATTEMPTS:
            await course.begin_again()
        else:
            await course.undo("failed", "hyperd ended in the middle of it, and it was undone: try again")

    def _adopt(self, container: Container) -> None:
        self._engine.lives.change(container, revision=1)
        self._book.created(container.record, "unknown", "made by an older hyperd")

    # --- beginning

    async def _begin(self, container: Container, kind: Kind, side: Side, terms: Terms, asked: Asked) -> Rollout:
        engine, record = self._engine, container.record
        self._check(container, terms)
        creation.check_command(
            switching.final_spec(container.spec, record.name, side), await engine.images.resolve(side.digest)
        )
        self._check(container, terms)  # again: we have waited
        rollout = Rollout(
            id=secrets.token_hex(16),
            name=record.name,
            tenant=record.tenant,
            kind=kind,
            state="starting",
            old=Side(record.id, record.image, record.image_digest),
            new=side,
            reason=asked.reason,
            actor=asked.actor,
            request_id=asked.request_id,
            started_at=time.time(),
            in_place=cannot_run_twice(container.spec),
            health_before=books.health_of(record),
            **dataclasses.asdict(terms),
        )
        with engine.store.transaction():
            self._book.begin(rollout)
            self._book.asked(asked.request_id, _CALLS[kind], record.name, {"rollout": rollout.id})
        self._start(rollout, Course(engine, self._book, rollout).run())
        return await self._wait(rollout.id)

    def _check(self, container: Container, terms: Terms) -> None:
        name = container.record.name
        self.demand_none(container)
        quarantine.demand_none(container)
        if container not in self._engine.lives.all():
            raise NotFound(f"there is no container {name!r} any more", field="container")
        if terms.canary_s and cannot_run_twice(container.spec):
            raise InvalidInput(
                f"{name} has volumes or directories that it writes to, so that old and new cannot run side by side:"
                " change it without --canary, and watch it afterwards (--watch)",
                field="canary_s",
            )

    def _start(self, rollout: Rollout, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"{rollout.kind} of {rollout.name}")
        self._tasks[rollout.id] = task

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.pop(rollout.id, None)
            if not done.cancelled() and done.exception() is not None:
                log.error("the %s of %s broke off", rollout.kind, rollout.name, exc_info=done.exception())

        task.add_done_callback(ended)

    async def _wait(self, rollout_id: str) -> Rollout:
        """Wait until a rollout has ended, if it has not; whoever gives up waiting does not end it."""
        task = self._tasks.get(rollout_id)
        if task is not None:
            with contextlib.suppress(RuntimeFault):
                await asyncio.shield(task)
        return self._book.rollout(rollout_id)

    async def _known(self, call: str, reference: str, asked: Asked) -> Rollout | None:
        """The rollout of a request that was made before."""
        if asked.request_id is None:
            return None
        known = self._book.request(asked.request_id)
        if known is None:
            return None
        books.demand_same(known, call, self._name_of(reference))
        return await self._wait(str((known.result or {})["rollout"]))

    def _name_of(self, reference: str) -> str | None:
        """The name that is meant; None: not known, as the container may have been replaced by the request itself."""
        try:
            return self._engine.lives.find(reference).record.name
        except RuntimeFault:
            return None

    def _named(self, reference: str) -> tuple[str, str]:
        """Tenant and name: of a container, else of a history."""
        try:
            record = self._engine.lives.find(reference).record
        except NotFound:
            tenants = self._book.tenants_of(reference)
            if not tenants:
                raise
            return tenants[0], reference
        for one in self._book.open_rollouts():
            if record.id in _ids(one):
                return one.tenant, one.name
        return record.tenant, record.name

    async def _target(self, container: Container, to_digest: str | None) -> Revision:
        record = container.record
        history = self._book.history(record.tenant, record.name)
        if to_digest is not None:
            found = [one for one in history if one.digest == to_digest]
            if not found:
                raise NoKnownGood(
                    f"{to_digest} is not in the history of {record.name}: see hyper history {record.name}, or change to"
                    " it (hyper update --image)",
                    field="to_digest",
                )
            if to_digest == record.image_digest:
                raise Conflict(f"{record.name} has the image {to_digest} already", field="to_digest")
        else:
            found = [one for one in history if one.good and one.digest != record.image_digest]
        for one in found:
            with contextlib.suppress(NotFound):
                await self._engine.images.resolve(one.digest)
                return one
        raise NoKnownGood(
            f"{record.name} has no earlier image that proved good and is on this host: see hyper history {record.name},"
            " and change to one by name (hyper update --image)",
            field="to_digest",
        )


_CALLS: dict[str, str] = {"update": "change", "rollback": "rollback"}


def cannot_run_twice(spec: Spec) -> bool:
    """Whether a container has something that one VM at a time may write to."""
    return any(not mount.read_only for mount in spec.volumes)


def _ids(rollout: Rollout) -> tuple[str, str]:
    return rollout.old.container_id, rollout.new.container_id
