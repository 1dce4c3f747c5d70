"""An HTTP/1 answer out of the bytes that a fetch brought. Source: RFC 9112.

A fetch is HTTP/1.0 with `Connection: close`, so the body ends with the connection. Servers that answer in chunks or
name a length all the same are taken at their word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from collector.errors import MalformedError, TooLargeError

MAX_HEAD_BYTES: Final = 16_384
MAX_BODY_BYTES: Final = 1 << 20
MAX_CHUNKS: Final = 10_000
"""None are asked for; to put so many together takes a few milliseconds."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)")
_CHUNK: Final = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body; `whole`: the body is all that the server had to say."""

    status: int
    body: bytes
    whole: bool


def request(port: int, path: str) -> str:
    """What a fetch sends: HTTP/1.0, so that the server closes when it is done."""
    accept = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
    return (
        f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\nUser-Agent: hyper\r\n"
        f"Accept: {accept}\r\nConnection: close\r\n\r\n"
    )


def parse_answer(data: bytes, *, ended: bool) -> Answer:
    """The answer; `ended`: the server closed by itself.

    Raises:
        MalformedError: no HTTP/1 answer, or one that contradicts itself.
        TooLargeError: a head of more than 16 KiB, or more than `MAX_CHUNKS` chunks.
    """
    head, line_end, body = data[: MAX_HEAD_BYTES + 4].partition(b"\r\n\r\n")
    if not line_end:
        head, line_end, body = data[: MAX_HEAD_BYTES + 4].partition(b"\n\n")
    if not line_end:
        raise TooLargeError("a head without end") if len(data) > MAX_HEAD_BYTES else MalformedError("no HTTP answer")
    body = data[len(head) + len(line_end) :]
    first, *rest = head.split(b"\n")
    status = _STATUS.fullmatch(first.rstrip(b"\r"))
    if status is None:
        raise MalformedError(f"no HTTP answer: {first[:24]!r}")
    headers: dict[bytes, bytes] = {}
    for line in rest:
        found = _HEADER.fullmatch(line.rstrip(b"\r"))
        if found is None:
            raise MalformedError(f"no header: {line[:24]!r}")
        headers[found[1].lower()] = found[2].strip()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MalformedError("an encoding that was not asked for")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body, whole = _unchunk(body)
    elif b"content-length" in headers:
        if re.fullmatch(rb"[0-9]{1,15}", headers[b"content-length"]) is None:
            raise MalformedError("content-length is no number")
        length = int(headers[b"content-length"])
        body, whole = body[:length], len(body) >= length
    else:
        whole = ended
    return Answer(int(status[1]), body, whole)


def _unchunk(data: bytes) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    at = 0
    while (found := _CHUNK.match(data, at)) is not None:
        length = int(found[1], 16)
        if length == 0:
            return b"".join(parts), True
        if len(parts) == MAX_CHUNKS:
            raise TooLargeError(f"more than {MAX_CHUNKS} chunks")
        part = data[found.end() : found.end() + length]
        parts.append(part)
        at = found.end() + length
        at += 2 if data[at : at + 2] == b"\r\n" else 1
    if at < len(data):
        raise MalformedError("no chunk")
    return b"".join(parts), False
