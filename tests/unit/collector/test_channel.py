from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from collector import channel
from collector.errors import TooLargeError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Take = Callable[[bytes], bool]


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("s")
        unix.listen()
        yield unix


async def connected(
    listener: socket.socket, tmp_path: Path, take: Take | None = None
) -> tuple[channel.LineChannel, socket.socket, channel.Budget]:
    """A channel, and the other side: blocking, and outside of the loop."""
    budget = channel.Budget()
    made = await channel.connect(tmp_path / "s", budget, take)
    return made, listener.accept()[0], budget


async def test_whole_lines_are_read_after_the_other_side_has_closed(listener: socket.socket, tmp_path: Path) -> None:
    one, other, budget = await connected(listener, tmp_path)
    other.sendall(b"first\nsecond\npart")
    other.close()
    assert await one.read_line() == b"first"
    for _ in range(10):
        await asyncio.sleep(0)  # a turn of the loop: it looks at its sockets
    assert one.failed
    assert await one.read_line() == b"second"
    with pytest.raises(UnreachableError, match="closed the connection"):
        await one.read_line()
    one.close()
    assert budget.used_bytes == 0


async def test_a_write_to_who_has_closed_loses_nothing_that_came_before(
    listener: socket.socket, tmp_path: Path
) -> None:
    one, other, budget = await connected(listener, tmp_path)
    other.sendall(b"last words\n")
    other.close()
    one.write(b"anybody?\n")  # before the loop has looked
    assert await one.read_line() == b"last words"
    with pytest.raises(UnreachableError):
        await one.read_line()
    assert budget.used_bytes == 0


async def test_closing_shows_what_the_kernel_still_holds(listener: socket.socket, tmp_path: Path) -> None:
    shown: list[bytes] = []

    def take(line: bytes) -> bool:
        shown.append(line)
        return True

    one, other, budget = await connected(listener, tmp_path, take)
    other.sendall(b"one\ntwo\n" + b"\n" * 10)
    one.close()
    one.close()
    assert shown == [b"one", b"two"]
    assert budget.used_bytes == 0
    other.close()


async def test_closing_ends_whoever_goes_on_sending(listener: socket.socket, tmp_path: Path) -> None:
    one, other, budget = await connected(listener, tmp_path, lambda _: True)
    other.sendall(b"x\n" * 4 * channel.MAX_TAKEN_LINES)
    one.close()
    assert budget.used_bytes == 0
    with pytest.raises(TooLargeError):
        await one.read_line()
    other.close()


async def test_what_is_taken_is_bounded_between_two_writes(listener: socket.socket, tmp_path: Path) -> None:
    one, other, budget = await connected(listener, tmp_path, lambda line: line == b"event")
    for _ in range(3):
        other.sendall(b"event\n" * channel.MAX_TAKEN_LINES + b"answer\n")
        assert await one.read_line() == b"answer"
        one.write(b"more\n")
    other.sendall(b"event\n" * (channel.MAX_TAKEN_LINES + 1))
    with pytest.raises(TooLargeError):
        await one.read_line()
    one.close()
    assert budget.used_bytes == 0
    other.close()


@pytest.mark.parametrize(
    "flood",
    [b"\0" * 65536, b"\n" * 65536, b" " * 65535 + b"\n", b"event" * 10_000 + b"\n"],
    ids=["before the sentinel", "empty lines", "lines of spaces", "lines that are taken"],
)
async def test_what_nobody_reads_is_not_taken_for_ever(listener: socket.socket, tmp_path: Path, flood: bytes) -> None:
    one, other, budget = await connected(listener, tmp_path, lambda line: line.startswith(b"event"))
    if flood[:1] == b"\0":
        one.skip_to_sentinel()
    other.setblocking(False)
    sent = 0
    with other, contextlib.closing(one):
        while not one.failed and sent < 4 * channel.MAX_LINE_BYTES:
            with contextlib.suppress(BlockingIOError):
                sent += other.send(flood)
            await asyncio.sleep(0)
        assert one.failed
        with pytest.raises(TooLargeError):
            await one.read_line()
        assert budget.used_bytes == 0


async def test_what_waits_to_be_read_is_no_longer_than_a_line_may_be() -> None:
    budget = channel.Budget()
    one, other = channel.LineChannel(budget), channel.LineChannel(budget)
    half = b"x" * (channel.MAX_LINE_BYTES // 2)
    for _ in range(3):
        for _ in range(2):
            one.data_received(half + b"\n")
        assert [await one.read_line(), await one.read_line()] == [half, half]
    one.data_received((half + b"\n") * 3)  # in one piece: nobody could have read
    assert [await one.read_line() for _ in range(3)] == [half] * 3
    other.data_received(b"honest\n")
    for _ in range(3):
        one.data_received(half + b"\n")
    with pytest.raises(TooLargeError):
        await one.read_line()
    assert await other.read_line() == b"honest"
    assert budget.used_bytes == 0


async def test_an_answer_that_nobody_waits_for_any_more_is_skipped_however_often(
    listener: socket.socket, tmp_path: Path
) -> None:
    one, other, _ = await connected(listener, tmp_path)
    late = b"x" * (channel.MAX_LINE_BYTES - 1) + b"\n"
    for _ in range(3):
        one.skip_to_sentinel()
        one.write(b"again\n")
        sending = asyncio.create_task(asyncio.to_thread(other.sendall, late + b"\xffanswer\n"))
        assert await asyncio.wait_for(one.read_line(), 10) == b"answer"
        await sending
    one.close()
    other.close()
