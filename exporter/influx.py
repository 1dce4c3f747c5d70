"""InfluxDB v2 output. Every batch goes through the spool on disk, so an outage or a restart loses none.

Two threads of its own: one turns snapshots into batches, one sends them, oldest first. Collection only ever puts a
snapshot into a short queue.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from collector.catalogue import hyper
from collector.snapshot import Point
from exporter import lineprotocol
from exporter.spool import DEFAULT_LIMIT_BYTES, Spool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from collector.snapshot import Snapshot
    from exporter.spool import Batch

logger = logging.getLogger(__name__)

BATCH_LINES: Final = 5000
QUEUED_SNAPSHOTS: Final = 8
TIMEOUT_MS: Final = 10_000
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 60.0
_REFUSED: Final = {400, 413, 422}
"""Sending the same batch again would be answered the same way."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to write. The token file is read anew for each connection, so that a token can be changed."""

    url: str
    org: str
    bucket: str
    token_file: Path | None = None


class _TokenFileError(Exception):
    """What the token file holds is no token. The message names the file and never has what is in it."""


class InfluxWriter:
    """Writes snapshots of the host `node` to one InfluxDB. `offer` never waits."""

    def __init__(
        self,
        target: Target,
        directory: Path,
        node: str,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._target = target
        self._node = node
        self._spool = Spool(directory, limit_bytes)
        self._first_retry_s = first_retry_s
        self._queue: queue.Queue[Snapshot | None] = queue.Queue(QUEUED_SNAPSHOTS)
        self._stopping = threading.Event()
        self._pending = threading.Event()
        self._pending.set()
        self._written = self._failures = 0
        self._dropped = {"full": 0, "refused": 0, "late": 0, "defect": 0}
        self._threads = [
            threading.Thread(target=self._spool_snapshots, name="influx-spool", daemon=True),
            threading.Thread(target=self._send_batches, name="influx-send", daemon=True),
        ]

    def start(self) -> None:
        """Begin, with what an earlier process left in the spool."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Spool what was offered, and end; what is in the spool is sent after the next start."""
        self._stopping.set()
        self._pending.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def offer(self, snapshot: Snapshot) -> None:
        """Take a snapshot; it is dropped, and counted, if the disk cannot keep up."""
        try:
            self._queue.put_nowait(snapshot)
        except queue.Full:
            self._dropped["late"] += 1

    def points(self) -> Iterator[Point]:
        """The writer's own counts."""
        yield Point(hyper.INFLUX_BACKLOG_BYTES, (), self._spool.backlog_bytes)
        yield Point(hyper.INFLUX_WRITTEN_TOTAL, (), self._written)
        yield Point(hyper.INFLUX_FAILURES_TOTAL, (), self._failures)
        for reason, count in self._dropped.items():
            yield Point(hyper.INFLUX_DROPPED_TOTAL, (reason,), count)

    def _spool_snapshots(self) -> None:
        written: dict[str, Mapping[str, float]] = {}
        while (snapshot := self._queue.get()) is not None:
            try:
                self._spool_lines(lineprotocol.lines(snapshot, self._node, written), round(snapshot.taken_at * 1e9))
            except Exception:
                self._dropped["defect"] += 1
                logger.exception("influx: defect: what is left of this snapshot is lost")
            written = {container.id: container.sampled_at for container in snapshot.containers.values()}
            self._pending.set()

    def _spool_lines(self, lines: Iterator[str], at_ns: int) -> None:
        while batch := list(islice(lines, BATCH_LINES)):
            try:
                self._dropped["full"] += self._spool.put("\n".join(batch).encode() + b"\n", at_ns)
            except OSError as err:
                self._dropped["full"] += 1
                logger.warning("influx: cannot spool a batch: %s", err)

    def _send_batches(self) -> None:
        retry_s = 0.0
        while not self._stopping.is_set():
            batch = self._spool.oldest()
            if batch is None:
                self._pending.wait()
                self._pending.clear()
                continue
            try:
                done = self._send(batch)
            except Exception as err:  # noqa: BLE001 -- logged without its message: a library's may have the token in it
                done = False
                self._failures += 1
                where = "".join(traceback.format_tb(err.__traceback__))
                logger.warning("influx: cannot send a batch: %s; tried again later\n%s", type(err).__name__, where)
            if done:
                retry_s = 0.0
                continue
            retry_s = min(LONGEST_RETRY_S, max(self._first_retry_s, retry_s * 2))
            self._stopping.wait(retry_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter is no secret

    def _send(self, batch: Batch) -> bool:
        """True if the batch needs no other try."""
        try:
            text = batch.path.read_bytes()
        except FileNotFoundError:
            return True  # dropped meanwhile, as the spool was full
        except OSError as err:
            logger.warning("influx: cannot read %s: %s", batch.path.name, err)
            return False
        try:
            self._write(text)
        except ApiException as err:
            if err.status not in _REFUSED:
                self._failed(f"HTTP {err.status} {str(err.reason)[:200]}")
                return False
            self._dropped["refused"] += 1
            logger.warning("influx: a batch was refused: HTTP %s %s", err.status, str(err.body)[:200])
        except _TokenFileError as err:
            self._failed(str(err))
            return False
        except (HTTPError, OSError) as err:
            self._failed(str(err)[:200])
            return False
        else:
            self._written += 1
        self._spool.remove(batch)
        return True

    def _failed(self, why: str) -> None:
        self._failures += 1
        logger.warning("influx: %s: %s; tried again later", self._target.url, why)

    def _write(self, text: bytes) -> None:
        target = self._target
        with (
            InfluxDBClient(
                target.url, token=self._token(), org=target.org, timeout=TIMEOUT_MS, enable_gzip=True, retries=False
            ) as client,
            client.write_api(write_options=SYNCHRONOUS) as api,
        ):
            api.write(target.bucket, target.org, text, WritePrecision.NS)

    def _token(self) -> str:
        path = self._target.token_file
        token = path.read_bytes().strip() if path else b""
        # Looked at here: what a library says of a header that it cannot send has the header in it.
        if not token.isascii() or not token.decode().isprintable():
            raise _TokenFileError(
                f"influx_token_file {path}: more than one line, or not plain ASCII (a byte order mark counts): "
                "write the token into it and nothing else"
            )
        return token.decode()
