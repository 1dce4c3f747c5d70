"""One container over time: its readers, its last good samples, what is carried from round to round."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from collector import details, reconcile, relay
from collector.application import Application
from collector.channel import Budget
from collector.counters import Floors, OomLedger
from collector.definitions import container, microvm
from collector.errors import SourceError
from collector.known import Known
from collector.snapshot import ContainerSnapshot, Point
from collector.sources.cgroup import CgroupReader
from collector.sources.guestport import GuestReader
from collector.sources.healthchecks import HealthReader
from collector.sources.links import counters
from collector.sources.process import ProcessReader
from collector.sources.vmm import VmmReader
from collector.summary import CpuMeter, LoadMeter, summarize
from collector.views import Views, pair
from runtime.record import LIVE_STATES, Record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from collector.snapshot import Family
    from collector.sources.cgroup import CgroupSample
    from collector.sources.guest import GuestSample
    from collector.sources.process import ProcessSample

logger = logging.getLogger(__name__)

STALE_ROUNDS: Final = 3
"""Rounds without a sample after which a source's last values are not shown any more."""
MAX_SERIES: Final = 1000
"""Of one container; an honest one has a tenth of it, or a quarter when it is sampled deep."""
TIER_LABEL: Final = "hyper.metrics.tier"


@dataclass(frozen=True, slots=True)
class Settings:
    """What all watches share.

    Attributes:
        node: name of this host.
        root: stands for `/` where kernel files are read.
        deadline_s: how long VMM and agent may take for one sample.
        clock: seconds since 1970.
        budget: bytes that all connections may hold together.
        deep: sample all containers deep, not only those whose label asks for it or that have an alert.
        names: which type each name has that applications export.
        alertmanager_url: whom to ask for the containers that have an alert; None: nobody.
        info_labels: labels of containers that `container_info` has, and what each is called there.
    """

    node: str
    root: Path = Path("/")
    deadline_s: float = 1.0
    clock: Callable[[], float] = time.time
    budget: Budget = field(default_factory=Budget)
    deep: bool = False
    names: relay.Names = field(default_factory=relay.Names)
    alertmanager_url: str | None = None
    info_labels: Mapping[str, str] = field(default_factory=dict)


class Slot:
    """One source of one container: its last good points, when they were taken, and what is wrong now.

    `trusted`: a counter that goes back is no lie. The host's `other` CPU time is a difference of files that are read
    one after another, and wobbles by a tick.
    """

    def __init__(self, name: str, container_id: str, *, trusted: bool) -> None:
        self.name = name
        self.points: list[Point] = []
        self.sampled_at: float | None = None
        self.reason: str | None = None
        self.duration_s = 0.0
        self._container_id = container_id
        self._floors = Floors()
        self._misses = 0
        self._trusted = trusted

    def hit(self, points: Iterable[Point], at_s: float) -> None:
        """A sample has come. Counters that went back are held where they were; of a guest or a VMM it is a fault."""
        self.points, went_back = self._floors.apply(points)
        if self._trusted:
            went_back = []
        self.sampled_at = at_s
        self._misses = 0
        self._tell(f"counters went back: {', '.join(sorted(set(went_back))[:3])}" if went_back else None)

    def miss(self, reason: str) -> None:
        """No sample this time; the last one is shown for a while yet, with its age."""
        self._misses += 1
        if self._misses >= STALE_ROUNDS:
            self.points = []
        self._tell(reason)

    def _tell(self, reason: str | None) -> None:
        if (reason is None) != (self.reason is None):
            if reason is None:
                logger.info("container %.12s: source %s is back", self._container_id, self.name)
            else:
                logger.warning("container %.12s: source %s is down: %s", self._container_id, self.name, reason)
        self.reason = reason


class Watch:
    """Samples one container. `directory` is that of its record."""

    def __init__(self, directory: Path, record: Record, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._oom = OomLedger(record.oom_kills)
        self._events: Counter[str] = Counter()
        self._peak: Point | None = None
        self._health, self._health_fault = HealthReader(directory), ""
        self._application = Application.of(record.id, record.labels, settings.names)
        self.record = record
        self.dropped_series = 0
        self._open(record)

    def update(self, record: Record) -> None:
        """Take a new record; another epoch or another VM begins with new readers and new floors."""
        before, self.record = self.record, record
        if record is before:
            return
        if record.lifecycle.epoch != before.lifecycle.epoch:
            self._oom.next_epoch(record.oom_kills)
            self._peak = None
        if record.lifecycle.epoch != before.lifecycle.epoch or record.labels != before.labels:
            self._end_application()
            self._application = Application.of(record.id, record.labels, self._settings.names)
        if record.lifecycle.epoch != before.lifecycle.epoch or record.vm != before.vm:
            self.close()
            self._open(record)

    def _open(self, record: Record) -> None:
        settings = self._settings
        self._slots = {name: Slot(name, record.id, trusted=name == "host") for name in microvm.SOURCES}
        self._cpu = CpuMeter()
        self._load = LoadMeter()
        self._views = Views(record.vm.ram_bytes, record.vm.vcpus) if record.vm else None
        self._known = Known()
        self._guest_sample: tuple[GuestSample, float] | None = None
        self._host_sample: tuple[ProcessSample, CgroupSample, float] | None = None
        self._of_record: tuple[Record | None, bool, tuple[Point, ...]] = (None, False, ())
        self._process = ProcessReader(record.vm, settings.root / "proc") if record.vm else None
        self._cgroup = CgroupReader(record.cgroups, settings.root)
        kvm = record.vm is not None and record.vm.accel == "kvm"
        self._vmm = VmmReader(
            self._directory / record.sockets.qmp_stats,
            settings.budget,
            kvm=kvm,
            events=self._events,
            clock=settings.clock,
        )
        self._guest = GuestReader(
            self._directory / record.sockets.agent_stats, record.guest.cgroup, settings.budget, settings.clock
        )

    @property
    def wants_deep(self) -> bool:
        """Whether a setting or the container's own label asks for the deep tier."""
        return self._settings.deep or self.record.labels.get(TIER_LABEL) == "deep"

    async def sample(self, *, deep: bool = False, links: Mapping[str, bytes] | None = None) -> ContainerSnapshot:
        """One round: asks VMM and agent at once, then reads the host's files. It never raises for a bad container.

        `deep` asks for the deep tier in this round, whatever `wants_deep` says; `links` are the host's interfaces,
        of which it takes the VM's tap for that.
        """
        record = self.record
        process = self._process
        deep = deep or self.wants_deep
        live = process is not None and record.lifecycle.state in LIVE_STATES
        self._guest_sample = self._host_sample = None
        if process is not None and live:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take("vmm", lambda: self._vmm_points(deep=deep)))
                await self._take("guest", lambda: self._guest_points(deep=deep))
            if self._application is not None and record.lifecycle.state == "running":
                self._application.begin(self._guest.ask if self._guest_sample is not None else None)
            elif self._application is not None:
                self._application.rest()
            await self._take("host", lambda: self._host_points(process, links or {}, deep=deep))
            if self._application is not None:
                await self._application.settle()
        else:
            self.close()
            self._cpu = CpuMeter()
            self._oom.ended(record.oom_kills)
        now_s = self._settings.clock()
        points = [*self._record_points(deep=deep), Point(container.LAST_SEEN, (), now_s)]
        points += reconcile.oom_points(self._oom.totals)
        points += reconcile.event_points(self._events)
        sampled_at: dict[str, float] = {}
        down: dict[str, str] = {}
        relayed: tuple[Family, ...] = ()
        if live:
            for slot in self._slots.values():
                points += slot.points
                points.append(Point(microvm.SOURCE_UP, (slot.name,), float(slot.reason is None)))
                if slot.sampled_at is not None:
                    sampled_at[slot.name] = slot.sampled_at
                if slot.reason is not None:
                    down[slot.name] = slot.reason
            points += self._view_points(deep=deep)
            if record.lifecycle.health != "none":
                points += self._health_points()
            if self._application is not None:
                points += self._application.points()
                relayed = self._application.relayed
        elif self._peak is not None:
            points.append(self._peak)
        if len(points) > MAX_SERIES:
            points.sort(key=lambda point: point.metric.tier == "deep")  # of which some go, and others never
            self.dropped_series += len(points) - MAX_SERIES
            del points[MAX_SERIES:]
        return ContainerSnapshot(
            id=record.id,
            name=record.name,
            state=record.lifecycle.state,
            base_values=reconcile.base_values(record),
            points=tuple(points),
            summary=summarize(points, self._cpu.ratio),
            memory_limit_bytes=record.limits.memory_bytes,
            taken_at=now_s,
            sampled_at=sampled_at,
            down=down,
            relayed=relayed,
        )

    def _record_points(self, *, deep: bool) -> tuple[Point, ...]:
        record, tier, points = self._of_record
        if record is not self.record or tier != deep:
            points = tuple(self._said(deep=deep))
            self._of_record = (self.record, deep, points)
        return points

    def _said(self, *, removed: bool = False, deep: bool = False) -> Iterable[Point]:
        settings = self._settings
        return reconcile.record_points(self.record, settings.node, settings.info_labels, removed=removed, deep=deep)

    def _health_points(self) -> Iterable[Point]:
        fault = ""
        points: Iterable[Point] = ()
        try:
            points = self._health.read(self.record.lifecycle.epoch)
        except SourceError as err:
            fault = err.reason
            if fault != self._health_fault:
                logger.warning("container %.12s: %s", self.record.id, fault)
        self._health_fault = fault
        return points

    def _view_points(self, *, deep: bool) -> Iterable[Point]:
        if self._views is None or self._guest_sample is None or self._host_sample is None:
            return ()
        (guest, guest_at_s), (process, cgroup, host_at_s) = self._guest_sample, self._host_sample
        return self._views.points(pair(guest, guest_at_s, process, cgroup, host_at_s), guest, process, deep=deep)

    def last_words(self) -> ContainerSnapshot:
        """What stays of a container that was removed: how it ended, OOM kills, QEMU's events, peak, restarts."""
        self.close()
        record, now_s = self.record, self._settings.clock()
        points = [*self._said(removed=True)]
        points.append(Point(container.LAST_SEEN, (), now_s))
        points += reconcile.oom_points(self._oom.totals)
        points += reconcile.event_points(self._events)
        if self._peak is not None:
            points.append(self._peak)
        return ContainerSnapshot(
            id=record.id,
            name=record.name,
            state="removing",
            base_values=reconcile.base_values(record),
            points=tuple(points),
            summary=summarize([], None),
            memory_limit_bytes=record.limits.memory_bytes,
            taken_at=now_s,
            removed=True,
        )

    @property
    def durations_s(self) -> dict[str, float]:
        """Wall time of the last read by source, of a container that runs."""
        return {slot.name: slot.duration_s for slot in self._slots.values() if slot.duration_s}

    async def _take(self, name: str, read: Callable[[], Awaitable[Iterable[Point]]]) -> None:
        slot = self._slots[name]
        started = time.monotonic()
        try:
            slot.hit(await read(), self._settings.clock())
        except TimeoutError:
            slot.miss(f"no answer within {self._settings.deadline_s:g} s")
        except SourceError as err:
            slot.miss(err.reason)
        except Exception:
            logger.exception("container %.12s: defect in reading source %s", self.record.id, name)
            slot.miss("defect in the collector")
        slot.duration_s = time.monotonic() - started

    async def _vmm_points(self, *, deep: bool) -> Iterable[Point]:
        async with asyncio.timeout(self._settings.deadline_s):
            vmm = await self._vmm.read(deep=deep)
        return [*reconcile.vmm_points(vmm), *(details.vmm_details(vmm) if deep else ())]

    async def _guest_points(self, *, deep: bool) -> Iterable[Point]:
        async with asyncio.timeout(self._settings.deadline_s):
            guest = await self._guest.read(deep=deep)
        at_s = time.monotonic()
        names = self.record.guest
        guest, left_out = self._known.of(guest, (names.image_device, names.writable_device or ""))
        self.dropped_series += left_out
        self._guest_sample = (guest, at_s)
        for layer, kills in reconcile.guest_oom_kills(guest).items():
            self._oom.observe(layer, kills)
        if guest.memory_peak_bytes is not None:
            self._peak = Point(container.MEMORY_MAX_USAGE_BYTES, (), guest.memory_peak_bytes)
        points = [*reconcile.guest_points(self.record, guest)]
        self._cpu.observe(points, at_s)
        if deep:
            points += details.guest_details(self.record, guest)
            points += self._load_points(guest, at_s)
        return points

    def _load_points(self, guest: GuestSample, at_s: float) -> Iterable[Point]:
        cpu = guest.details.cpu if guest.details is not None else None
        if cpu is None or cpu.running is None or cpu.blocked is None:
            return ()
        # The agent that reads the file is running while it does.
        load = self._load.observe(max(0, cpu.running - 1) + cpu.blocked, at_s)
        return (Point(container.CPU_LOAD_AVERAGE_10S, (), load),)

    async def _host_points(self, process: ProcessReader, links: Mapping[str, bytes], *, deep: bool) -> Iterable[Point]:
        cgroup = self._cgroup.read(deep=deep)
        if cgroup.oom_kills is not None:
            self._oom.observe("host", cgroup.oom_kills)
        sample = process.read(self._vmm.thread_ids, paired=self._guest_sample is not None, deep=deep)
        self._host_sample = (sample, cgroup, time.monotonic())
        points = [*reconcile.host_points(sample, cgroup)]
        if deep:
            points += details.host_details(sample, cgroup)
            network = self.record.network
            if network is not None and (tap := counters(network.tap, links)) is not None:
                points += details.tap_points(tap)
        return points

    def _end_application(self) -> None:
        if self._application is not None:
            self._application.close()

    def close(self) -> None:
        """Give back all descriptors and connections; sampling goes on with new ones."""
        self._end_application()
        self._vmm.close()
        self._guest.close()
        self._cgroup.close()
        if self._process is not None:
            self._process.close()
