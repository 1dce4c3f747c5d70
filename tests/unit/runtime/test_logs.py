"""Records of a container's log: decoding, damage, and the last lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import logs, output, seeking
from runtime.logs import EVENT, STDERR, STDOUT, Decoder, LogRecord
from runtime.output import LastWords

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
def test_last_lines(tmp_path: Path, written: tuple[str, ...], count: int, expected: str) -> None:
    log = tmp_path / "container.log"
    data = b"".join(record.encode() for record in lines(*written))
    log.write_bytes(data)
    position, first = seeking.find(log, 0, len(data), count, 0)
    kept = Decoder().feed(first + data[position:])
    assert b"".join(record.payload for record in kept) == expected.encode()


@pytest.mark.parametrize("size", [10, 70_000])
def test_last_lines_of_a_long_log(tmp_path: Path, size: int) -> None:
    log = tmp_path / "container.log"
    texts = [f"{number:0{size}d}\n" for number in range(3_000_000 // size)]
    data = b"".join(
        LogRecord(STDOUT, 0, text[at : at + 30_000].encode()).encode()
        for text in texts
        for at in range(0, len(text), 30_000)
    )
    log.write_bytes(data)
    for count in (0, 1, 7, len(texts) - 1, len(texts), len(texts) + 1):
        position, first = seeking.find(log, 0, len(data), count, 0)
        kept = b"".join(record.payload for record in Decoder().feed(first + data[position:]))
        assert kept.decode() == "".join(texts[max(0, len(texts) - count) :])


def test_since(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    records = [LogRecord(STDOUT, number, b"%d\n" % number).encode() for number in range(100)]
    log.write_bytes(b"".join(records))
    size = log.stat().st_size
    for since in (1, 50, 99, 100):
        position, first = seeking.find(log, 0, size, None, since)
        assert (position, first) == (len(b"".join(records[:since])), b"")
    assert seeking.find(log, 0, size, 1, 50) == (len(b"".join(records[:99])), b"")


@given(st.lists(record_of, min_size=1, max_size=20), st.integers(0, 400))
def test_whole_records_are_told_from_the_rest(records: list[LogRecord], cut: int) -> None:
    pieces = [record.encode() for record in records]
    data = b"".join(pieces)
    data = data[: max(0, len(data) - cut)]
    kept = logs.whole(data)
    assert list(Decoder().feed(data[:kept])) == list(Decoder().feed(data))
    assert len(data) - kept < logs.HEADER.size + 300


def test_a_record_that_was_cut_is_made_whole(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    for cut in (1, 5, 15, 20):
        log.write_bytes(LogRecord(STDOUT, 1, b"before\n").encode() + LogRecord(STDOUT, 2, b"12345").encode()[:-cut])
        output.write_end(log, 0, 137, None)
        kept = list(Decoder().feed(log.read_bytes()))
        half = [b"12345"[:-cut]] if cut <= 5 else []
        assert [record.payload for record in kept[:-1]] == [b"before\n", *half]
        assert output.last_words(log, 0) == LastWords(137, oom_killed=False)


def event(**content: object) -> bytes:
    return LogRecord(EVENT, 0, json.dumps(content).encode()).encode()


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    assert output.last_words(log, 0) is None
    log.write_bytes(event(event="started") + event(event="exited", exit_code=3, oom_killed=False))
    assert output.last_words(log, 0) == LastWords(3, oom_killed=False)
    with log.open("ab") as file:
        file.write(event(event="started"))
    assert output.last_words(log, 0) is None, "the words of an earlier start do not count"
    assert output.write_end(log, 0, 137, "gone") == LastWords(137, oom_killed=False)
    assert output.last_words(log, 0) == LastWords(137, oom_killed=False)


def test_kills_are_told_by_layer_even_if_the_guest_had_no_last_word(tmp_path: Path) -> None:
    log = tmp_path / "container.log"
    kills = {"container": 2, "guest": 1}
    log.write_bytes(event(event="oom", oom_kills={"container": 9}) + event(event="started"))
    assert output.write_end(log, 0, 137, "gone").oom_kills == {}, "those of an earlier start do not count"
    log.write_bytes(event(event="started") + event(event="oom", oom_kills={"container": 1}))
    with log.open("ab") as file:
        file.write(event(event="oom", oom_kills=kills) + event(event="other"))
    assert output.write_end(log, 0, 137, "gone", oom_killed=True) == LastWords(137, True, kills)
    assert output.last_words(log, 0) == LastWords(137, True, kills)


@pytest.mark.parametrize("lie", [None, [], {"container": -1, "guest": 1 << 40, "host": 5}, {"container": True}])
def test_lies_about_kills_are_not_taken(tmp_path: Path, lie: object) -> None:
    log = tmp_path / "container.log"
    log.write_bytes(event(event="exited", exit_code=1, oom_kills=lie))
    words = output.last_words(log, 0)
    assert words is not None
    assert words.oom_kills == {}


@pytest.mark.parametrize("code", ["x", None, [1], "9" * 400])
def test_lying_last_words_do_not_raise(tmp_path: Path, code: object) -> None:
    log = tmp_path / "container.log"
    log.write_bytes(event(event="exited", exit_code=code))
    words = output.last_words(log, 0)
    assert words is None or 0 <= words.exit_code <= 255
