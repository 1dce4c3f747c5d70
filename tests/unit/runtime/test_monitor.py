"""QEMU's monitor, spoken to a double that answers as QEMU does, or as one that somebody else has taken over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import GuestFailed
from runtime.vm import monitor
from runtime.vm.monitor import Command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
OK = b'{"return": {}}\n'


@contextlib.asynccontextmanager
async def double(
    directory: Path, greeting: bytes, answer: Callable[[dict[str, Any]], bytes]
) -> AsyncIterator[list[Any]]:
    """Serves one monitor at a time; yields what was asked, with the content of a descriptor that came along."""
    asked: list[Any] = []
    loop = asyncio.get_running_loop()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(directory / "qmp.sock"))
    listener.listen()
    listener.setblocking(False)

    async def serve() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            with connection, contextlib.suppress(ConnectionError):
                await talk(connection)

    async def talk(connection: socket.socket) -> None:
        await loop.sock_sendall(connection, greeting)
        held = b""
        descriptor = -1
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(connection, 1, 4)  # one byte at a time, as QEMU
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not data:
                return
            descriptor = fds[0] if fds else descriptor
            held += data
            if data == b"\n":
                request = json.loads(held)
                if request["execute"] == "add-fd":
                    with os.fdopen(descriptor) as file:
                        request["read"] = file.read()
                asked.append(request)
                held = b""
                await loop.sock_sendall(connection, answer(request))

    task = asyncio.create_task(serve())
    try:
        yield asked
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


async def test_commands_go_out_together_each_with_its_own_descriptor(tmp_path: Path) -> None:
    events = b'{"event": "STOP"}\n{"event": "RESUME"}\n'
    commands = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        commands.append(Command("add-fd", {"fdset-id": len(commands)}, os.open(tmp_path / name, os.O_RDONLY)))
        commands.append(Command("query-status"))
    async with double(
        tmp_path, GREETING, lambda request: events + b'{"return": "%s"}\n' % request["execute"].encode()
    ) as asked:
        async with monitor.opened(tmp_path) as qmp:
            assert await qmp.run(*commands) == ["add-fd", "query-status"] * 2
            assert await qmp.execute("stop", now=True) == "stop"
        async with monitor.opened(tmp_path):  # the next in line is greeted once the first is gone
            pass
    for command in commands[::2]:
        os.close(command.fd)
    assert [one["read"] for one in asked if one["execute"] == "add-fd"] == ["one", "two"]
    assert asked[5] == {"execute": "stop", "arguments": {"now": True}}
    assert [one["execute"] for one in asked].count("qmp_capabilities") == 2


async def test_the_first_refusal_is_told(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request["execute"] == "qmp_capabilities":
            return OK
        return b'{"error": {"class": "GenericError", "desc": "no %s"}}\n' % request["execute"].encode()

    async with double(tmp_path, GREETING, answer), monitor.opened(tmp_path) as qmp:
        with pytest.raises(GuestFailed, match="QEMU refused this: no this"):
            await qmp.run(Command("this"), Command("that"))


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"hello\n", "does not answer: Expecting value"),
        (b"{}\n", "does not answer: no greeting"),
        (b"[]\n", "does not answer: no object"),
        (b"[" * 100_000 + b"\n", "does not answer: "),
        (b"x" * (2 << 20), "does not answer: a line without an end"),
    ],
)
async def test_what_is_no_monitor(tmp_path: Path, greeting: bytes, said: str) -> None:
    async with double(tmp_path, greeting, lambda _: OK):
        with pytest.raises(GuestFailed, match=said):
            await monitor.connect(tmp_path)


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match=r"does not answer: .*No such file"):
        await monitor.connect(tmp_path)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", r"QEMU's monitor did not answer within 0\.2 s"),
        (b'{"event": "STOP"}\n' * 100, r"QEMU's monitor did not answer within 0\.2 s"),
        (b'{"return": ', r"QEMU's monitor did not answer within 0\.2 s"),
        (b'{"error": 7}\n', "QEMU refused stop: 7"),
        (b'{"neither": 7}\n', "QEMU refused stop: None"),
        (b"\xff\xfe\n", "QEMU's monitor broke off: "),
        (b"{" * (2 << 20), "a line without an end"),
    ],
)
async def test_answers_that_are_none(tmp_path: Path, answer: bytes, said: str) -> None:
    def given(request: dict[str, Any]) -> bytes:
        return OK if request["execute"] == "qmp_capabilities" else answer

    async with double(tmp_path, GREETING, given), monitor.opened(tmp_path) as qmp:
        with pytest.raises(GuestFailed, match=said):
            await qmp.run(Command("stop"), timeout_s=0.2)


class Flooding:
    """A socket that always has something to read, as that of a QEMU that writes without end has."""

    def __init__(self, piece: bytes, others: list[None]) -> None:
        self._pieces = itertools.cycle(piece.partition(b"}")) if len(piece) < 100 else itertools.repeat(piece)
        self._others = others
        self._read = 0

    def gettimeout(self) -> float:
        return 0.0

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, _most: int) -> bytes:
        self._read += 1
        assert self._read - len(self._others) < 10, "nobody else has had a turn"
        return next(self._pieces)


@pytest.mark.parametrize(
    ("piece", "timeout_s", "said"),
    [
        (b'{"event":1}\n' * 5000, 60.0, "events without an end"),
        (b'{"event":1}\n', 0.05, r"did not answer within 0\.05 s"),
    ],
)
async def test_events_without_an_end_hold_up_nobody_else(piece: bytes, timeout_s: float, said: str) -> None:
    others: list[None] = []

    async def other() -> None:
        while True:
            others.append(None)
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    qmp = monitor.Monitor(Flooding(piece, others))  # type: ignore[arg-type]  # as much of a socket as is used
    with pytest.raises(GuestFailed, match=said):
        await qmp.run(Command("stop"), timeout_s=timeout_s)
    running.cancel()


async def test_whoever_comes_when_the_queue_of_a_qemu_that_hangs_is_full_is_turned_away(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / "qmp.sock"))
        listener.listen(0)
        one = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        one.connect(str(tmp_path / "qmp.sock"))
        with pytest.raises(GuestFailed, match="does not answer"):
            await monitor.connect(tmp_path)
