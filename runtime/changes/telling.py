"""What a rollout writes: its steps before they are done, its end, the history, events and the audit log."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from runtime.changes.book import health_of, of_record
from runtime.events import of_container

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.changes.book import Book
    from runtime.changes.rollout import Compared, Rollout, Side, State
    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.record import Record


class Stopped(Exception):  # noqa: N818 -- reads as what happened
    """The rollout goes no further: the state that it ends in, and why. What it has done is to be undone."""

    def __init__(self, state: State, detail: str, comparison: tuple[Compared, ...] = ()) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail
        self.comparison = comparison


class Telling:
    """One rollout as it is told. `rollout` is what the store has; only this changes it."""

    def __init__(self, engine: Engine, book: Book, rollout: Rollout) -> None:
        self._engine = engine
        self._book = book
        self.rollout = rollout

    @contextlib.contextmanager
    def _uncommitted(self) -> Iterator[None]:
        """What `_commit` says holds only if its transaction does."""
        before = self.rollout
        try:
            yield
        except BaseException:
            self.rollout = before
            raise

    def _next_revision(self) -> int:
        return self._book.last_revision(self.rollout.tenant, self.rollout.name) + 1

    def _commit(self, new: Container) -> None:
        """From here on the new container is the one of that name; within the transaction that makes it so."""
        rollout = self.rollout
        revision = dataclasses.replace(
            of_record(new.record, rollout.kind, rollout.actor, rollout.reason, request_id=rollout.request_id),
            revision=self._next_revision(),
            health_before=rollout.health_before,
        )
        self._book.note(rollout.tenant, rollout.name, revision)
        self.rollout = self._book.advance(rollout, "draining", "switched")

    def _finish(self, state: State, detail: str, record: Record | None = None) -> None:
        """Write down how it ended: in the journal, in the history and in the audit log."""
        new = self._new()
        record = new.record if new is not None else record
        health = health_of(record) if record is not None else ""
        with self._engine.store.transaction():
            if state == "done":
                self._settle(state, health)
            else:
                self._note_failed(state, health)
            self.rollout = self._book.advance(
                self.rollout, state, detail or state, detail=detail, finished_at=time.time(), health_after=health
            )
        self._tell_end()
        self._engine.rollout_ended(self.rollout.old.container_id)

    def _settle(self, outcome: str, health: str = "") -> None:
        rollout, new = self.rollout, self._new()
        if new is not None:
            health = health or health_of(new.record)
            self._book.settle(rollout.tenant, rollout.name, new.record.revision, outcome, health)

    def _note_failed(self, outcome: str, health: str) -> None:
        """A change that did not come to be is in the history, too."""
        rollout = self.rollout
        from_record = self._record_of_name()
        if from_record is None:
            return
        revision = of_record(from_record, rollout.kind, rollout.actor, rollout.reason, request_id=rollout.request_id)
        self._book.note(
            rollout.tenant,
            rollout.name,
            dataclasses.replace(
                revision,
                revision=self._next_revision(),
                container_id=rollout.new.container_id,
                image=rollout.new.image,
                digest=rollout.new.digest,
                health_before=rollout.health_before,
                health_after=health,
                outcome=outcome,
            ),
        )

    def _tell_end(self) -> None:
        rollout, record = self.rollout, self._record_of_name()
        self._told(rollout.state)
        if record is not None:
            told = {
                "rollout": rollout.id,
                "from": rollout.old.digest,
                "to": rollout.new.digest,
                "state": rollout.state,
                "detail": rollout.detail,
            }
            outcome = "done" if rollout.state == "done" else "failed"
            self._engine.store.audit(rollout.actor, rollout.kind, record, rollout.reason, outcome, told)

    # --- writing it down

    def _advance(self, state: State, text: str, **changes: Any) -> None:
        self.rollout = self._book.advance(self.rollout, state, text, **changes)
        self._told(state)

    def _say(self, text: str) -> None:
        self.rollout = self._book.advance(self.rollout, None, text)

    def _told(self, action: str) -> None:
        record = self._record_of_name()
        if record is not None:
            rollout = self.rollout
            sides = {"fromDigest": rollout.old.digest, "toDigest": rollout.new.digest}
            event = of_container(record, f"{rollout.kind}: {action}", rollout=rollout.id, actor=rollout.actor, **sides)
            self._engine.events.tell(event)

    def _record_of_name(self) -> Record | None:
        found = (one.record for one in self._engine.lives.all())
        return next((record for record in found if record.name == self.rollout.name), None)

    def _new(self) -> Container | None:
        try:
            return self._container(self.rollout.new)
        except Stopped:
            return None

    def _old(self) -> Container | None:
        try:
            return self._container(self.rollout.old)
        except Stopped:
            return None

    def _container(self, side: Side) -> Container:
        for one in self._engine.lives.all():
            if one.id == side.container_id:
                return one
        raise Stopped("failed", f"the container {side.container_id[:12]} was removed meanwhile")
