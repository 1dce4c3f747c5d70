"""The daemon's ends of a guest's ports, with a peer that says whatever the test wants: what it may cost, and no more.

The same on a real guest is in tests/e2e/test_hostile_guest.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import CommandNotFound, GuestFailed
from runtime.vm import agent as agents
from runtime.vm import streams as multiplex
from runtime.vm.agent import Agent
from runtime.vm.streams import STDOUT, Exit, Output, Streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

RESET, DATA, EOF, CREDIT, EXIT, CLOSE = range(6)
LONGEST_STALL_S = 0.25  # CPU time of the daemon's loop between two beats: what others use of the machine is none of it
LONGEST_BLOCK_S = 5.0  # wall time: a loop that waits for a guest would wait for longer
SESSION = 7


@contextlib.asynccontextmanager
async def guest(path: Path, behave: Callable[[Any, Any], Awaitable[None]]) -> AsyncIterator[None]:
    """A peer on a socket. However it behaves, the loop must not stand still meanwhile."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, EOFError):
                await behave(reader, writer)
        finally:
            writer.transport.abort()

    longest = blocked = 0.0

    async def beat() -> None:
        nonlocal longest, blocked
        while True:
            before, clock = time.thread_time(), time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.thread_time() - before)
            blocked = max(blocked, time.monotonic() - clock)

    server = await asyncio.start_unix_server(serve, path)
    # A full collection of what all the other tests of this process have left takes as long as the stall that is meant.
    gc.freeze()
    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        gc.unfreeze()
        beating.cancel()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(beating, *tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # connections are closed in a later turn of the loop
    assert longest < LONGEST_STALL_S
    assert blocked < LONGEST_BLOCK_S


# --- the control port


async def synchronise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = json.loads((await reader.readline()).strip(b"\xff"))
    writer.write(b'\xff{"return": %d}\n' % request["arguments"]["id"])


async def flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


def answering(data: bytes) -> Callable[[Any, Any], Awaitable[None]]:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        while await reader.readline():
            writer.write(data)

    return behave


@pytest.mark.parametrize(
    "answer",
    [
        b"\n", b"null\n", b"[]\n", b'"return"\n', b"{}\n", b"not json {{{\n", b"\xc3\x28\n", b"[" * 5000 + b"\n",
        b'{"return": ' + b"[" * 20000 + b"\n", b'{"error": 1}\n', b'{"error": {"class": [], "desc": {}}}\n',
        b'{"return": ' + b"9" * 10000 + b"}\n", b"[" + b"[]," * 1_000_000 + b"[]]\n", b"\0" * 100_000 + b"\n",
    ],
)  # fmt: skip
async def test_an_answer_of_any_kind_is_one_line_of_failure(tmp_path: Path, answer: bytes) -> None:
    async with guest(tmp_path / "a", answering(answer)):
        one = Agent(tmp_path / "a")
        for _ in range(2):
            with pytest.raises(GuestFailed) as failed:
                await one.call("hyper-exec", 5)
            assert len(failed.value.message) < 600
            assert failed.value.message.isprintable()
        one.close()


@pytest.mark.parametrize("told", [b"9" * 400, b"9223372036854775808", b"-1", b"1e400", b"true", b'"1"', b"null"])
async def test_what_no_clock_shows_is_no_time(tmp_path: Path, told: bytes) -> None:
    async with guest(tmp_path / "a", answering(b'{"return": ' + told + b"}\n")):
        one = Agent(tmp_path / "a")
        with pytest.raises(GuestFailed, match="something else than a time"):
            await one.clock_error(5)
        one.close()


async def test_what_a_guest_says_of_an_error_is_one_short_line(tmp_path: Path) -> None:
    error = {"error": {"class": "NotFound", "desc": "no\x1b[2J\nsuch\0" + "x" * 50_000}}
    async with guest(tmp_path / "a", answering(json.dumps(error).encode() + b"\n")):
        one = Agent(tmp_path / "a")
        with pytest.raises(CommandNotFound) as failed:
            await one.call("hyper-exec", 5)
        assert failed.value.message.startswith("no [2J such x")
        assert failed.value.message.isprintable()
        assert len(failed.value.message) <= 500
        one.close()


@pytest.mark.parametrize(
    "endless",
    [b"x" * 65536, b"\xff" * 65536, b"\xff\n" * 32768, b'\xff{"return": 1}\n' * 4096, b"\n" * 65536, b"\0" * 65536,
     b"\xff" + b"[]," * 20000 + b"\n", b"\xff \n\xff{ \n" * 8192],
)  # fmt: skip
@pytest.mark.parametrize("after_sync", [False, True])
async def test_a_flood_ends_the_call_and_stalls_nobody(tmp_path: Path, endless: bytes, *, after_sync: bool) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after_sync:
            await synchronise(reader, writer)
            await reader.readline()
        await flood(writer, endless)

    async with guest(tmp_path / "a", behave):
        one = Agent(tmp_path / "a")
        began = time.monotonic()
        with pytest.raises(GuestFailed):
            await one.call("hyper-status", 1.0)
        assert time.monotonic() - began < 1.5
        one.close()


async def test_a_byte_now_and_then_does_not_lengthen_a_call(tmp_path: Path) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)  # the guest's pace is what is tried here

    async with guest(tmp_path / "a", behave):
        one = Agent(tmp_path / "a")
        began = time.monotonic()
        with pytest.raises(GuestFailed, match=r"within 0\.3 s"):
            await one.call("hyper-status", 0.3)
        assert time.monotonic() - began < 1
        one.close()


async def test_the_time_of_a_call_counts_while_others_wait_for_their_answers(tmp_path: Path) -> None:
    """A signal must not wait for as many silent calls as there are before it."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(-1)

    async with guest(tmp_path / "a", behave):
        one = Agent(tmp_path / "a")
        silent = [asyncio.create_task(one.call("hyper-exec", 5.0)) for _ in range(3)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(GuestFailed):
            await one.call("hyper-signal", 0.2, signal=9, all=True)
        assert time.monotonic() - began < 1
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
        one.close()


async def test_a_long_answer_is_taken_where_one_is_expected(tmp_path: Path) -> None:
    text = "x" * (2 * agents.MAX_ANSWER_BYTES)
    async with guest(tmp_path / "a", answering(json.dumps({"return": text}).encode() + b"\n")):
        one = Agent(tmp_path / "a")
        with pytest.raises(GuestFailed, match="ValueError"):
            await one.call("hyper-status")
        assert await one.call("hyper-read") == text
        one.close()


# --- the streams port


def frame(kind: int, payload: bytes = b"", *, session: int = SESSION, stream: int = 0) -> bytes:
    return struct.pack("<IBBHI", session, kind, stream, 0, len(payload)) + payload


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readexactly(12)
    assert head[4] == RESET
    writer.write(b"\xff" * 16 + frame(RESET, await reader.readexactly(8), session=0))


def sending(data: bytes) -> Callable[[Any, Any], Awaitable[None]]:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reset(reader, writer)
        await reader.readexactly(12)  # the first that is said: somebody listens
        writer.write(data)
        await writer.drain()
        await reader.read(-1)

    return behave


async def collected(streams: Streams, session: int = SESSION) -> list[Output | Exit]:
    async def take() -> list[Output | Exit]:
        return [event async for event in streams.output(session)]

    async with asyncio.timeout(10):
        taking = asyncio.create_task(take())
        await asyncio.sleep(0)
        streams.end_input(session)
        return await taking


WELL = frame(EXIT, b'{"exit_code": 3, "signal": null}')


async def test_an_honest_session(tmp_path: Path) -> None:
    data = frame(DATA, b"one", stream=1) + frame(DATA, b"two", stream=1) + frame(DATA, b"err", stream=2)
    ends = frame(EOF, stream=1) + frame(EOF, stream=2)
    async with guest(tmp_path / "s", sending(data + ends + WELL)):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        *outputs, last = await collected(streams)
        assert last == Exit(3, None)
        said: dict[int, bytes] = {}
        for one in outputs:
            assert isinstance(one, Output)
            said[one.stream] = said.get(one.stream, b"") + one.data
        assert said == {1: b"onetwo", 2: b"err"}
        streams.close()


@pytest.mark.parametrize(
    "wrong",
    {
        "enormous": struct.pack("<IBBHI", SESSION, DATA, 1, 0, 0xFFFFFFFF) + b"x" * 100,
        "nothing in it": frame(DATA, stream=1),
        "no such stream": frame(DATA, b"x", stream=3),
        "stdin": frame(DATA, b"x", stream=0),
        "no such kind": frame(77, b"x"),
        "a reset": frame(RESET, b"12345678"),
        "end twice": frame(EOF, stream=1) * 2,
        "after the end": frame(EOF, stream=1) + frame(DATA, b"x", stream=1),
        "credit not used": frame(CREDIT, (1).to_bytes(4, "little")),
        "credit of another length": frame(CREDIT, b"12345"),
        "exit deep": frame(EXIT, b"[" * 30000),
        "exit not json": frame(EXIT, b"\xff\xfe"),
        "exit empty": frame(EXIT, b""),
        "exit a list": frame(EXIT, b"[1]"),
        "exit text": frame(EXIT, b'{"exit_code": "3", "signal": null}'),
        "exit huge": frame(EXIT, b'{"exit_code": 18446744073709551616, "signal": null}'),
        "exit negative": frame(EXIT, b'{"exit_code": -1, "signal": null}'),
        "exit nan": frame(EXIT, b'{"exit_code": NaN, "signal": null}'),
        "exit infinite": frame(EXIT, b'{"exit_code": 1e999, "signal": Infinity}'),
        "exit true": frame(EXIT, b'{"exit_code": true, "signal": null}'),
        "exit digits": frame(EXIT, b'{"exit_code": ' + b"9" * 20000 + b"}"),
        "signal text": frame(EXIT, b'{"exit_code": 1, "signal": "KILL"}'),
        "signal huge": frame(EXIT, b'{"exit_code": 1, "signal": 99999}'),
    }.items(),
    ids=lambda wrong: wrong[0],
)
async def test_a_broken_protocol_ends_all_sessions_at_once(tmp_path: Path, wrong: tuple[str, bytes]) -> None:
    async with guest(tmp_path / "s", sending(wrong[1])):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        await streams.open(SESSION + 1)
        for events in await asyncio.gather(collected(streams), collected(streams, SESSION + 1)):
            assert events[-1] == Exit(255, None)
        streams.close()


async def test_more_than_the_credit_loses_the_connection(tmp_path: Path) -> None:
    async with guest(tmp_path / "s", sending(frame(DATA, b"x" * 32768, stream=1) * 8 + frame(DATA, b"x", stream=1))):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)  # whose output nobody takes
        await streams.open(SESSION + 1)
        assert await collected(streams, SESSION + 1) == [Exit(255, None)]
        streams.close()


async def test_frames_after_the_exit_do_not_change_it(tmp_path: Path) -> None:
    more = frame(EXIT, b'{"exit_code": 0, "signal": null}') + frame(DATA, b"late", stream=1)
    async with guest(tmp_path / "s", sending(WELL + more)):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        assert await collected(streams) == [Exit(3, None)]
        streams.close()


@pytest.mark.parametrize(
    "endless",
    [frame(DATA, b"x" * 32768, session=9, stream=1), frame(DATA, session=9) * 5000,
     frame(EXIT, b"{}", session=9) * 4000, frame(CREDIT, b"\0\0\0\1", session=0) * 4000],
    ids=["data", "empty", "exit", "credit"],
)  # fmt: skip
async def test_a_flood_for_sessions_that_there_are_not_loses_the_connection(tmp_path: Path, endless: bytes) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reset(reader, writer)
        await flood(writer, endless)

    async with guest(tmp_path / "s", behave):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        assert await collected(streams) == [Exit(255, None)]
        streams.close()


@pytest.mark.parametrize("endless", [b"x" * 65536, b"\xff" * 65536, b"\xff" * 16 + bytes(32)], ids=["x", "ff", "mix"])
async def test_a_flood_before_the_answer_to_a_reset_is_not_read_for_ever(tmp_path: Path, endless: bytes) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flood(writer, endless)

    async with guest(tmp_path / "s", behave):
        streams = Streams(tmp_path / "s")
        with pytest.raises(GuestFailed, match="streams port"):
            await streams.open(SESSION)
        streams.close()


async def test_late_frames_of_a_session_that_was_dropped_are_no_offence(tmp_path: Path) -> None:
    late = frame(DATA, b"x" * 32768, stream=1) * 8 + frame(DATA, b"x" * 32768, stream=2) * 8
    late += frame(EOF, stream=1) + frame(EOF, stream=2) + WELL

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reset(reader, writer)
        for number in range(20):
            head = await reader.readexactly(12)
            assert head == frame(CLOSE, session=SESSION)
            writer.write(late)
            writer.write(frame(DATA, b"%d" % number, session=SESSION + 1, stream=1))
        writer.write(frame(EXIT, b'{"exit_code": 0, "signal": null}', session=SESSION + 1))
        await reader.read(-1)

    async with guest(tmp_path / "s", behave):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION + 1)
        for _ in range(20):
            await streams.open(SESSION)
            streams.drop(SESSION)
        *_, last = await collected(streams, SESSION + 1)
        assert last == Exit(0, None)
        streams.close()


async def test_single_bytes_take_no_more_memory_than_their_credit(tmp_path: Path) -> None:
    """Bytes of both streams in turn, and a client that takes nothing: in few pieces, all of it, in order."""
    pairs = 40_000
    pieces = [frame(DATA, b"%d" % (n % 10), stream=1) + frame(DATA, b"%d" % (n % 7), stream=2) for n in range(pairs)]
    async with guest(tmp_path / "s", sending(b"".join(pieces) + WELL)):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        streams.end_input(SESSION)
        async with asyncio.timeout(10):
            while not streams._sessions[SESSION].ended:  # noqa: ASYNC110 -- there is nothing to wait on but its end
                await asyncio.sleep(0.01)
        found = await collected(streams)
        assert len(found) < 300
        for stream, base in ((1, 10), (2, 7)):
            data = b"".join(one.data for one in found if isinstance(one, Output) and one.stream == stream)
            assert data == b"".join(b"%d" % (n % base) for n in range(pairs))
        assert all(len(one.data) <= 65536 for one in found if isinstance(one, Output))
        streams.close()


async def test_a_guest_that_takes_nothing_loses_the_connection(tmp_path: Path) -> None:
    """Each byte that it sends is answered with credit: what it does not read must not pile up here."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reset(reader, writer)
        while True:
            writer.write(frame(DATA, b"x", stream=1))
            await writer.drain()
            await asyncio.sleep(0)

    before, multiplex._MAX_UNREAD_BYTES = multiplex._MAX_UNREAD_BYTES, 20_000
    try:
        async with guest(tmp_path / "s", behave):
            streams = Streams(tmp_path / "s")
            await streams.open(SESSION)
            async with asyncio.timeout(30):
                found = [event async for event in streams.output(SESSION)]
            assert found[-1] == Exit(255, None)
            assert all(isinstance(one, Output) and one.stream == STDOUT for one in found[:-1])
            streams.close()
    finally:
        multiplex._MAX_UNREAD_BYTES = before


async def test_closing_ends_whoever_waits(tmp_path: Path) -> None:
    async with guest(tmp_path / "s", sending(b"")):
        streams = Streams(tmp_path / "s")
        await streams.open(SESSION)
        waiting = asyncio.create_task(collected(streams))
        writing = asyncio.create_task(streams.write(SESSION, b"x" * (1 << 20)))
        for _ in range(3):
            await asyncio.sleep(0)  # both are under way
        streams.close()
        assert (await waiting)[-1] == Exit(255, None)
        with pytest.raises(GuestFailed):
            await writing


async def test_an_agent_that_is_closed_while_it_connects_fails_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a VM ends: not with an error of Python's own, although it was about to ask again."""
    monkeypatch.setattr(agents, "_FIRST_RESYNC_S", 0.0)

    async def mute(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with guest(tmp_path / "agent", mute):
        agent = Agent(tmp_path / "agent")
        call = asyncio.ensure_future(agent.call("hyper-log-credit", credit=1))
        await asyncio.sleep(0.01)
        agent.close()
        with pytest.raises(GuestFailed, match="broke off"):
            await call
