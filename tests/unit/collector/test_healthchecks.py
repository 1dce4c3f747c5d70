from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.errors import MalformedError
from collector.sources.healthchecks import HealthReader
from runtime.healthcounts import FILE_NAME, HealthCounts

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_read_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    reader = HealthReader(tmp_path)
    assert reader.read(1) == ()
    counts = HealthCounts(tmp_path, 1)
    counts.add(0.2, None)
    first = reader.read(1)
    assert reader.read(1) is first
    counts.add(0.2, "exit")
    assert reader.read(1) != first
    assert reader.read(2) == (), "the counts are of another epoch"
    (tmp_path / FILE_NAME).unlink()
    assert reader.read(1) == ()


def test_a_file_that_is_none_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"schema": 1, "bounds": [2, 1], "buckets": [0, 0, 0], "failures": {}}')
    with pytest.raises(MalformedError, match="out of order"):
        HealthReader(tmp_path).read(1)
