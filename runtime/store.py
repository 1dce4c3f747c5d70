"""The daemon's memory: containers, the journal of operations under way, events, and the audit log, in SQLite (WAL).

A multi-step operation is written into the journal before it is begun, and struck out when it has ended; what stands
there at start was interrupted. One daemon has the store open at a time (`runtime.daemon` holds a lock).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import DiskFull, NameInUse, RuntimeFault
from runtime.events import Event
from runtime.record import Record
from runtime.reserve import NONE, Reserve, is_full
from runtime.spec import KEPT, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS containers (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    slot INTEGER NOT NULL UNIQUE,   -- decides the address and the uid
    spec TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS operations (
    seq INTEGER PRIMARY KEY,
    container_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    began REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    container TEXT NOT NULL,
    container_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ns INTEGER NOT NULL,
    type TEXT NOT NULL,
    action TEXT NOT NULL,
    id TEXT NOT NULL,
    attributes TEXT NOT NULL
);
"""
MAX_EVENTS = 20_000


@dataclass(frozen=True, slots=True)
class Row:
    """A container as it is kept."""

    id: str
    slot: int
    spec: Spec
    record: Record


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the journal. `kind` is the operation: create, start, stop, pause, rename, remove and such."""

    seq: int
    container_id: str
    kind: str
    began: float


class Store:
    """One connection to `hyper.db`; every call is one transaction.

    What finds the disk full is written with the reserve's room: it takes little, and whatever takes much was refused
    before it was begun (`Reserve.demand_room`).
    """

    def __init__(self, path: Path, reserve: Reserve = NONE) -> None:
        self.reserve = reserve
        self._statements: list[tuple[str, tuple[object, ...]]] | None = None  # of the transaction that is open
        self._connection = sqlite3.connect(path, isolation_level=None)
        with _faults():
            reserve.writing(self._prepare)

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("PRAGMA busy_timeout=5000")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def rows(self) -> list[Row]:
        """All containers, in the order of their creation."""
        found = self.execute("SELECT id, slot, spec, record FROM containers ORDER BY rowid")
        return [
            Row(id_, slot, Spec.model_validate_json(spec, context=KEPT), Record.from_json(record))
            for id_, slot, spec, record in found
        ]

    def insert(self, spec: Spec, record: Record, *events: Event) -> tuple[int, Operation]:
        """Keep a new container, with its `create` in the journal; returns its slot: the lowest that is free.

        Raises:
            NameInUse: another container has the name.
        """
        with self.transaction():
            taken = {slot for (slot,) in self.execute("SELECT slot FROM containers")}
            slot = next(number for number in range(len(taken) + 1) if number not in taken)
            try:
                self.execute(
                    "INSERT INTO containers (id, name, slot, spec, record) VALUES (?, ?, ?, ?, ?)",
                    record.id,
                    record.name,
                    slot,
                    spec.model_dump_json(),
                    record.to_json(),
                )
            except sqlite3.IntegrityError as err:
                raise _name_in_use(record.name) from err
            self._append(events)
            return slot, self.begin(record.id, "create")

    def save(self, record: Record, *events: Event, spec: Spec | None = None) -> None:
        """Keep the container's new record, and its new spec if it has one, with the events that the change is.

        Raises:
            NameInUse: another container has the record's name.
        """
        with self.transaction():
            self.execute("UPDATE containers SET record = ? WHERE id = ?", record.to_json(), record.id)
            if spec is not None:
                try:
                    self.execute(
                        "UPDATE containers SET name = ?, spec = ? WHERE id = ?",
                        record.name,
                        spec.model_dump_json(),
                        record.id,
                    )
                except sqlite3.IntegrityError as err:
                    raise _name_in_use(record.name) from err
            self._append(events)

    def delete(self, container_id: str, *events: Event) -> None:
        """Forget the container and its journal."""
        with self.transaction():
            self.execute("DELETE FROM containers WHERE id = ?", container_id)
            self.execute("DELETE FROM operations WHERE container_id = ?", container_id)
            self._append(events)

    def begin(self, container_id: str, kind: str) -> Operation:
        """Write an operation down before it is begun."""
        began = time.time()
        cursor = self.execute(
            "INSERT INTO operations (container_id, kind, began) VALUES (?, ?, ?)", container_id, kind, began
        )
        return Operation(int(cursor.lastrowid or 0), container_id, kind, began)

    def end(self, operation: Operation, *events: Event) -> None:
        """Strike an operation out: it is done, or undone; with the events that its end is."""
        with self.transaction():
            # With its container: the number of one that went with a removed container may be another's by now.
            self.execute(
                "DELETE FROM operations WHERE seq = ? AND container_id = ?", operation.seq, operation.container_id
            )
            self._append(events)

    def is_under_way(self, container_id: str) -> bool:
        """Whether the journal holds an operation on the container."""
        found = self.execute("SELECT 1 FROM operations WHERE container_id = ? LIMIT 1", container_id)
        return found.fetchone() is not None

    def interrupted(self) -> list[Operation]:
        """What the journal holds; at start: what was interrupted."""
        found = self.execute("SELECT seq, container_id, kind, began FROM operations ORDER BY seq")
        return [Operation(*row) for row in found]

    def audit(self, actor: str, action: str, record: Record, reason: str, outcome: str, detail: dict[str, Any]) -> None:
        """Append to the audit log."""
        self.execute(
            "INSERT INTO audit (time, actor, action, container, container_id, reason, outcome, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            time.time(),
            actor,
            action,
            record.name,
            record.id,
            reason,
            outcome,
            json.dumps(detail),
        )

    def audit_log(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries, newest first, as `docs/reference/api.md` has them."""
        names = ("time", "actor", "action", "container", "container_id", "reason", "outcome", "detail")
        found = self.execute(f"SELECT {', '.join(names)} FROM audit ORDER BY seq DESC LIMIT ?", limit)  # noqa: S608 -- names are ours
        return [{**dict(zip(names, row, strict=True)), "detail": json.loads(row[-1])} for row in found]

    def keep(self, events: Iterable[Event]) -> None:
        """Keep events, the oldest of all giving way beyond `MAX_EVENTS`."""
        with self.transaction():
            self._append(events)

    def events(self, after: int, since_ns: int, limit: int) -> list[Event]:
        """The first events with a `seq` above `after`, none older than `since_ns`."""
        found = self.execute(
            "SELECT seq, time_ns, type, action, id, attributes FROM events WHERE seq > ? AND time_ns >= ?"
            " ORDER BY seq LIMIT ?",
            after,
            since_ns,
            limit,
        )
        return [
            Event(kind, action, id_, json.loads(attributes), time_ns, seq)
            for seq, time_ns, kind, action, id_, attributes in found
        ]

    def events_of(self, id_: str, limit: int) -> list[Event]:
        """The newest events about one container or image, in their order."""
        found = self.execute(
            "SELECT seq, time_ns, type, action, id, attributes FROM events WHERE id = ? ORDER BY seq DESC LIMIT ?",
            id_,
            limit,
        )
        return [
            Event(kind, action, of, json.loads(attributes), time_ns, seq)
            for seq, time_ns, kind, action, of, attributes in reversed(found.fetchall())
        ]

    def last_event(self) -> int:
        """The `seq` of the newest event; 0 if there is none."""
        (seq,) = self.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
        return int(seq)

    def _append(self, events: Iterable[Event]) -> None:
        for event in events:
            cursor = self.execute(
                "INSERT INTO events (time_ns, type, action, id, attributes) VALUES (?, ?, ?, ?, ?)",
                event.time_ns,
                event.type,
                event.action,
                event.id,
                json.dumps(event.attributes),
            )
            self.execute("DELETE FROM events WHERE seq <= ?", int(cursor.lastrowid or 0) - MAX_EVENTS)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        """Run one statement, in the transaction that is open or in its own.

        Raises:
            DiskFull, RuntimeFault: the database refused; sqlite3.IntegrityError: a constraint of a table did.
        """
        with _faults():
            return self.reserve.writing(lambda: self._run(statement, values))

    def _run(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        """Run one statement; what SQLite has rolled back of its transaction, as the disk was full, goes before it.

        Whoever got a row's number of the first attempt gets the same again: nobody else writes to these tables.
        """
        if self._statements is None:
            return self._connection.execute(statement, values)
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
            for earlier in self._statements:
                self._connection.execute(*earlier)
        cursor = self._connection.execute(statement, values)
        self._statements.append((statement, values))
        return cursor

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within is written together, or none of it. One within another is a part of that."""
        if self._statements is not None:
            yield
            return
        self._statements = []
        try:
            yield
            self.execute("COMMIT")
        finally:
            self._statements = None
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as err:
        if is_full(err):
            raise DiskFull("no space left for the database: free some below data_dir") from err
        raise RuntimeFault(f"the database refused: {err}") from err


def _name_in_use(name: str) -> NameInUse:
    return NameInUse(
        f"the container name {name!r} is already in use: remove that container (hyper rm {name}) "
        "or choose another name",
        field="name",
    )
