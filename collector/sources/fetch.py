"""A fetch from a server in the guest, over the agent's statistics port: begun, asked about, taken in parts.

The agent answers each of these requests at once, whatever the server does (docs/reference/agent-protocol.md), so that
the port is free for everything else. The waiting is done here, between requests.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from collector.errors import MalformedError, WedgedError
from collector.kerneltext import NSEC_PER_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Ask = Callable[[str, Mapping[str, object]], Awaitable[Any]]
    """One request to the agent, by name and arguments, and its `return`."""

PART_BYTES: Final = 131_072
"""Escaped, at most three quarters of the longest line that is taken."""
MAX_DEADLINE_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.25
_GRACE_S: Final = 2.0
"""Beyond its deadline a fetch has an end in any honest guest."""
_ERROR: Final = re.compile(r"[A-Z0-9_]{1,32}")
"""What the kernel calls its errors; the text goes into the log."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came. Times are seconds since the fetch began, by the guest's clock; None: it did not come so far.

    `error` is the kernel's name, None if the server closed by itself or more came than was asked for (`truncated`).
    """

    data: bytes
    error: str | None
    truncated: bool
    connect_s: float | None
    first_byte_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class _Part:
    data: bytes
    length: int
    fetched: Fetched


def parse_fetched(answer: object, deadline_s: float, max_bytes: int) -> _Part | None:
    """The `return` of a `hyper-fetched`; None while it goes on.

    Raises:
        MalformedError: not of this shape, or a time or a size that cannot be.
    """
    if not isinstance(answer, dict):
        raise MalformedError("hyper-fetched: no object")
    if answer.get("state") == "pending":
        return None
    data, error, length = answer.get("data"), answer.get("error"), answer.get("length")
    if answer.get("state") != "done" or not isinstance(data, str) or not isinstance(error, str | None):
        raise MalformedError("hyper-fetched: no result")
    if error is not None and _ERROR.fullmatch(error) is None:
        raise MalformedError("hyper-fetched: no name of an error")
    if isinstance(length, bool) or not isinstance(length, int) or not len(data) <= length <= max_bytes:
        raise MalformedError("hyper-fetched: length")
    longest_s = deadline_s + _GRACE_S
    connect_s, first_byte_s, total_s = (
        _seconds(answer.get(key), longest_s) for key in ("connect_ns", "first_byte_ns", "total_ns")
    )
    if total_s is None:
        raise MalformedError("hyper-fetched: no total_ns")
    try:
        part = data.encode("latin-1")
    except UnicodeEncodeError as err:
        raise MalformedError("hyper-fetched: a character that is no byte") from err
    truncated = answer.get("truncated") is True
    return _Part(part, length, Fetched(b"", error, truncated, connect_s, first_byte_s, total_s))


def _seconds(value: object, longest_s: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MalformedError("hyper-fetched: a time")
    # A guest's clock runs as fast as it likes; what it says it took is not longer than it was given.
    return min(value / NSEC_PER_S, longest_s)


async def fetch(
    ask: Ask,
    *,
    port: int,
    send: str,
    deadline_s: float,
    max_bytes: int,
) -> Fetched:
    """Fetch, and wait for the end.

    Args:
        ask: one request to the agent, and its `return`.
        port: on the guest's loopback.
        send: what is sent; nothing: connect, and no more.
        deadline_s: for the server, at most `MAX_DEADLINE_S`.
        max_bytes: more than that is cut.

    Raises:
        SourceError: the agent does not answer, or not as the protocol says.
    """
    number = random.getrandbits(30) + 1
    arguments = {
        "fetch": number,
        "port": port,
        "send": send,
        "deadline_ms": max(1, round(deadline_s * 1000)),
        "max_bytes": max_bytes,
    }
    await ask("hyper-fetch", arguments)
    over_at = time.monotonic() + deadline_s + _GRACE_S
    pause_s = _FIRST_PAUSE_S
    while True:
        await asyncio.sleep(pause_s)
        answer = await ask("hyper-fetched", {"fetch": number, "max_bytes": PART_BYTES})
        part = parse_fetched(answer, deadline_s, max_bytes)
        if part is not None:
            break
        if time.monotonic() > over_at:
            raise WedgedError("a fetch without an end")
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
    data = bytearray()
    more: _Part | None = part
    while True:
        # A part is whole, or a guest could make of a length as many requests as it has bytes.
        if more is None or more.length != part.length or len(more.data) != min(PART_BYTES, part.length - len(data)):
            raise MalformedError("hyper-fetched: not the part that was asked for")
        data += more.data
        if len(data) == part.length:
            break
        if time.monotonic() > over_at:
            raise WedgedError("a fetch without an end")
        arguments = {"fetch": number, "offset": len(data), "max_bytes": PART_BYTES}
        more = parse_fetched(await ask("hyper-fetched", arguments), deadline_s, max_bytes)
    found = part.fetched
    return Fetched(bytes(data), found.error, found.truncated, found.connect_s, found.first_byte_s, found.total_s)
