"""What is written of a log, and where it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runtime.cli.streams import Writer
from runtime.logs import EVENT, STDOUT, LogRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.client import Records


class Log:
    """Pieces of a log, as `Records` gives them."""

    offset = 0

    def __init__(self, *records: LogRecord) -> None:
        self._pieces = [record.encode() for record in records]
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.taken += 1
            yield piece


def exited(**more: object) -> LogRecord:
    return LogRecord(EVENT, 1, json.dumps({"event": "exited", "exit_code": 3, **more}).encode())


@pytest.mark.parametrize(
    ("record", "to_vm_end", "taken", "ended"),
    [
        (exited(), False, 2, True),
        (exited(), True, 3, True),
        (exited(error="the VM ended without a word from its guest"), False, 3, False),
    ],
)
def test_the_guests_last_word_may_be_enough(
    capsysbinary: pytest.CaptureFixture[bytes], record: LogRecord, to_vm_end: bool, taken: int, ended: bool
) -> None:
    log = Log(LogRecord(STDOUT, 1, b"all\n"), record, LogRecord(STDOUT, 1, b"after\n"))

    def begin(offset: int | None) -> Records:
        assert offset is None
        return log  # type: ignore[return-value] -- as much of it as is used

    writer = Writer()
    writer.follow(begin, to_vm_end=to_vm_end)
    assert (writer.exit_code, log.taken, writer.ended) == (3, taken, ended)
    assert capsysbinary.readouterr().out == (b"all\n" if taken == 2 else b"all\nafter\n")
