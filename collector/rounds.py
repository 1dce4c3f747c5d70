"""The collector's clock: one round every interval over all containers, however many of them hang.

One asyncio loop, no thread. A round asks all containers at once; one that does not answer costs the round its
deadline, and the other containers and every scrape nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from collector.definitions import hyper, machine, microvm
from collector.errors import SourceError
from collector.snapshot import Point, Snapshot
from collector.sources import runtime_counters
from collector.sources.links import LinksReader
from collector.sources.machine import MachineReader
from collector.statedir import StateDirectory
from collector.watch import Settings, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from collector.snapshot import ContainerSnapshot
    from collector.sources.alertmanager import AlertsReader
    from runtime.record import Record

logger = logging.getLogger(__name__)

_STARTED_AT_ONCE: Final = 16
"""Containers begun before the loop may serve a scrape again; about 5 ms of host files."""


class Collector:
    """Watches the containers of one state directory."""

    def __init__(
        self, state_dir: Path, settings: Settings, *, interval_s: float = 10.0, tombstone_ttl_s: float = 600.0
    ) -> None:
        self._state = StateDirectory(state_dir)
        self._settings = settings
        self._interval_s = interval_s
        self._tombstone_ttl_s = tombstone_ttl_s
        self._watches: dict[str, Watch] = {}
        self._tombstones: dict[str, ContainerSnapshot] = {}
        self._rounds = 0
        self._runtime_fault = ""
        self._machine = MachineReader(settings.root)
        self._links = LinksReader(settings.root)
        self._dropped_series = 0
        self._deep_containers = 0
        self._alerts = _alerts_reader(settings)

    async def round(self) -> Snapshot:
        """Sample every container once."""
        started, cpu_started_s = time.monotonic(), time.process_time()
        records = self._state.scan()
        self._follow(records)
        alerting: frozenset[str] = frozenset()
        if self._alerts is not None:
            alerting = self._alerts.ids
            self._alerts.poll()  # its answer is for the next round: none waits for Alertmanager
        tasks = []
        deep_ids = {key for key, watch in self._watches.items() if watch.wants_deep or key in alerting}
        self._deep_containers = len(deep_ids)
        links = self._read_links() if deep_ids else {}
        for number, (container_id, watch) in enumerate(self._watches.items(), 1):
            tasks.append(asyncio.create_task(watch.sample(deep=container_id in deep_ids, links=links)))
            if number % _STARTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        sampled = await asyncio.gather(*tasks)
        containers = {snapshot.id: snapshot for snapshot in sampled} | self._tombstones
        self._rounds += 1
        cpu_s = time.process_time() - cpu_started_s
        points = (*self._host_points(), *self._own_points(time.monotonic() - started, cpu_s))
        return Snapshot(self._rounds, self._settings.clock(), MappingProxyType(containers), points)

    async def run(self, publish: Callable[[Snapshot], None]) -> None:
        """Rounds for ever, the first at once; `publish` is called with each snapshot. A late round is not caught up."""
        while True:
            started = time.monotonic()
            try:
                publish(await self.round())
            except Exception:
                logger.exception("defect: this round is lost")
            await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - started)))

    def _follow(self, records: Mapping[str, Record]) -> None:
        now_s = self._settings.clock()
        for container_id, record in records.items():
            watch = self._watches.get(container_id)
            if watch is None:
                self._watches[container_id] = Watch(self._state.directory(container_id), record, self._settings)
                self._tombstones.pop(container_id, None)
            else:
                watch.update(record)
        for container_id in self._watches.keys() - records.keys():
            gone = self._watches.pop(container_id)
            self._dropped_series += gone.dropped_series
            self._tombstones[container_id] = gone.last_words()
        for container_id, last in list(self._tombstones.items()):
            if now_s - last.taken_at >= self._tombstone_ttl_s:
                del self._tombstones[container_id]

    def _host_points(self) -> list[Point]:
        points = [
            Point(hyper.CONTAINERS, (), len(self._watches)),
            Point(hyper.RECORDS_UNREADABLE, (), self._state.unreadable),
        ]
        failed = 0
        try:
            points += self._machine.read()
        except SourceError as err:
            failed = 1
            logger.warning("host: %s", err.reason)
        points.append(Point(machine.SCRAPE_ERROR, (), failed))
        fault = ""
        try:
            points += runtime_counters.read(self._state.path)
        except SourceError as err:
            fault = err.reason
            if fault != self._runtime_fault:
                logger.warning("%s", fault)
        self._runtime_fault = fault
        return points

    def _read_links(self) -> Mapping[str, bytes]:
        try:
            return self._links.read()
        except SourceError as err:
            logger.warning("host: %s", err.reason)
            return {}

    def _own_points(self, round_s: float, cpu_s: float) -> list[Point]:
        dropped = self._dropped_series + sum(watch.dropped_series for watch in self._watches.values())
        points = [
            Point(hyper.COLLECTOR_ROUND_SECONDS, (), round_s),
            Point(hyper.COLLECTOR_SERIES_DROPPED_TOTAL, (), dropped),
            Point(hyper.COLLECTOR_DEEP_CONTAINERS, (), self._deep_containers),
        ]
        if self._alerts is not None:
            points.append(Point(hyper.COLLECTOR_ALERTMANAGER_FAILURES_TOTAL, (), self._alerts.failures))
        if self._watches:
            points.append(Point(hyper.COLLECTOR_CONTAINER_CPU_SECONDS, (), cpu_s / len(self._watches)))
        durations = [watch.durations_s for watch in self._watches.values()]
        for source in microvm.SOURCES:
            slowest = max((d[source] for d in durations if source in d), default=None)
            if slowest is not None:
                points.append(Point(hyper.COLLECTOR_DURATION_SECONDS, (source,), slowest))
        return points

    def close(self) -> None:
        """Give back all descriptors and connections."""
        for watch in self._watches.values():
            watch.close()
        self._machine.close()
        self._links.close()

    async def aclose(self) -> None:
        """`close`, and end what is asked of Alertmanager."""
        self.close()
        if self._alerts is not None:
            await self._alerts.close()


def _alerts_reader(settings: Settings) -> AlertsReader | None:
    if settings.alertmanager_url is None:
        return None
    # httpx takes 10 MB; who does not use it does not pay for it.
    from collector.sources.alertmanager import AlertsReader as Reader

    return Reader(settings.alertmanager_url, settings.deadline_s)
