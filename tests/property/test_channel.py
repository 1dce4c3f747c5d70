"""A channel's lines do not depend on the pieces in which they come, and the budget of all channels is given back."""

from __future__ import annotations

import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st

from collector.channel import Budget, LineChannel

texts = st.lists(st.sampled_from([b"a", b"{}", b" ", b"\r", b"\n", b"\n\n", b"long" * 50]), max_size=30).map(b"".join)


@given(text=texts, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_lines_are_the_same_whatever_pieces_they_come_in(text: bytes, cuts: list[int]) -> None:
    budget = Budget()
    channel = LineChannel(budget)
    for start, end in itertools.pairwise(sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})):
        channel.data_received(text[start:end])
    *whole, rest = text.split(b"\n")
    wanted = [line.strip() for line in whole if line.strip()]
    assert budget.used_bytes == sum(map(len, wanted)) + len(rest)
    assert asyncio.run(_read(channel, len(wanted))) == wanted
    assert budget.used_bytes == len(rest)
    channel.close()
    assert budget.used_bytes == 0


async def _read(channel: LineChannel, count: int) -> list[bytes]:
    return [await channel.read_line() for _ in range(count)]
