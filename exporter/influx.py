"""InfluxDB v2 output. Every batch goes through the spool on disk, so an outage or a restart loses none.

Two threads of its own: one turns snapshots into batches, one sends them, oldest first. Collection only ever puts a
snapshot into a short queue.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
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


class InfluxWriter:
    """Writes snapshots to one InfluxDB. `offer` never waits."""

    def __init__(
        self,
        target: Target,
        directory: Path,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._target = target
        self._spool = Spool(directory, limit_bytes)
        self._first_retry_s = first_retry_s
        self._queue: queue.Queue[Snapshot | None] = queue.Queue(QUEUED_SNAPSHOTS)
        self._stopping = threading.Event()
        self._pending = threading.Event()
        self._pending.set()
        self._written = self._failures = 0
        self._dropped = {"full": 0, "refused": 0, "late": 0}
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
            lines = lineprotocol.lines(snapshot, written)
            written = {container.id: container.sampled_at for container in snapshot.containers.values()}
            while batch := list(islice(lines, BATCH_LINES)):
                text = "\n".join(batch).encode() + b"\n"
                try:
                    self._dropped["full"] += self._spool.put(text, round(snapshot.taken_at * 1e9))
                except OSError as err:
                    self._dropped["full"] += 1
                    logger.warning("influx: cannot spool a batch: %s", err)
            self._pending.set()

    def _send_batches(self) -> None:
        retry_s = 0.0
        while not self._stopping.is_set():
            batch = self._spool.oldest()
            if batch is None:
                self._pending.wait()
                self._pending.clear()
                continue
            if self._send(batch):
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
                self._failed(f"HTTP {err.status} {err.reason}")
                return False
            self._dropped["refused"] += 1
            logger.warning("influx: a batch was refused: HTTP %s %s", err.status, str(err.body)[:200])
        except (HTTPError, OSError) as err:
            self._failed(str(err))
            return False
        else:
            self._written += 1
        self._spool.remove(batch)
        return True

    def _failed(self, why: str) -> None:
        self._failures += 1
        logger.warning("influx: %s: %s; tried again later", self._target.url, why[:200])

    def _write(self, text: bytes) -> None:
        target = self._target
        token = target.token_file.read_text().strip() if target.token_file else ""
        with (
            InfluxDBClient(
                target.url, token=token, org=target.org, timeout=TIMEOUT_MS, enable_gzip=True, retries=False
            ) as client,
            client.write_api(write_options=SYNCHRONOUS) as api,
        ):
            api.write(target.bucket, target.org, text.decode(), WritePrecision.NS)
