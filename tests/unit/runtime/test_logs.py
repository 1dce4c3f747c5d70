"""Records of a container's log: decoding, damage, and the last lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import output
from runtime.logs import EVENT, STDERR, STDOUT, Decoder, LogRecord

if TYPE_CHECKING:
    from pathlib import Path

record_of = st.builds(
    LogRecord, st.sampled_from([STDOUT, STDERR, EVENT]), st.integers(0, 2**64 - 1), st.binary(max_size=300)
)


@given(st.lists(record_of, max_size=20), st.integers(1, 64))
def test_any_pieces_give_the_same_records(records: list[LogRecord], size: int) -> None:
    data = b"".join(record.encode() for record in records)
    decoder = Decoder()
    found = [one for start in range(0, len(data), size) for one in decoder.feed(data[start : start + size])]
    assert found == records


@given(st.binary(max_size=2000))
def test_garbage_never_raises(data: bytes) -> None:
    for record in Decoder().feed(data):
        record.event()


@given(st.binary(max_size=64).filter(lambda data: b"H" not in data), record_of)
def test_finds_its_place_again(garbage: bytes, record: LogRecord) -> None:
    assert record in list(Decoder().feed(garbage + record.encode()))


def lines(*texts: str) -> list[LogRecord]:
    return [LogRecord(STDOUT, index, text.encode()) for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("written", "count", "expected"),
    [
        (("a\n", "b\n", "c\n"), 2, "b\nc\n"),
        (("a\nb\nc\n",), 2, "b\nc\n"),
        (("a\nb", "c\nd"), 2, "bc\nd"),
        (("a\n", "\n", "\n"), 2, "\n\n"),
        (("a\nb\n",), 9, "a\nb\n"),
        (("a\nb\n",), 0, ""),
    ],
)
def test_last_lines(written: tuple[str, ...], count: int, expected: str) -> None:
    kept = output._last_lines(lines(*written), count)
    assert b"".join(record.payload for record in kept) == expected.encode()


def event(**content: object) -> bytes:
    return LogRecord(EVENT, 0, json.dumps(content).encode()).encode()


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    assert output.last_words(log) is None
    log.write_bytes(event(event="started") + event(event="exited", exit_code=3, oom_killed=False))
    assert output.last_words(log) == (3, False)
    with log.open("ab") as file:
        file.write(event(event="started"))
    assert output.last_words(log) is None, "the words of an earlier start do not count"
    assert output.write_end(log, 137, "gone") == (137, False)
    assert output.last_words(log) == (137, False)


@pytest.mark.parametrize("code", ["x", None, [1], "9" * 400])
def test_lying_last_words_do_not_raise(tmp_path: Path, code: object) -> None:
    log = tmp_path / "container.log"
    log.write_bytes(event(event="exited", exit_code=code))
    words = output.last_words(log)
    assert words is None or 0 <= words.exit_code <= 255
