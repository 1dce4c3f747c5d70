"""What is kept of changes, in the daemon's database: rollouts, the history of each name, requests carried out.

The tables are written over the store's own connection, so that a step and the record it is about are one transaction.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.changes.rollout import FOLLOWING, MAX_STEPS, Revision, Rollout, Step
from runtime.errors import Conflict, RuntimeFault

if TYPE_CHECKING:
    from runtime.changes.rollout import RevisionKind, State
    from runtime.record import Record
    from runtime.store import Store

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS rollouts (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        over INTEGER NOT NULL,
        body TEXT NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS revisions (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        revision INTEGER NOT NULL,
        time REAL NOT NULL,
        container_id TEXT NOT NULL,
        image TEXT NOT NULL,
        digest TEXT NOT NULL,
        kind TEXT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        request_id TEXT,
        good INTEGER NOT NULL,
        good_at REAL,
        health_before TEXT NOT NULL,
        health_after TEXT NOT NULL,
        outcome TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS revisions_of_a_name ON revisions (tenant, name)",
    """CREATE TABLE IF NOT EXISTS requests (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        request_id TEXT NOT NULL UNIQUE,
        call TEXT NOT NULL,
        name TEXT NOT NULL,
        result TEXT                     -- null: not carried out yet
    )""",
)
_REVISION = (
    "revision, time, container_id, image, digest, kind, actor, reason, request_id, good, good_at,"
    " health_before, health_after, outcome"
)
KEPT_REVISIONS = 10
KEPT_ROLLOUTS = 1000
KEPT_REQUESTS = 10_000
KEPT_ROWS = 5000  # of the history of names that no container has


@dataclass(frozen=True, slots=True)
class Request:
    """A call that its caller can name. `result` None: it was begun, and has not ended."""

    request_id: str
    call: str
    name: str
    result: dict[str, Any] | None


class Book:
    """The three tables. Each method is one transaction, or a part of the one that is open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        for statement in _SCHEMA:
            store.execute(statement)

    # --- rollouts

    def begin(self, rollout: Rollout) -> None:
        """Write a rollout down, before anything of it is done; only the newest `KEPT_ROLLOUTS` are kept."""
        with self._store.transaction():
            cursor = self._store.execute(
                "INSERT INTO rollouts (id, tenant, name, over, body) VALUES (?, ?, ?, ?, ?)",
                rollout.id,
                rollout.tenant,
                rollout.name,
                rollout.over,
                rollout.to_json(),
            )
            self._store.execute(
                "DELETE FROM rollouts WHERE over AND seq <= ?", int(cursor.lastrowid or 0) - KEPT_ROLLOUTS
            )

    def advance(self, rollout: Rollout, state: State | None = None, text: str = "", **changes: Any) -> Rollout:
        """Write the next step down, before it is done; returns the rollout as it is then.

        Raises:
            RuntimeFault: a defect: the state does not follow from the present one.
        """
        if state is not None and state not in FOLLOWING[rollout.state]:
            raise RuntimeFault(f"a defect: the rollout of {rollout.name} is {rollout.state}: it cannot become {state}")
        if state is not None:
            changes["state"] = state
        if text:
            changes["steps"] = (*rollout.steps, Step(time.time(), text))[-MAX_STEPS:]
        after = replace(rollout, **changes)
        self._store.execute(
            "UPDATE rollouts SET over = ?, body = ? WHERE id = ?", after.over, after.to_json(), after.id
        )
        return after

    def rollout(self, id_: str) -> Rollout:
        """One rollout.

        Raises:
            RuntimeFault: it is not kept any more.
        """
        found = self._store.execute("SELECT body FROM rollouts WHERE id = ?", id_).fetchone()
        if found is None:
            raise RuntimeFault(f"the rollout {id_} is not kept any more")
        return Rollout.from_json(found[0])

    def rollouts(self, tenant: str, name: str) -> list[Rollout]:
        """Those of a name, the newest first."""
        found = self._store.execute(
            "SELECT body FROM rollouts WHERE tenant = ? AND name = ? ORDER BY seq DESC LIMIT 100", tenant, name
        )
        return [Rollout.from_json(body) for (body,) in found]

    def open_rollouts(self) -> list[Rollout]:
        """Those that have not ended, in their order."""
        found = self._store.execute("SELECT body FROM rollouts WHERE NOT over ORDER BY seq")
        return [Rollout.from_json(body) for (body,) in found]

    # --- history

    def last_revision(self, tenant: str, name: str) -> int:
        """The number of the newest revision of a name; 0: it has none."""
        found = self._store.execute(
            "SELECT coalesce(max(revision), 0) FROM revisions WHERE tenant = ? AND name = ?", tenant, name
        )
        return int(found.fetchone()[0])

    def note(self, tenant: str, name: str, one: Revision) -> None:
        """Add a revision. The last `KEPT_REVISIONS` of a name are kept, and of each digest the newest good one.

        Of more digests than `KEPT_REVISIONS` the oldest are forgotten as well.
        """
        with self._store.transaction():
            cursor = self._store.execute(
                f"INSERT INTO revisions (tenant, name, {_REVISION}) VALUES ({', '.join('?' * 16)})",  # noqa: S608 -- names are ours
                tenant,
                name,
                one.revision,
                one.time,
                one.container_id,
                one.image,
                one.digest,
                one.kind,
                one.actor,
                one.reason,
                one.request_id,
                one.good,
                one.good_at,
                one.health_before,
                one.health_after,
                one.outcome,
            )
            history = self.history(tenant, name)
            for old in _to_forget(history):
                self._store.execute(
                    "DELETE FROM revisions WHERE tenant = ? AND name = ? AND revision = ?", tenant, name, old
                )
            self._store.execute(
                "DELETE FROM revisions WHERE seq <= ? AND name NOT IN (SELECT name FROM containers)",
                int(cursor.lastrowid or 0) - KEPT_ROWS,
            )

    def created(self, record: Record, actor: str, reason: str = "") -> None:
        """Note that a container was made: the first revision of its name, or the next."""
        self.note(record.tenant, record.name, of_record(record, "create", actor, reason))

    def redeployed(self, record: Record, revision: int, actor: str, reason: str, health_before: str) -> None:
        """Note that a container gets a fresh VM of the same image."""
        one = of_record(record, "redeploy", actor, reason, health_before=health_before)
        self.note(record.tenant, record.name, replace(one, revision=revision))

    def next_revision(self, record: Record) -> int:
        """The number of the revision that a container's name gets next."""
        return self.last_revision(record.tenant, record.name) + 1

    def history(self, tenant: str, name: str) -> list[Revision]:
        """The revisions of a name, the newest first."""
        found = self._store.execute(
            f"SELECT {_REVISION} FROM revisions WHERE tenant = ? AND name = ? ORDER BY revision DESC",  # noqa: S608 -- names are ours
            tenant,
            name,
        )
        columns = [column.strip() for column in _REVISION.split(",")]
        rows = (dict(zip(columns, row, strict=True)) for row in found)
        return [Revision(**{**row, "good": bool(row["good"])}) for row in rows]

    def tenants_of(self, name: str) -> list[str]:
        """The tenants in which a name has a history."""
        return [
            tenant for (tenant,) in self._store.execute("SELECT DISTINCT tenant FROM revisions WHERE name = ?", name)
        ]

    def mark_good(self, record: Record, now: float) -> bool:
        """The container's revision has proved good; False: it had before, or is not kept."""
        cursor = self._store.execute(
            "UPDATE revisions SET good = 1, good_at = ?, health_after = ? WHERE tenant = ? AND name = ?"
            " AND revision = ? AND container_id = ? AND NOT good",
            now,
            health_of(record),
            record.tenant,
            record.name,
            record.revision,
            record.id,
        )
        return cursor.rowcount > 0

    def settle(self, tenant: str, name: str, revision: int, outcome: str, health_after: str) -> None:
        """The change that led to a revision has ended."""
        self._store.execute(
            "UPDATE revisions SET outcome = ?, health_after = ? WHERE tenant = ? AND name = ? AND revision = ?",
            outcome,
            health_after,
            tenant,
            name,
            revision,
        )

    def rename(self, tenant: str, old: str, new: str) -> None:
        """The history goes with the container; what another one had left under the new name is forgotten."""
        with self._store.transaction():
            for table in ("revisions", "rollouts"):
                self._store.execute(f"DELETE FROM {table} WHERE tenant = ? AND name = ?", tenant, new)  # noqa: S608 -- ours
                self._store.execute(f"UPDATE {table} SET name = ? WHERE tenant = ? AND name = ?", new, tenant, old)  # noqa: S608 -- ours

    def pinned_digests(self) -> set[str]:
        """Digests in the history of names that containers have: images that a rollback may need."""
        found = self._store.execute(
            "SELECT DISTINCT digest FROM revisions WHERE outcome = 'done' AND name IN (SELECT name FROM containers)"
        )
        return {digest for (digest,) in found}

    # --- requests

    def request(self, request_id: str) -> Request | None:
        """What is known of a request; None: nothing."""
        found = self._store.execute(
            "SELECT request_id, call, name, result FROM requests WHERE request_id = ?", request_id
        ).fetchone()
        if found is None:
            return None
        id_, call, name, result = found
        return Request(id_, call, name, None if result is None else json.loads(result))

    def asked(self, request_id: str | None, call: str, name: str, result: dict[str, Any] | None = None) -> None:
        """Write a request down, before anything is done for it; with its result if that is known already."""
        if request_id is None:
            return
        with self._store.transaction():
            cursor = self._store.execute(
                "INSERT INTO requests (request_id, call, name, result) VALUES (?, ?, ?, ?)",
                request_id,
                call,
                name,
                None if result is None else json.dumps(result),
            )
            self._store.execute("DELETE FROM requests WHERE seq <= ?", int(cursor.lastrowid or 0) - KEPT_REQUESTS)

    def answered(self, request_id: str | None, result: dict[str, Any]) -> None:
        """The result of a request."""
        if request_id is not None:
            self._store.execute("UPDATE requests SET result = ? WHERE request_id = ?", json.dumps(result), request_id)

    def unasked(self, request_id: str | None) -> None:
        """Nothing was done for the request: it may be made again."""
        if request_id is not None:
            self._store.execute("DELETE FROM requests WHERE request_id = ?", request_id)

    def unanswered(self) -> list[Request]:
        """Requests without a result: at start, those that were interrupted."""
        found = self._store.execute("SELECT request_id, call, name FROM requests WHERE result IS NULL")
        return [Request(id_, call, name, None) for id_, call, name in found]


def of_record(record: Record, kind: RevisionKind, actor: str, reason: str, **more: Any) -> Revision:
    """The revision that a container is."""
    at = time.time()
    return Revision(record.revision, at, record.id, record.image, record.image_digest, kind, actor, reason, **more)


def health_of(record: Record) -> str:
    """How a container is, in one word: its health, or else its state."""
    lifecycle = record.lifecycle
    if lifecycle.state == "running" and lifecycle.health != "none":
        return lifecycle.health
    if lifecycle.state == "exited" and lifecycle.exit_code is not None:
        return f"exited ({lifecycle.exit_code})"
    return lifecycle.state


def demand_same(known: Request, call: str, name: str | None) -> None:
    """See that a request that was made before is the same one.

    Raises:
        Conflict: it was another call, or for another container.
    """
    if known.call != call or name not in (None, known.name):
        raise Conflict(
            f"the request {known.request_id} was a {known.call} of {known.name}: give each request an id of its own",
            field="request_id",
        )


def _to_forget(history: list[Revision]) -> list[int]:
    """Numbers of the revisions that are not kept, of a history whose newest comes first."""
    keep = {one.revision for one in history[:KEPT_REVISIONS]}
    good: dict[str, int] = {}
    for one in history:
        if one.good:
            good.setdefault(one.digest, one.revision)
    keep |= set(list(good.values())[:KEPT_REVISIONS])
    return [one.revision for one in history if one.revision not in keep]
