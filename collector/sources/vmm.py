"""QEMU over the statistics monitor: run state, block statistics, thread ids.

All commands of a sample go out in one write and are matched to their answers by `id`.
Source: QEMU's QMP reference, query-status, query-blockstats, query-cpus-fast, query-iothreads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from collector import channel
from collector.errors import MalformedError
from collector.kerneltext import MAX_COUNT
from collector.sources.process import ThreadIds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_DEVICES: Final = 16
_COMMANDS: Final = ("query-status", "query-blockstats")
_THREAD_COMMANDS: Final = ("query-cpus-fast", "query-iothreads")
_MAX_EVENTS: Final = 256
_MAX_UNANSWERED: Final = 8
"""Reads in a row without an answer after which a new connection is tried; a stopped QEMU would queue each of them."""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """Counts of one virtual disk since QEMU began. `name` is its node name."""

    name: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    flushes: int


@dataclass(frozen=True, slots=True)
class VmmSample:
    """What QEMU tells of itself. `status` is its run state, a word of QMP's."""

    status: str
    devices: tuple[BlockDevice, ...]


def parse_status(answer: object) -> str:
    """Run state of `query-status`."""
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, str) or len(status) > 64:
        raise MalformedError("query-status: no status")
    return status


def parse_blockstats(answer: object) -> tuple[BlockDevice, ...]:
    """Devices of `query-blockstats` that have a guest device, at most `MAX_DEVICES`."""
    if not isinstance(answer, list):
        raise MalformedError("query-blockstats: not a list")
    result = []
    for entry in answer[:MAX_DEVICES]:
        stats = entry.get("stats") if isinstance(entry, dict) else None
        if not isinstance(stats, dict):
            raise MalformedError("query-blockstats: no stats")
        name = entry.get("node-name") or entry.get("device") or entry.get("qdev")
        if not isinstance(name, str) or not name:
            raise MalformedError("query-blockstats: a device without a name")
        keys = ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations")
        result.append(BlockDevice(name, *(parse_number(stats, key) for key in keys)))
    return tuple(result)


def parse_thread_ids(cpus: object, iothreads: object) -> ThreadIds:
    """Thread ids of `query-cpus-fast` and `query-iothreads`."""
    return ThreadIds(_thread_ids(cpus), _thread_ids(iothreads))


def _thread_ids(answer: object) -> tuple[int, ...]:
    if not isinstance(answer, list) or len(answer) > 1024:
        raise MalformedError("thread ids: not a list")
    return tuple(parse_number(entry, "thread-id") for entry in answer)


def parse_number(members: object, key: str) -> int:
    """A member that is a whole number of 64 bits.

    Raises:
        MalformedError: it is missing, negative, larger, a fraction, or no number.
    """
    value = members.get(key) if isinstance(members, dict) else None
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise MalformedError(f"{key} is not a count")
    return value


class VmmReader:
    """One VM's statistics monitor. The connection is kept; `thread_ids` is known after the first sample."""

    def __init__(self, path: Path, budget: channel.Budget) -> None:
        self._path = path
        self._budget = budget
        self._channel: channel.LineChannel | None = None
        self._greeted = self._asked = self._ready = False
        self._serial = 0
        self._owed = 0
        self._unanswered = 0
        self.thread_ids: ThreadIds | None = None

    async def read(self) -> VmmSample:
        """One sample. The caller sets the deadline; a cancelled read leaves a connection that can be read again.

        Raises:
            SourceError: nobody is there, or the answer is not QMP. The next read connects anew.
        """
        try:
            return await self._read()
        except MalformedError:
            self.close()
            raise

    async def _read(self) -> VmmSample:
        self._unanswered += 1
        if self._channel is None or self._channel.failed or self._unanswered > _MAX_UNANSWERED:
            self.close()
            self._channel = await channel.connect(self._path, self._budget)
        await self._negotiate(self._channel)
        while self._owed:  # answers that came too late
            await self._answer(self._channel)
        commands = _COMMANDS if self.thread_ids else _COMMANDS + _THREAD_COMMANDS
        answers = await self._ask(self._channel, commands)
        self._unanswered = 0
        if self.thread_ids is None:
            self.thread_ids = parse_thread_ids(answers["query-cpus-fast"], answers["query-iothreads"])
        return VmmSample(parse_status(answers["query-status"]), parse_blockstats(answers["query-blockstats"]))

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

    async def _ask(self, monitor: channel.LineChannel, commands: tuple[str, ...]) -> Mapping[str, Any]:
        self._serial += 1
        ids = {f"{self._serial}.{command}": command for command in commands}
        monitor.write(b"".join(json.dumps({"execute": c, "id": i}).encode() + b"\n" for i, c in ids.items()))
        self._owed = len(ids)
        answers = {}
        while self._owed:
            answer = await self._answer(monitor)
            command = ids.get(answer["id"]) if isinstance(answer.get("id"), str) else None
            if command is None or "return" not in answer:
                raise MalformedError("an answer to nothing that was asked, or an error")
            answers[command] = answer["return"]
        if len(answers) != len(ids):
            raise MalformedError("one command answered twice")
        return answers

    async def _answer(self, monitor: channel.LineChannel) -> dict[str, Any]:
        for _ in range(_MAX_EVENTS):
            answer = channel.parse_object(await monitor.read_line())
            if "event" not in answer:
                self._owed -= 1
                return answer
        raise MalformedError("nothing but events")

    def close(self) -> None:
        """Close the connection; a later read connects again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._greeted = self._asked = self._ready = False
        self._owed = self._unanswered = 0
