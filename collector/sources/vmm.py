"""QEMU over the statistics monitor: run state and events, and for the deep tier disks, queues, balloon, KVM.

All commands of a sample go out in one write and are matched to their answers by `id`. `qmp.py` reads the answers.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from collector import channel
from collector.definitions.microvm import EVENT_NAMES, SHUTDOWN_REASONS
from collector.errors import MalformedError
from collector.sources import qmp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from collector.sources.process import ThreadIds

LATENCY_BOUNDS_NS: Final = tuple(n * 1000 for n in (50, 200, 1_000, 5_000, 20_000, 100_000, 500_000, 2_000_000))
"""From a hit in the host's page cache to a disk that is as good as gone."""
BALLOON_POLL_S: Final = 10
"""How often QEMU shall ask the guest's balloon driver, if nobody has told it how often."""
_STALE_POLLS: Final = 3
"""After so many without an answer what the balloon's driver told is not true any more."""
_MAX_UNANSWERED: Final = 8
"""Reads in a row without an answer after which a new connection is tried; a stopped QEMU would queue each of them."""
_EXITS: Final = [
    "exits", "io_exits", "mmio_exits", "signal_exits", "irq_exits", "irq_window_exits", "nmi_window_exits",
    "halt_exits", "request_irq_exits",
]  # fmt: skip
_QUERY_STATS: Final = {"target": "vcpu", "providers": [{"provider": "kvm", "names": _EXITS}]}

Command = tuple[str, dict[str, object]]
_STATUS: Final[Command] = ("query-status", {})
_THREADS: Final[tuple[Command, ...]] = (("query-cpus-fast", {}), ("query-iothreads", {}))


@dataclass(frozen=True, slots=True)
class Details:
    """What the deep tier alone asks for; None, or empty: this QEMU does not tell, or has none.

    `inflight` goes by device and queue, `balloon_stats` by QEMU's name (`qmp.BALLOON_STATS`).
    """

    devices: tuple[qmp.BlockDevice, ...]
    inflight: Mapping[tuple[str, int], int] = field(default_factory=dict)
    balloon_bytes: int | None = None
    balloon_stats: Mapping[str, int] = field(default_factory=dict)
    kvm_exits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmmSample:
    """What QEMU tells of itself. `status` is its run state, a word of QMP's."""

    status: str
    details: Details | None = None


@dataclass(frozen=True, slots=True)
class _Balloon:
    """A balloon whose guest is asked for statistics: path in the object tree, seconds between two times."""

    path: str
    interval_s: int


@dataclass(frozen=True, slots=True)
class _Deep:
    """What was found out about this QEMU when the deep tier was first asked for.

    `has_balloon`: it answers `query-balloon`; `balloon` has been found as well.
    """

    queues: tuple[tuple[qmp.VirtioDevice, int], ...]
    has_balloon: bool
    balloon: _Balloon | None


class VmmReader:
    """One VM's statistics monitor. The connection is kept; `thread_ids` is known after the first sample.

    `events` counts what QEMU tells unasked by `event_name`, as it comes; the caller's may outlive this VM.
    """

    def __init__(
        self,
        path: Path,
        budget: channel.Budget,
        *,
        kvm: bool = False,
        events: Counter[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._budget = budget
        self._kvm = kvm
        self._clock = clock
        self._channel: channel.LineChannel | None = None
        self._greeted = self._asked = self._ready = False
        self._serial = 0
        self._owed = 0
        self._unanswered = 0
        self._deep: _Deep | None = None
        self.events: Counter[str] = Counter() if events is None else events
        self.thread_ids: ThreadIds | None = None

    async def read(self, *, deep: bool = False) -> VmmSample:
        """One sample. The caller sets the deadline; a cancelled read leaves a connection that can be read again.

        Raises:
            SourceError: nobody is there, or the answer is not QMP. The next read connects anew.
        """
        try:
            return await self._read(deep=deep)
        except MalformedError:
            self.close()
            raise

    async def _read(self, *, deep: bool) -> VmmSample:
        self._unanswered += 1
        if self._channel is None or self._channel.failed or self._unanswered > _MAX_UNANSWERED:
            self.close()
            self._channel = await channel.connect(self._path, self._budget, self._take_event)
        monitor = self._channel
        await self._negotiate(monitor)
        while self._owed:  # answers that came too late
            await self._answer(monitor)
        commands = (_STATUS,) if self.thread_ids else (_STATUS, *_THREADS)
        answers = await self._ask(monitor, (*commands, *self._deep_commands()) if deep else commands)
        if any(answer is None for answer in answers[: len(commands)]):
            raise MalformedError(f"{commands[0][0]}: refused")
        if self.thread_ids is None:
            self.thread_ids = qmp.parse_thread_ids(answers[1], answers[2])
        details = await self._details(monitor, answers[len(commands) :]) if deep else None
        self._unanswered = 0
        return VmmSample(qmp.parse_status(answers[0]), details)

    def _deep_commands(self) -> list[Command]:
        commands: list[Command] = [("query-blockstats", {})]
        if self._kvm:
            commands.append(("query-stats", dict(_QUERY_STATS)))
        if self._deep is None:
            return [*commands, ("query-balloon", {}), ("x-query-virtio", {})]
        if self._deep.has_balloon:
            commands.append(("query-balloon", {}))
        return [*commands, *_known_commands(self._deep)]

    async def _details(self, monitor: channel.LineChannel, answers: Sequence[Any]) -> Details:
        """Read the answers to `_deep_commands`, in their order; the first time, find out what there is."""
        rest = iter(answers)
        blockstats = next(rest)
        devices = () if blockstats is None else qmp.parse_blockstats(blockstats)
        exits = next(rest) if self._kvm else None
        balloon = next(rest) if self._deep is None or self._deep.has_balloon else None
        deep = self._deep
        if deep is None:
            deep = self._deep = await self._look_deep(monitor, devices, next(rest), balloon=balloon is not None)
            rest = iter(await self._ask(monitor, _known_commands(deep)))
        stats = self._balloon_stats(deep.balloon, next(rest)) if deep.balloon is not None else {}
        inflight: dict[tuple[str, int], int] = {}
        for (device, n), answer in zip(deep.queues, rest, strict=True):
            if answer is not None:  # devices without an id share a name
                inflight[device.name, n] = inflight.get((device.name, n), 0) + qmp.parse_inflight(answer)
        return Details(
            devices,
            inflight,
            None if balloon is None else qmp.parse_balloon(balloon),
            stats,
            {} if exits is None else qmp.parse_kvm_exits(exits),
        )

    async def _look_deep(
        self, monitor: channel.LineChannel, devices: Sequence[qmp.BlockDevice], virtio: object, *, balloon: bool
    ) -> _Deep:
        # Setting a histogram empties it: one that an earlier exporter has set goes on.
        bounds = list(LATENCY_BOUNDS_NS)
        histograms: list[Command] = [
            ("block-latency-histogram-set", {"id": device.qdev, "boundaries": bounds})
            for device in devices
            if device.qdev and not device.latency
        ]
        queued = () if virtio is None else qmp.parse_virtio(virtio)
        statuses: list[Command] = [("x-query-virtio-status", {"path": device.path}) for device in queued]
        answers = await self._ask(monitor, [*statuses, *histograms])
        counts = [0 if answer is None else qmp.parse_queue_count(answer) for answer in answers[: len(queued)]]
        queues = [(device, n) for device, count in zip(queued, counts, strict=True) for n in range(count)]
        return _Deep(tuple(queues), balloon, await self._look_for_balloon(monitor) if balloon else None)

    async def _look_for_balloon(self, monitor: channel.LineChannel) -> _Balloon | None:
        lists = await self._ask(monitor, [("qom-list", {"path": place}) for place in qmp.BALLOON_PLACES])
        found = [
            qmp.parse_balloon_path(place, answer)
            for place, answer in zip(qmp.BALLOON_PLACES, lists, strict=True)
            if answer is not None
        ]
        path = next(filter(None, found), None)
        if path is None:
            return None
        of = {"path": path, "property": "guest-stats-polling-interval"}
        (interval,) = await self._ask(monitor, [("qom-get", dict(of))])
        if interval is None:
            return None
        interval_s = qmp.parse_balloon_interval(interval)
        if not interval_s:  # whoever has set it needs it as it is
            await self._ask(monitor, [("qom-set", {**of, "value": BALLOON_POLL_S})])
        return _Balloon(path, interval_s or BALLOON_POLL_S)

    def _balloon_stats(self, balloon: _Balloon, answer: object) -> Mapping[str, int]:
        stats = None if answer is None else qmp.parse_balloon_stats(answer)
        if stats is None or self._clock() - stats.updated_at > _STALE_POLLS * balloon.interval_s:
            return {}
        return stats.values

    async def _negotiate(self, monitor: channel.LineChannel) -> None:
        if not self._greeted:
            if "QMP" not in channel.parse_object(await monitor.read_line()):
                raise MalformedError("no QMP greeting")
            self._greeted = True
        if not self._asked:
            monitor.write(b'{"execute":"qmp_capabilities"}\n')
            self._asked = True
            self._owed = 1
        if not self._ready:
            if "return" not in await self._answer(monitor):
                raise MalformedError("qmp_capabilities refused")
            self._ready = True

    async def _ask(self, monitor: channel.LineChannel, commands: Sequence[Command]) -> list[Any]:
        """The returns in the order of the commands; None for one that QEMU refused."""
        self._serial += 1
        ids = {f"{self._serial}.{number}": number for number in range(len(commands))}
        monitor.write(b"".join(_line(command, one) for command, one in zip(commands, ids, strict=True)))
        self._owed = len(ids)
        answers: list[Any] = [None] * len(ids)
        while self._owed:
            answer = await self._answer(monitor)
            number = ids.pop(answer["id"], None) if isinstance(answer.get("id"), str) else None
            if number is None or ("return" not in answer and "error" not in answer):
                raise MalformedError("an answer to nothing that was asked, or an error")
            answers[number] = answer.get("return")
        return answers

    async def _answer(self, monitor: channel.LineChannel) -> dict[str, Any]:
        answer = channel.parse_object(await monitor.read_line())
        self._owed -= 1
        return answer

    def _take_event(self, line: bytes) -> bool:
        """Count an event, at once: QEMU's last one comes right before it closes. False: it is an answer."""
        if b'"event"' not in line:
            return False
        try:
            event = channel.parse_object(line)
        except MalformedError:
            return False  # it fails whoever reads it
        if "event" not in event:
            return False
        if (name := event_name(event)) is not None:
            self.events[name] += 1
        return True

    def close(self) -> None:
        """Close the connection; a later read connects again. Events that have come are counted first."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._greeted = self._asked = self._ready = False
        self._owed = self._unanswered = 0
        self._deep = None


def event_name(event: Mapping[str, Any]) -> str | None:
    """What an event is counted as; None: not at all. A shutdown is told with its reason."""
    kind = event.get("event")
    name = EVENT_NAMES.get(kind) if isinstance(kind, str) else None
    if name != "shutdown":
        return name
    data = event.get("data")
    reason = data.get("reason") if isinstance(data, dict) else None
    return f"shutdown: {reason}" if isinstance(reason, str) and reason in SHUTDOWN_REASONS else name


def _known_commands(deep: _Deep) -> list[Command]:
    balloon = deep.balloon
    stats: list[Command] = [("qom-get", {"path": balloon.path, "property": "guest-stats"})] if balloon else []
    queues = [("x-query-virtio-queue-status", {"path": device.path, "queue": queue}) for device, queue in deep.queues]
    return [*stats, *queues]


def _line(command: Command, serial: str) -> bytes:
    name, arguments = command
    return json.dumps({"execute": name, "arguments": arguments, "id": serial}).encode() + b"\n"
