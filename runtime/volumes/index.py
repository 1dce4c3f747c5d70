"""The SQLite tables of volumes and snapshots, in the daemon's database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import DiskFull, HostUnable
from runtime.reserve import NONE, Reserve, is_full

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUSY_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS volumes (
    name TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    size_bytes INTEGER NOT NULL,
    labels TEXT NOT NULL,
    anonymous INTEGER NOT NULL,
    filled INTEGER NOT NULL,
    snapshot TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS snapshots (
    name TEXT PRIMARY KEY,
    volume TEXT NOT NULL,
    created_at REAL NOT NULL,
    size_bytes INTEGER NOT NULL,
    filled INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume.

    `size_bytes` is apparent. `anonymous`: made for one container, without a name of the user's. `filled`: a container
    has had it, so it holds its first content. `snapshot` is the name of the snapshot that it was made from.
    """

    name: str
    created_at: float
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    filled: bool = False
    snapshot: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the API has it, without what only the file and the containers know."""
        return {**asdict(self), "labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A volume as it was at one moment; `volume` need not exist any more."""

    name: str
    volume: str
    created_at: float
    size_bytes: int
    filled: bool

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        return asdict(self)


class VolumeIndex:
    """Which volumes and snapshots there are. Each method is one transaction of well under a millisecond."""

    def __init__(self, database: Path, reserve: Reserve = NONE) -> None:
        self._reserve = reserve
        self._db = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        with self._faults():
            reserve.writing(self._prepare)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def volumes(self) -> list[Volume]:
        """All volumes by name."""
        columns = "name, created_at, size_bytes, labels, anonymous, filled, snapshot"
        with self._faults():
            rows = self._db.execute(f"SELECT {columns} FROM volumes ORDER BY name").fetchall()  # noqa: S608 -- our own
        return [
            Volume(name, created, size, json.loads(labels), bool(anonymous), bool(filled), snapshot)
            for name, created, size, labels, anonymous, filled, snapshot in rows
        ]

    def snapshots(self) -> list[Snapshot]:
        """All snapshots by name."""
        with self._faults():
            rows = self._db.execute(
                "SELECT name, volume, created_at, size_bytes, filled FROM snapshots ORDER BY name"
            ).fetchall()
        return [Snapshot(name, volume, created, size, bool(filled)) for name, volume, created, size, filled in rows]

    def put_volume(self, one: Volume) -> None:
        """Add a volume."""
        values = (one.name, one.created_at, one.size_bytes, json.dumps(dict(one.labels)), one.anonymous, one.filled)
        self._write("INSERT INTO volumes VALUES (?, ?, ?, ?, ?, ?, ?)", *values, one.snapshot)

    def put_snapshot(self, one: Snapshot) -> None:
        """Add a snapshot."""
        values = (one.name, one.volume, one.created_at, one.size_bytes, one.filled)
        self._write("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", *values)

    def set_filled(self, name: str) -> None:
        """Note that a volume holds its first content."""
        self._write("UPDATE volumes SET filled = 1 WHERE name = ?", name)

    def remove_volume(self, name: str) -> None:
        """Forget a volume."""
        self._write("DELETE FROM volumes WHERE name = ?", name)

    def remove_snapshot(self, name: str) -> None:
        """Forget a snapshot."""
        self._write("DELETE FROM snapshots WHERE name = ?", name)

    def _write(self, statement: str, *values: object) -> None:
        with self._faults():
            self._reserve.writing(lambda: self._db.execute(statement, values))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as err:
            if is_full(err):
                raise DiskFull(f"the database cannot be written: {err}; free some space") from err
            raise HostUnable(f"the database cannot be used: {err}") from err
