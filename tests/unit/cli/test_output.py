from __future__ import annotations

import pytest

from runtime.cli import output


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"),
        (1.5, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (200, "3 minutes"),
        (3700, "About an hour"),
        (7300, "2 hours"),
        (47 * 3600, "47 hours"),
        (5 * 86400, "5 days"),
        (20 * 86400, "2 weeks"),
        (100 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_age(seconds: float, words: str) -> None:
    assert output.age(seconds) == words


@pytest.mark.parametrize(
    ("size_bytes", "decimal", "binary"),
    [
        (0, "0B", "0B"),
        (999, "999B", "999B"),
        (1023, "1.02kB", "1023B"),
        (1500, "1.5kB", "1.465KiB"),
        (50 << 20, "52.4MB", "50MiB"),
        (187_654_321, "188MB", "179MiB"),
        (1023 << 20, "1.07GB", "1023MiB"),
        (5 << 50, "5.63PB", "5PiB"),
    ],
)
def test_sizes(size_bytes: int, decimal: str, binary: str) -> None:
    assert (output.decimal_size(size_bytes), output.binary_size(size_bytes)) == (decimal, binary)


def test_table_fits() -> None:
    rows = [["a" * 12, "long " * 10, "x"], ["b" * 12, "short", "y" * 30]]
    wide = output.table(("ID", "TEXT", "NAMES"), rows).splitlines()
    assert wide[0] == f"{'ID':12}   {'TEXT':50}   NAMES"
    narrow = output.table(("ID", "TEXT", "NAMES"), rows, width=60, keep=("ID",)).splitlines()
    assert max(map(len, narrow)) <= 60
    assert narrow[1].startswith("a" * 12 + "   long")
    assert "…" in narrow[1]
    tiny = output.table(("ID", "TEXT", "NAMES"), rows, width=1, keep=("ID",)).splitlines()
    assert [len(line.split()[0]) for line in tiny] == [2, 12, 12]


def test_clean() -> None:
    assert output.clean("a\x1b[2J\nb\tc\x7f\u202eé") == "a?[2J b c??é"


def test_short_id() -> None:
    assert output.short_id("sha256:" + "ab" * 32) == "ab" * 6
    assert output.short_id("cd" * 32) == "cd" * 6
