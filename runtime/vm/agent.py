"""Client of the guest agent's control port (`docs/reference/agent-protocol.md`).

The guest is hostile: an answer has a size limit and a deadline, and nothing in it is believed to have a shape. What it
sends is taken in pieces between which other work goes on, and is looked at in ways whose cost grows with its length
alone. After any failure the connection is closed, and the next call opens a new one and synchronises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any

from runtime.errors import CommandNotExecutable, CommandNotFound, GuestFailed
from runtime.vm import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

# Most answers are far shorter. A short limit bounds the objects that JSON can be made to become.
MAX_ANSWER_BYTES = 64 * 1024
_LONGER_BYTES = {"hyper-read": 2 << 20}
# What a guest may still send of an answer that somebody else asked for; the agent itself gives at most 8 MiB.
_MAX_STALE_BYTES = (8 << 20) + 4096
_MAX_STALE_SYNCS = 64
_READ_BYTES = 64 * 1024
_SYNC_BYTES = 128  # more than the answer to a synchronisation has
DEFAULT_TIMEOUT_S = 10.0
# An agent that hears of a new connection after what came over it may drop its answer; ours does not any more.
_FIRST_RESYNC_S = 0.01
_LAST_RESYNC_S = 1.0
CLOCK_ERROR_NS = 20_000_000
_CLOCK_TRIES = 5
_TIMES_NS = range(1 << 63)  # what a clock can show: time_t in nanoseconds
_MAX_DESCRIPTION = 500

_ERRORS = {"NotFound": CommandNotFound, "NotExecutable": CommandNotExecutable}


class Agent:
    """One connection to one guest's control port; calls are answered in order, one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._held = bytearray()

    async def call(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S, **arguments: object) -> Any:
        """Run one command and return what it returned. The time counts from now, also while others wait for theirs.

        Raises:
            CommandNotFound: the guest says that the program or user does not exist.
            CommandNotExecutable: the guest says that it is not executable.
            GuestFailed: no answer in time, an answer too long or not JSON, or any other error of the agent.
                After the first three the connection is closed; the guest goes on.
        """
        async with self._bounded(command, timeout_s):
            await self._connect()
            answer = await self._exchange(command, arguments)
        return self._result(command, answer)

    async def connect(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Synchronise now, if that is to be done: the next call is then on its way at once.

        Raises:
            GuestFailed: as `call`.
        """
        async with self._bounded("guest-sync-delimited", timeout_s):
            await self._connect()

    async def set_clock(
        self, timeout_s: float = DEFAULT_TIMEOUT_S, *, slew: bool = False, host_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Set the guest's clock to ours, or, with `slew`, let it run faster or slower until it is there.

        It is behind by a part of the exchange at most: a long one is done again.

        Raises:
            GuestFailed: as `call`.
        """
        await self.connect(timeout_s)
        how = {"slew": True} if slew else {}
        for _ in range(_CLOCK_TRIES):
            began_ns = host_ns()
            await self.call("guest-set-time", timeout_s, time=began_ns, **how)
            if host_ns() - began_ns < CLOCK_ERROR_NS:
                break

    async def clock_error(
        self, timeout_s: float = DEFAULT_TIMEOUT_S, host_ns: Callable[[], int] = time.time_ns
    ) -> tuple[int, int]:
        """How far the guest's clock is from ours, and by how much that may be wrong; both in nanoseconds.

        Raises:
            GuestFailed: as `call`, or it tells no time.
        """
        await self.connect(timeout_s)
        found: list[tuple[int, int]] = []
        for _ in range(_CLOCK_TRIES):
            began_ns = host_ns()
            told = await self.call("guest-get-time", timeout_s)
            took_ns = host_ns() - began_ns
            if type(told) is not int or told not in _TIMES_NS:
                raise GuestFailed("the guest agent answered guest-get-time with something else than a time")
            found.append((took_ns // 2, told - began_ns - took_ns // 2))
            if 0 <= took_ns < CLOCK_ERROR_NS:
                break
        doubt_ns, error_ns = min(found, key=lambda one: abs(one[0]))
        return error_ns, abs(doubt_ns)

    @contextlib.asynccontextmanager
    async def _bounded(self, command: str, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                try:
                    yield
                except BaseException:
                    self.close()  # also if cancelled: an answer that comes later must not be taken for the next one
                    raise
        except TimeoutError as err:
            raise GuestFailed(f"the guest agent did not answer {command} within {timeout_s:g} s") from err
        except (OSError, EOFError, ValueError, RecursionError) as err:
            raise GuestFailed(f"the guest agent broke off during {command}: {type(err).__name__}") from err

    def close(self) -> None:
        """Close the connection, if there is one; the next call opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
        self._held.clear()

    async def _connect(self) -> None:
        if self._writer is not None and not self._writer.is_closing():
            return
        self._held.clear()
        self._reader, self._writer = await process.connect(self._path, _READ_BYTES)
        token = random.randrange(1, 2**31)  # noqa: S311 -- tells a stale answer from ours, not a secret
        request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        # Nothing of what comes before it is looked at: it may be any number of lines of any length.
        mark = re.compile(rb'\xff\s{0,8}\{\s{0,8}"return"\s{0,8}:\s{0,8}%d\s{0,8}\}\s{0,8}\n' % token)
        pause_s, stale = _FIRST_RESYNC_S, 0
        while True:
            if self._writer is None:  # closed meanwhile: the VM has ended
                raise EOFError
            # More than once: a guest that sees the end of an earlier connection late drops what it has read of ours.
            self._writer.write(b"\xff" + json.dumps(request).encode() + b"\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    while not (found := mark.search(self._held)):
                        stale += max(0, len(self._held) - _SYNC_BYTES)
                        del self._held[:-_SYNC_BYTES]
                        if stale > _MAX_STALE_BYTES:
                            raise ValueError("no end of old answers")
                        await self._receive()
                    del self._held[: found.end()]
                    return
            pause_s = min(2 * pause_s, _LAST_RESYNC_S)

    async def _receive(self) -> None:
        """Take what has come, after others had their turn.

        Raises:
            EOFError: the guest's end was closed.
        """
        await asyncio.sleep(0)  # a reader that is never empty would not let anybody else run
        data = await self._reader.read(_READ_BYTES) if self._reader is not None else b""
        if not data:
            raise EOFError
        self._held += data

    async def _exchange(self, command: str, arguments: dict[str, object]) -> object:
        if self._writer is None:
            raise EOFError
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        await self._writer.drain()
        for _ in range(_MAX_STALE_SYNCS):
            line = await self._line(_LONGER_BYTES.get(command, MAX_ANSWER_BYTES))
            if not line.startswith(b"\xff"):  # the answer to a synchronisation that was sent twice
                return json.loads(line)
        raise ValueError("no end of old answers")

    async def _line(self, limit_bytes: int) -> bytes:
        """The next line.

        Raises:
            ValueError: it is longer than the limit.
        """
        seen = 0
        while (end := self._held.find(b"\n", seen)) < 0:
            seen = len(self._held)
            if seen > limit_bytes:
                break
            await self._receive()
        if not 0 <= end <= limit_bytes:
            raise ValueError("the answer is too long")
        line = bytes(self._held[: end + 1])
        del self._held[: end + 1]
        return line

    def _result(self, command: str, answer: object) -> Any:
        if not isinstance(answer, dict):
            self.close()
            raise GuestFailed(f"the guest agent answered {command} with something else than an object")
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        details = error if isinstance(error, dict) else {}
        text, name = details.get("desc"), details.get("class")
        text = _one_line(text) if isinstance(text, str) else "no description"
        kind = _ERRORS.get(name, GuestFailed) if isinstance(name, str) else GuestFailed
        raise kind(text if kind is not GuestFailed else f"the guest agent refused {command}: {text}")


def _one_line(text: str) -> str:
    """What a guest says, for a message and a log: nothing in it moves a cursor or begins a line."""
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_DESCRIPTION])
