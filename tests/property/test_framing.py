"""Lines out of bytes that come in any pieces: the same lines, or a failure that holds no more than was allowed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import channel
from collector.errors import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT_BYTES = 24
CHUNK_BYTES = 64

text = st.binary(max_size=LIMIT_BYTES).map(lambda line: line.replace(b"\n", b"x"))
lines = st.lists(text.filter(lambda line: not line or line.strip()), max_size=12)  # many of spaces alone are too much
ends = st.sampled_from([b"\n", b"\r\n", b"\n\n"])
cuts = st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=40)


def pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The data cut into chunks of these sizes, over and over."""
    result = []
    while data:
        size = sizes[len(result) % len(sizes)]
        result.append(data[:size])
        data = data[size:]
    return result


async def read_all(one: channel.LineChannel, budget: channel.Budget, chunks: Sequence[bytes]) -> list[bytes]:
    """Everything that it gives, read by somebody who is always there; what it holds is counted on the way."""
    found: list[bytes] = []

    async def reader() -> None:
        while True:
            found.append(await one.read_line())

    reading = asyncio.create_task(reader())
    for chunk in chunks:
        one.data_received(chunk)
        assert budget.used_bytes <= LIMIT_BYTES + CHUNK_BYTES
        for _ in range(3):
            await asyncio.sleep(0)  # a turn for the reader, and one for what it waits for
        assert budget.used_bytes <= LIMIT_BYTES
    if not one.failed:
        reading.cancel()
    try:
        await reading
    except asyncio.CancelledError:
        return found


@given(texts=lines, end=ends, sizes=cuts, rest=st.binary(max_size=LIMIT_BYTES).filter(lambda b: b"\n" not in b))
async def test_any_pieces_give_the_same_lines(texts: list[bytes], end: bytes, sizes: list[int], rest: bytes) -> None:
    fits = [text[: LIMIT_BYTES + 1 - len(end)] for text in texts]
    budget = channel.Budget()
    one = channel.LineChannel(budget, LIMIT_BYTES)
    found = await read_all(one, budget, pieces(b"".join(text + end for text in fits) + rest, sizes))
    assert found == [text.strip() for text in fits if text.strip()]
    assert budget.used_bytes == len(rest)
    one.close()
    assert budget.used_bytes == 0


@given(texts=lines, sizes=cuts, excess=st.integers(1, 200), ended=st.booleans())
async def test_a_line_beyond_the_limit_fails_however_it_comes(
    texts: list[bytes], sizes: list[int], excess: int, ended: bool
) -> None:
    budget = channel.Budget()
    one = channel.LineChannel(budget, LIMIT_BYTES)
    data = b"".join(text + b"\n" for text in texts) + b"x" * (LIMIT_BYTES + excess) + b"\n" * ended
    with pytest.raises(TooLargeError):
        await read_all(one, budget, [*pieces(data, sizes), b"and nothing more\n"])
    assert budget.used_bytes == 0


@given(texts=lines, sizes=cuts, limit=st.integers(0, 300))
async def test_who_does_not_read_is_not_waited_for(texts: list[bytes], sizes: list[int], limit: int) -> None:
    """Of all channels together a budget says how much they hold, whoever reads."""
    budget = channel.Budget(limit)
    one = channel.LineChannel(budget, LIMIT_BYTES)
    for chunk in pieces(b"".join(text + b"\n" for text in texts) * 20, sizes):
        one.data_received(chunk)
        assert budget.used_bytes <= max(limit, LIMIT_BYTES // 16) + CHUNK_BYTES
        assert not one.failed or budget.used_bytes == 0
    one.close()
    assert budget.used_bytes == 0


@given(before=st.binary(max_size=LIMIT_BYTES).filter(lambda b: b"\xff" not in b), texts=lines, sizes=cuts)
async def test_all_before_the_sentinel_is_thrown_away(before: bytes, texts: list[bytes], sizes: list[int]) -> None:
    budget = channel.Budget()
    one = channel.LineChannel(budget, LIMIT_BYTES)
    one.skip_to_sentinel()
    data = before + b"\xff" + b"".join(text + b"\n" for text in texts)
    assert await read_all(one, budget, pieces(data, sizes)) == [text.strip() for text in texts if text.strip()]
    one.close()
    assert budget.used_bytes == 0


@given(excess=st.integers(1, 200), sizes=cuts)
async def test_more_before_the_sentinel_than_a_line_may_have_fails(excess: int, sizes: list[int]) -> None:
    budget = channel.Budget()
    one = channel.LineChannel(budget, LIMIT_BYTES)
    one.skip_to_sentinel()
    with pytest.raises(TooLargeError):
        await read_all(one, budget, pieces(b"x" * (LIMIT_BYTES + excess) + b"\xffanswer\n", sizes))
    assert budget.used_bytes == 0
