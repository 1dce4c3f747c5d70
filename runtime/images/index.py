"""The SQLite tables of images and of the references to them, in the daemon's database.

Methods block for well under a millisecond, or for as long as another connection holds the write lock (at most 10 s):
call them in a thread, but for `remembered` and `has_doomed`. Each is one transaction. Nobody else writes these tables.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runtime.errors import DiskFull, HostUnable
from runtime.images.image import Image, ImageConfig
from runtime.reserve import NONE, Reserve, is_full

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BUSY_TIMEOUT_S = 10.0
MOST_REMEMBERED = 256

# `doomed`: removed by its user while a container still needed the file, or not named yet; `collect` takes it when no
# container needs it and nobody is at it.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    digest TEXT PRIMARY KEY,
    created_at REAL,
    pulled_at REAL NOT NULL,
    size_bytes INTEGER NOT NULL,
    config TEXT NOT NULL,
    doomed INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS image_references (
    reference TEXT PRIMARY KEY,
    digest TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS image_references_digest ON image_references (digest);
CREATE TABLE IF NOT EXISTS image_blobs (
    digest TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE,
    blob TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (digest, blob)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS image_blobs_blob ON image_blobs (blob);
CREATE TABLE IF NOT EXISTS image_builds (
    digest TEXT PRIMARY KEY REFERENCES images (digest) ON DELETE CASCADE,
    build TEXT NOT NULL
) STRICT;
"""

_COLUMNS = """
    digest, created_at, pulled_at, size_bytes, config,
    (SELECT coalesce(sum(b.size_bytes), 0) FROM image_blobs b WHERE b.digest = images.digest),
    (SELECT coalesce(sum(b.size_bytes), 0) FROM image_blobs b WHERE b.digest = images.digest
        AND EXISTS (SELECT 1 FROM image_blobs o WHERE o.blob = b.blob AND o.digest <> b.digest)),
    (SELECT build FROM image_builds WHERE image_builds.digest = images.digest)
"""


class ImageIndex:
    """Which images are here, and under what references."""

    def __init__(self, database: Path, images_dir: Path, reserve: Reserve = NONE) -> None:
        self._images_dir = images_dir
        self._reserve = reserve
        self._lock = threading.Lock()
        self._remembered: dict[str, tuple[Image, ...]] = {}  # by reference or beginning of a digest, until a write
        self._doomed: tuple[str, ...] | None = None  # the same
        self._db = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with self._transaction(begin=False):
            reserve.writing(self._prepare)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def file(self, digest: str) -> Path:
        """Where the image file of a digest is, or would be."""
        return self._images_dir / digest.removeprefix("sha256:") / "image.erofs"

    def put(self, image: Image, blobs: Mapping[str, int], *, to_be_named: bool = False) -> None:
        """Add an image, or renew it, with its blobs and their sizes in bytes.

        One that is new and `to_be_named` is doomed until it has its name, so that a crash in between leaves none.
        """
        with self._transaction():
            self._db.execute(
                "INSERT INTO images (digest, created_at, pulled_at, size_bytes, config, doomed)"
                " VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET created_at = excluded.created_at, pulled_at = excluded.pulled_at,"
                " size_bytes = excluded.size_bytes, config = excluded.config",
                (
                    image.digest,
                    image.created_at,
                    image.pulled_at,
                    image.size_bytes,
                    json.dumps(image.config.to_dict()),
                    to_be_named,
                ),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO image_blobs VALUES (?, ?, ?)",
                [(image.digest, blob, size_bytes) for blob, size_bytes in blobs.items()],
            )
            if image.build is not None:
                self._db.execute(
                    "INSERT OR REPLACE INTO image_builds VALUES (?, ?)", (image.digest, json.dumps(dict(image.build)))
                )

    def tag(self, reference: str, digest: str) -> None:
        """Let a reference name this image, and no other from now on."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO image_references VALUES (?, ?)"
                " ON CONFLICT (reference) DO UPDATE SET digest = excluded.digest",
                (reference, digest),
            )
            self._db.execute("UPDATE images SET doomed = 0 WHERE digest = ?", (digest,))

    def blobs(self, digest: str) -> dict[str, int]:
        """The blobs of an image, and their sizes in bytes."""
        with self._lock:
            query = "SELECT blob, size_bytes FROM image_blobs WHERE digest = ?"
            return dict(self._db.execute(query, (digest,)).fetchall())

    def all_blobs(self) -> dict[str, int]:
        """The blobs of all images, and their sizes in bytes."""
        with self._lock:
            return dict(self._db.execute("SELECT blob, max(size_bytes) FROM image_blobs GROUP BY blob").fetchall())

    def untag(self, reference: str) -> None:
        """Forget a reference; the image stays."""
        self._give_back("DELETE FROM image_references WHERE reference = ?", reference)

    def doom(self, digest: str) -> None:
        """Mark an image for `collect`."""
        self._give_back("UPDATE images SET doomed = 1 WHERE digest = ?", digest)

    def doomed(self) -> tuple[str, ...]:
        """Digests of images that were removed while in use."""
        with self._lock:
            self._doomed = tuple(row[0] for row in self._db.execute("SELECT digest FROM images WHERE doomed = 1"))
            return self._doomed

    def remove(self, digest: str) -> None:
        """Forget an image and all references to it."""
        self._give_back("DELETE FROM images WHERE digest = ?", digest)

    def by_reference(self, reference: str) -> Image | None:
        """The image that a canonical reference names."""
        found = self._select("WHERE digest = (SELECT digest FROM image_references WHERE reference = ?)", reference)
        return found[0] if found else None

    def remembered(self, text: str) -> tuple[Image, ...] | None:
        """What `by_reference` or `by_digest` found of this since the last write; None: ask them. Does not block."""
        return self._remembered.get(text)

    def has_doomed(self) -> bool:
        """Whether `doomed` may find any. Does not block."""
        return self._doomed != ()

    def by_digest(self, beginning: str) -> tuple[Image, ...]:
        """The images whose digest begins so (with its `sha256:`; hexadecimal digits only)."""
        return self._select("WHERE substr(digest, 1, length(?1)) = ?1", beginning)

    def all(self) -> tuple[Image, ...]:
        """All images, the newest first."""
        return self._select("ORDER BY pulled_at DESC")

    def _select(self, clause: str, *values: str) -> tuple[Image, ...]:
        query = f"SELECT {_COLUMNS} FROM images {clause}"  # noqa: S608 -- clauses stand in this class
        names = "SELECT reference FROM image_references WHERE digest = ? ORDER BY reference"
        with self._transaction(writes=False):
            found = tuple(
                Image(
                    digest=row[0],
                    references=tuple(name for (name,) in self._db.execute(names, (row[0],))),
                    created_at=row[1],
                    pulled_at=row[2],
                    size_bytes=row[3],
                    file=self.file(row[0]),
                    config=_config(json.loads(row[4])),
                    blobs_bytes=row[5],
                    shared_bytes=row[6],
                    build=None if row[7] is None else json.loads(row[7]),
                )
                for row in self._db.execute(query, values).fetchall()
            )
            if values:
                if len(self._remembered) >= MOST_REMEMBERED:
                    self._remembered.clear()
                self._remembered[values[0]] = found
            return found

    def _give_back(self, statement: str, value: str) -> None:
        """Run what makes room for others, and so may use that of the reserve."""
        with self._transaction(begin=False):
            self._reserve.writing(lambda: self._db.execute(statement, (value,)))

    @contextmanager
    def _transaction(self, *, begin: bool = True, writes: bool = True) -> Iterator[None]:
        with self._lock:
            try:
                if begin:
                    self._db.execute("BEGIN")
                yield
                if begin:
                    self._db.execute("COMMIT")
            except sqlite3.Error as err:
                if is_full(err):
                    raise DiskFull(f"the database cannot be written: {err}; free some space") from err
                raise HostUnable(f"the database cannot be used: {err}") from err
            finally:
                if writes:
                    self._remembered.clear()
                    self._doomed = None
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")


def _config(raw: dict[str, Any]) -> ImageConfig:
    return ImageConfig(
        env=tuple(raw["Env"]),
        cmd=tuple(raw["Cmd"]),
        entrypoint=tuple(raw["Entrypoint"]),
        user=raw["User"],
        working_dir=raw["WorkingDir"],
        exposed_ports=tuple(raw["ExposedPorts"]),
        stop_signal=raw["StopSignal"],
        labels=raw["Labels"],
        healthcheck=raw["Healthcheck"],
    )
