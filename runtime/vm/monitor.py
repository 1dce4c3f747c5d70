"""QEMU's control monitor (QMP): commands go out together, and their answers come back in order.

QEMU 7.2 reads this socket one byte at a time, some microseconds each: what is sent is kept short. A command that has
gone out with a descriptor is read before what follows it, so that `add-fd` finds its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.errors import GuestFailed
from runtime.vm import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 1 << 20
_MAX_EVENTS = 4096  # before one answer: far more than QEMU has to tell
_READ_BYTES = 64 * 1024
_RETRY_S = 0.001


@dataclass(frozen=True, slots=True)
class Command:
    """One command of QMP. `fd` goes along with it, and stays the caller's."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fd: int = -1

    def line(self) -> bytes:
        """What is sent."""
        told: dict[str, Any] = {"execute": self.name}
        if self.arguments:
            told["arguments"] = self.arguments
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"


class Monitor:
    """A connection. QEMU answers one at a time: whoever comes second waits for its greeting."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._held = bytearray()

    async def run(self, *commands: Command, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Run the commands in order and return what they returned. One that is refused does not keep the others.

        Raises:
            GuestFailed: QEMU refused one (the first is named), is gone, or did not answer in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for command in commands:
                    await self._send(command)
                answers = [await self._answer() for _ in commands]
        except TimeoutError as err:
            raise GuestFailed(f"QEMU's monitor did not answer within {timeout_s:g} s") from err
        except (OSError, EOFError, ValueError, RecursionError) as err:
            raise GuestFailed(f"QEMU's monitor broke off: {str(err) or type(err).__name__}") from err
        for command, answer in zip(commands, answers, strict=True):
            if "return" not in answer:
                said = answer.get("error")
                reason = said.get("desc") if isinstance(said, dict) else said
                raise GuestFailed(f"QEMU refused {command.name}: {str(reason)[:500]}")
        return [answer["return"] for answer in answers]

    async def execute(self, name: str, /, **arguments: object) -> Any:
        """Run one command; raises what `run` does."""
        return (await self.run(Command(name, arguments)))[0]

    def close(self) -> None:
        """Let go of the monitor: the next one that waits is greeted."""
        self._socket.close()

    async def greeted(self) -> None:
        """Take the greeting and begin; for `connect` alone."""
        async with asyncio.timeout(TIMEOUT_S):
            if "QMP" not in await self._line():
                raise ValueError("no greeting")
        await self.execute("qmp_capabilities")

    async def _send(self, command: Command) -> None:
        data = command.line()
        if command.fd < 0:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
            return
        while True:
            try:
                sent = socket.send_fds(self._socket, [data], [command.fd])
            except BlockingIOError:
                await asyncio.sleep(_RETRY_S)  # the socket is full of what QEMU has still to read
            else:
                await asyncio.get_running_loop().sock_sendall(self._socket, data[sent:])
                return

    async def _answer(self) -> dict[str, Any]:
        for _ in range(_MAX_EVENTS):
            if "event" not in (answer := await self._line()):
                return answer
        raise ValueError("events without an end")

    async def _line(self) -> dict[str, Any]:
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > _MAX_LINE_BYTES:
                raise ValueError("a line without an end")
            await asyncio.sleep(0)  # a socket that is never empty would not let anybody else run, nor the time be over
            data = await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES)
            if not data:
                raise EOFError
            self._held += data
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("no object")  # noqa: TRY004 -- it is the other side's, not our caller's
        return answer


async def connect(directory: Path) -> Monitor:
    """The monitor of the VM in that directory, ready for commands.

    Raises:
        GuestFailed: nobody answers, or it does not speak QMP.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with process.address_of(directory / "qmp.sock") as address:
            # A QEMU that does not answer has a queue that fills up: nobody waits for room in it.
            connection.setblocking(False)
            connection.connect(address)
        monitor = Monitor(connection)
        await monitor.greeted()
    except (OSError, EOFError, ValueError, RecursionError) as err:
        connection.close()
        raise GuestFailed(f"QEMU's monitor does not answer: {str(err) or type(err).__name__}") from err
    except BaseException:
        connection.close()
        raise
    return monitor


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Monitor]:
    """The monitor for as long as the context lasts; raises what `connect` does."""
    monitor = await connect(directory)
    try:
        yield monitor
    finally:
        monitor.close()
