"""Clients that go away before the end: what they had begun is undone, wholly, and nobody hears of a defect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import MagicMock

import pytest

import runtime.api
from runtime.api import app, progress
from runtime.api.streaming import Streaming
from runtime.errors import GuestFailed, NotFound
from runtime.vm.streams import STDOUT, Exit, Output
from runtime.volumes import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from runtime.engine import Engine
    from runtime.images.image import Progress
    from runtime.life import Container, Lives

AWAITS = 5  # of a cleanup; Starlette's own answers end it at the first one
ENGINE = cast("Engine", None)  # a container that runs needs none


class Client:
    """One request, from the server's side: it sends these pieces of a body, and goes away when it is told to."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.leaves = asyncio.Event()
        self.got = bytearray()
        self.some = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.got += message.get("body", b"")
        if self.got:
            self.some.set()


def scope(method: str, path: str, query: str = "") -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": method, "path": path,
        "query_string": query.encode(), "headers": [], "state": {},
    }  # fmt: skip


async def taken_and_left(answer: Streaming) -> None:
    """Answer a client that goes away once it has got something."""
    client = Client()
    answering = asyncio.create_task(answer(scope("GET", "/v1/something"), client.receive, client.send))
    async with asyncio.timeout(5):
        await client.some.wait()
        client.leaves.set()
        await answering


async def clean_up(done: list[str], what: str) -> None:
    for _ in range(AWAITS):
        await asyncio.sleep(0)
    done.append(what)


async def test_what_is_streamed_cleans_up_to_the_end() -> None:
    done: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"some"
            await asyncio.Event().wait()
        finally:
            await clean_up(done, "cleaned")

    await taken_and_left(Streaming(pieces()))
    assert done == ["cleaned"]


async def test_work_whose_progress_is_told_is_undone_before_what_it_works_in_goes() -> None:
    """As a build: what ends it is awaited behind a shield, under a lock that the next build waits for."""
    done: list[str] = []
    lock = asyncio.Lock()
    waiting: list[asyncio.Task[None]] = []

    async def next_one() -> None:
        async with lock:
            done.append("the next one's turn")

    async def work(tell: Callable[[Progress], None]) -> dict[str, Any]:
        async with lock:
            waiting.append(asyncio.create_task(next_one()))
            tell(MagicMock(to_dict=lambda: {"status": "building"}))
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.shield(clean_up(done, "the program is ended"))
        return {}

    held = contextlib.AsyncExitStack()
    held.push_async_callback(clean_up, done, "its directory is removed")
    await taken_and_left(progress.answer("the build", work, held))
    await asyncio.gather(*waiting)
    assert done[0] == "the program is ended"
    assert sorted(done) == ["its directory is removed", "the next one's turn", "the program is ended"]


async def test_an_answer_that_breaks_off_is_told_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        raise GuestFailed("the guest sent nothing")

    client = Client()
    await Streaming(pieces())(scope("GET", "/v1/x"), client.receive, client.send)
    assert caplog.messages == ["/v1/x broke off: the guest sent nothing"]


def test_every_answer_in_pieces_is_of_this_kind() -> None:
    users = [
        path.name
        for path in Path(runtime.api.__file__).parent.glob("*.py")
        if re.search(r"\bStreamingResponse\b", path.read_text())
    ]
    assert users == ["streaming.py"]


class Guest:
    """Archives: `said` is what comes of it. In the place of agent and streams."""

    def __init__(self, *said: Output | Exit) -> None:
        self.said = list(said)
        self.refuses: Exception | None = None
        self.open_sessions: set[int] = set()
        self.written = bytearray()

    async def open(self, session: int) -> None:
        self.open_sessions.add(session)

    async def call(self, command: str, **_: object) -> None:
        assert command == "hyper-archive"
        if self.refuses is not None:
            raise self.refuses

    async def write(self, _: int, data: bytes) -> None:
        self.written += data

    def end_input(self, session: int) -> None:
        pass

    async def batches(self, _: int) -> AsyncIterator[list[Output | Exit]]:
        for one in self.said:
            yield [one]
        await asyncio.Event().wait()

    def drop(self, session: int) -> None:
        self.open_sessions.discard(session)


@pytest.fixture
def guest(running: tuple[Container, Lives]) -> Guest:
    made = Guest(Output(STDOUT, b"some"))
    running[0].agent = running[0].streams = made  # type: ignore[assignment]  # pretended
    return made


async def test_an_upload_that_is_broken_off_leaves_nothing_in_the_guest_and_no_traceback(
    running: tuple[Container, Lives], guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    served = app.build(MagicMock(lives=running[1]), {})
    client = Client(b"half a", b"n archive")
    client.leaves.set()
    with caplog.at_level(logging.INFO):
        await served(scope("PUT", "/v1/containers/web/archive", "path=/tmp"), client.receive, client.send)
    assert guest.written == b"half an archive"
    assert guest.open_sessions == set()
    assert caplog.messages == []


async def test_a_download_that_is_left_ends_its_session(running: tuple[Container, Lives], guest: Guest) -> None:
    await taken_and_left(Streaming(await files.get(ENGINE, running[0], "/etc")))
    assert guest.open_sessions == set()


async def test_no_session_is_left_by_one_that_fails(
    running: tuple[Container, Lives], guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = running[0]
    monkeypatch.setattr(files, "_CHANGES_BYTES", 3)
    with pytest.raises(GuestFailed, match="more than 3 bytes"):
        await files.changes(ENGINE, one)
    assert guest.open_sessions == set()
    with pytest.raises(OSError, match="no room"):
        async with files.layer(ENGINE, one, still=False):
            raise OSError("no room")  # before anything of it was read
    assert guest.open_sessions == set()
    guest.refuses = GuestFailed("64 sessions are open")
    with pytest.raises(GuestFailed, match="64"):
        await files.get(ENGINE, one, "/etc")
    guest.refuses = files.CommandNotFound("/nowhere: none")
    with pytest.raises(NotFound, match="in the container: /nowhere"):
        await files.get(ENGINE, one, "/nowhere")
    assert guest.open_sessions == set()
