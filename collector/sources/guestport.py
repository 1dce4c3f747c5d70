"""The guest agent's statistics port: one connection for samples, and for what else is asked between them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any, Final

from collector import channel
from collector.errors import MalformedError, TooLargeError, UnreachableError, WedgedError
from collector.sources import guest, stockagent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ASK_DEADLINE_S: Final = 1.0
MAX_MEMBERS: Final = 8192
"""Of all lists and objects of an answer. An honest one has some hundred, and 1 MiB of `[],` takes 60 ms to read."""
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_UNKNOWN: Final = frozenset({"CommandNotFound"})
_UNABLE: Final = _UNKNOWN | {"GenericError"}


def _request(cgroup: str, *, deep: bool) -> bytes:
    files, max_bytes = sorted(guest.paths(cgroup, deep=deep)), guest.max_file_bytes(deep=deep)
    arguments = {"files": files, "statvfs": ["/"], "max_bytes": max_bytes}
    return _line({"execute": "hyper-read", "arguments": arguments})


def _line(command: Mapping[str, object]) -> bytes:
    return json.dumps(command, separators=(",", ":")).encode() + b"\n"


def parse_answer(line: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        MalformedError: it is none, or has more than `MAX_MEMBERS`.
    """
    if line.count(b",") > MAX_MEMBERS and _has_many_members(line):
        raise MalformedError(f"JSON of more than {MAX_MEMBERS} members")
    return channel.parse_object(line)


def _has_many_members(line: bytes) -> bool:
    # The commas may be those of a text that an application exports. That is one string, whose quotes are escaped.
    quotes = line.count(b'"') - line.count(b'\\"')
    return quotes > 4 * MAX_MEMBERS or _STRING.sub(b"", line).count(b",") > MAX_MEMBERS


class GuestReader:
    """One VM's statistics port. The connection is kept; after a missed deadline both sides synchronise again."""

    def __init__(self, path: Path, cgroup: str, budget: channel.Budget, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._cgroup = cgroup
        self._budget = budget
        self._clock = clock
        self._channel: channel.LineChannel | None = None
        self._synced = False
        self._sync_id: int | None = None
        self._waits = 0
        self._boot_ns: int | None = None
        self._asked_status = False
        self._stock = False
        self._lock = asyncio.Lock()  # one exchange at a time: answers come in the order of requests
        self._requests = {deep: _request(cgroup, deep=deep) for deep in (False, True)}

    async def read(self, *, deep: bool = False) -> guest.GuestSample:
        """One sample, with the details of the deep tier or without.

        The caller sets the deadline; after a cancelled read the next one synchronises first.

        Raises:
            SourceError: nobody is there, or the answer is not what the protocol says. The next read connects anew.
        """
        async with self._lock:
            try:
                return await self._read(deep=deep)
            except (MalformedError, TooLargeError):
                self.close()
                raise

    async def ask(self, command: str, arguments: Mapping[str, object]) -> Any:
        """The `return` of one more command, which the agent answers at once, on the connection of the samples.

        Raises:
            SourceError: there is no connection that a sample came over, the agent does not answer in time, or it
                answers with an error.
        """
        try:
            async with asyncio.timeout(ASK_DEADLINE_S), self._lock:
                agent = self._channel
                if agent is None or not self._synced or self._stock:
                    raise UnreachableError("no agent that answers, or one that knows no such command")
                self._synced = False  # until the answer has come
                agent.write(_line({"execute": command, "arguments": arguments}))
                answer = parse_answer(await agent.read_line())
                self._synced = True
        except TimeoutError as err:
            raise WedgedError(f"{command}: no answer within {ASK_DEADLINE_S:g} s") from err
        except (MalformedError, TooLargeError):
            self.close()
            raise
        if "return" not in answer:
            error = answer.get("error")
            kind = error.get("class") if isinstance(error, dict) else None
            raise UnreachableError(f"{command}: the agent answers with the error {str(kind)[:40]!r}")
        return answer["return"]

    async def _read(self, *, deep: bool) -> guest.GuestSample:
        if self._channel is None or self._channel.failed:
            self.close()
            self._channel = await channel.connect(self._path, self._budget)
        if not self._synced:
            await self._synchronise(self._channel)
        self._synced = False  # until the answers have come
        sent_at = self._clock()
        if not self._asked_status:  # of all that it tells, only what never changes is used
            self._channel.write(_line({"execute": "hyper-status"}))
            status = await self._answer(self._channel, none=_UNKNOWN)
            self._stock = status is None
            self._boot_ns = guest.parse_boot(status)
            self._asked_status = True
        if self._stock:
            sample = await self._read_stock(self._channel, sent_at, deep=deep)
            self._synced = True
            return sample
        self._channel.write(self._requests[deep])
        answer = await self._answer(self._channel)
        middle = (sent_at + self._clock()) / 2
        self._synced = True
        return guest.parse_sample(answer, self._cgroup, boot_ns=self._boot_ns, host_time_s=middle, deep=deep)

    async def _read_stock(self, agent: channel.LineChannel, sent_at: float, *, deep: bool) -> guest.GuestSample:
        commands = stockagent.DEEP_COMMANDS if deep else stockagent.COMMANDS
        agent.write(b"".join(_line({"execute": command}) for command in commands))
        # What one command cannot be answered is no reason to go without the others.
        answers = {command: await self._answer(agent, none=_UNABLE) for command in commands}
        return guest.parse_stock_sample(answers, host_time_s=(sent_at + self._clock()) / 2, deep=deep)

    async def _synchronise(self, agent: channel.LineChannel) -> None:
        # To a guest that does not answer the request is repeated ever more seldom, so that little piles up.
        self._waits += 1
        if self._sync_id is None or self._waits & (self._waits - 1) == 0:
            if self._sync_id is None:
                agent.skip_to_sentinel()
            self._sync_id = random.getrandbits(31)
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": self._sync_id}}
            agent.write(b"\xff" + json.dumps(sync).encode() + b"\n")
        for _ in range(64):
            line = (await agent.read_line()).lstrip(b"\xff")
            if line and parse_answer(line).get("return") == self._sync_id:
                self._synced = True
                self._sync_id = None
                self._waits = 0
                return
        raise MalformedError("no answer to guest-sync-delimited")

    async def _answer(self, agent: channel.LineChannel, *, none: frozenset[str] = frozenset()) -> Any:
        """The `return` of the next answer, or None of an error of one of these classes."""
        answer = parse_answer(await agent.read_line())
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        kind = error.get("class") if isinstance(error, dict) else None
        if isinstance(kind, str) and kind in none:
            return None
        raise MalformedError(f"the agent answers with the error {str(kind)[:40]!r}")

    def close(self) -> None:
        """Close the connection; a later read connects again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._synced = self._asked_status = False
        self._sync_id = None
        self._waits = 0
