"""Client of the guest agent's control port (`docs/reference/agent-protocol.md`).

The guest is hostile: an answer has a size limit and a deadline, and nothing in it is believed to have a shape. After
any failure the connection is closed, and the next call opens a new one and synchronises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

from runtime.errors import CommandNotExecutable, CommandNotFound, GuestFailed
from runtime.vm import process

if TYPE_CHECKING:
    from pathlib import Path

# What the agent itself gives at most (`REPLY_MAX_BYTES`, and the frame around it).
MAX_ANSWER_BYTES = (8 << 20) + 4096
DEFAULT_TIMEOUT_S = 10.0
_FIRST_RESYNC_S = 0.1
_LAST_RESYNC_S = 1.0

_ERRORS = {"NotFound": CommandNotFound, "NotExecutable": CommandNotExecutable}


class Agent:
    """One connection to one guest's control port; calls are answered in order, one at a time."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S, **arguments: object) -> Any:
        """Run one command and return what it returned.

        Raises:
            CommandNotFound: the guest says that the program or user does not exist.
            CommandNotExecutable: the guest says that it is not executable.
            GuestFailed: no answer in time, an answer too long or not JSON, or any other error of the agent.
                After the first three the connection is closed; the guest goes on.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._connect()
                    answer = await self._exchange(command, arguments)
            except TimeoutError as err:
                self.close()
                raise GuestFailed(f"the guest agent did not answer {command} within {timeout_s:g} s") from err
            except (OSError, EOFError, ValueError, RecursionError, asyncio.LimitOverrunError) as err:
                # ValueError: JSON, or a line over the limit (asyncio says LimitOverrunError as ValueError)
                self.close()
                raise GuestFailed(f"the guest agent broke off during {command}: {type(err).__name__}") from err
            except BaseException:
                self.close()  # cancelled: an answer that comes later must not be taken for the next one
                raise
        return self._result(command, answer)

    def close(self) -> None:
        """Close the connection, if there is one; the next call opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _connect(self) -> None:
        if self._writer is not None and not self._writer.is_closing():
            return
        self._reader, self._writer = await process.connect(self._path, MAX_ANSWER_BYTES)
        token = random.randrange(1, 2**31)  # noqa: S311 -- tells a stale answer from ours, not a secret
        request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        pause_s = _FIRST_RESYNC_S
        while True:
            # More than once: a guest that sees the end of an earlier connection late drops what it has read of ours.
            self._writer.write(b"\xff" + json.dumps(request).encode() + b"\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._synchronised(self._reader, token)
                    return
            pause_s = min(2 * pause_s, _LAST_RESYNC_S)

    async def _synchronised(self, reader: asyncio.StreamReader, token: int) -> None:
        discarded = 0
        while True:
            discarded += len(await reader.readuntil(b"\xff"))
            if discarded > MAX_ANSWER_BYTES:
                raise ValueError("no end of old answers")
            with contextlib.suppress(ValueError):
                answer = json.loads(await reader.readline())
                if isinstance(answer, dict) and answer.get("return") == token:
                    return

    async def _exchange(self, command: str, arguments: dict[str, object]) -> object:
        if self._reader is None or self._writer is None:
            raise EOFError
        request = {"execute": command, "arguments": arguments}
        self._writer.write(json.dumps(request).encode() + b"\n")
        await self._writer.drain()
        while (line := await self._reader.readline()).startswith(b"\xff"):
            pass  # the answer to a synchronisation that was sent twice
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)

    def _result(self, command: str, answer: object) -> Any:
        if not isinstance(answer, dict):
            self.close()
            raise GuestFailed(f"the guest agent answered {command} with something else than an object")
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        details = error if isinstance(error, dict) else {}
        text = str(details.get("desc", "no description"))[:500]
        kind = _ERRORS.get(str(details.get("class")), GuestFailed)
        raise kind(text if kind is not GuestFailed else f"the guest agent refused {command}: {text}")
