"""What a container's record says is so in the end: a pause that QEMU is slow to do, an end that cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import quarantine
from runtime import supervisor as supervising
from runtime.errors import GuestFailed
from runtime.record import Network, Quarantine
from runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.life import Container, Lives

Running = tuple["Container", "Lives"]


class Qemu:
    """It has one monitor at a time, and does nothing else while it writes out its disks for `stop`."""

    def __init__(self) -> None:
        self.status = "running"
        self.written = asyncio.Event()
        self.connections = 0
        self._talks = asyncio.Lock()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        async with self._talks:
            with contextlib.suppress(OSError):
                await self._answer(reader, writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {}}\n')
        while line := await reader.readline():
            command = json.loads(line)["execute"]
            if command == "stop":
                self.status = "paused"
                await self.written.wait()
            elif command == "cont":
                self.status = "running"
            writer.write(b'{"return": {}}\n')
            await writer.drain()


@pytest.fixture
async def qemu(running: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Qemu]:
    monkeypatch.setattr(supervising, "_MONITOR_TIMEOUT_S", 0.1)
    monkeypatch.setattr(supervising, "_PAUSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(supervising, "_GO_ON_RETRY_S", 0.01)
    one = Qemu()
    server = await asyncio.start_unix_server(one.talk, running[0].directory / "qmp.sock")
    yield one
    server.close()


@pytest.fixture
def supervisor(running: Running) -> Supervisor:
    nothing: Any = None
    return Supervisor(nothing, running[1], nothing, nothing, nothing, nothing, nothing, nothing, nothing)


async def no_more_to_do(supervisor: Supervisor) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(*supervisor._going_on)


async def too_slow(supervisor: Supervisor, container: Container) -> None:
    async with container.lock:
        with pytest.raises(GuestFailed, match=r"did not answer within 0\.2 s"):
            await supervisor.pause(container)


async def test_what_was_paused_too_late_goes_on(running: Running, qemu: Qemu, supervisor: Supervisor) -> None:
    one, _ = running
    await too_slow(supervisor, one)
    async with asyncio.timeout(10):
        while qemu.connections < 4:  # noqa: ASYNC110 -- it is tried meanwhile, and QEMU answers nobody
            await asyncio.sleep(0.01)
    assert (one.state, qemu.status) == ("running", "paused")
    qemu.written.set()
    await no_more_to_do(supervisor)
    assert (one.state, qemu.status) == ("running", "running")


async def test_a_pause_waits_for_what_qemu_has_to_write(running: Running, qemu: Qemu, supervisor: Supervisor) -> None:
    asyncio.get_running_loop().call_later(0.15, qemu.written.set)
    await supervisor.pause(running[0])
    await no_more_to_do(supervisor)
    assert qemu.status == "paused"


@pytest.mark.parametrize("meanwhile", ["paused", "quarantine"])
async def test_what_is_to_stand_still_by_then_does(
    running: Running, qemu: Qemu, supervisor: Supervisor, meanwhile: str
) -> None:
    one, lives = running
    await too_slow(supervisor, one)
    if meanwhile == "paused":
        lives.change(one, "paused")
    else:
        lives.change(one, quarantine=Quarantine(1.0, "odd", "ann"))
    qemu.written.set()
    await no_more_to_do(supervisor)
    assert qemu.status == "paused"


async def test_one_that_was_put_into_quarantine_and_paused_too_late_goes_on_when_that_is_lifted(
    running: Running, qemu: Qemu, supervisor: Supervisor
) -> None:
    one, lives = running
    network = Network("tap", "bridge", "10.0.0.2", "mac")
    lives.change(one, desired="stopped", network=network, quarantine=Quarantine(1.0, "odd", "ann"))
    engine: Any = SimpleNamespace(
        supervisor=supervisor, lives=lives, events=lives._events, operation=lambda *_: contextlib.nullcontext()
    )
    await quarantine.hold_still(engine, one)
    qemu.written.set()
    await no_more_to_do(supervisor)
    assert (one.state, qemu.status) == ("running", "paused")
    async with asyncio.timeout(10):
        await quarantine.lift(engine, one)
    assert (one.state, qemu.status) == ("running", "running")


async def test_an_end_is_written_down_whatever_has_hindered_that(
    running: Running, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, lives = running
    hindrances: list[Exception] = [OSError("no room"), KeyError("odd"), KeyError("odd")]

    async def after_end(container: Container) -> None:
        if hindrances:
            raise hindrances.pop(0)
        lives.change(container, "exited", exit_code=0)

    monkeypatch.setattr(supervising, "_END_RETRY_S", 0.0)
    monkeypatch.setattr(supervisor, "after_end", after_end)
    ended: list[Container] = []
    monkeypatch.setattr(supervisor, "_on_end", ended.append)
    await asyncio.wait_for(supervisor._watch(one), 5)
    assert one.state == "exited"
    assert ended == [one]
    assert caplog.messages == [
        "the end of web cannot be written down yet: no room",
        "the end of web cannot be written down yet: a defect",
    ]
