"""The agent's unpacking under sanitizers: pax headers that are wrong in each number, and mutated archives."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from tests.fuzz.sanitized import built

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = int(os.environ.get("HYPER_FUZZ_SECONDS", "5"))


def test_no_archive_breaks_the_unpacking_or_leaves_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "outer" / "inner"
    directory.mkdir(parents=True)
    program = built("unarchive_fuzz.c", ["unarchive.c"], tmp_path)
    done = subprocess.run(
        [program, "20261127", str(SECONDS), directory],
        env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=99"},
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.fullmatch(r"(\d+) archives, (\d+) unpacked\n", done.stdout)
    assert found, done.stdout
    print(done.stdout)
    archives, unpacked = map(int, found.groups())
    assert archives > 200
    assert archives // 50 < unpacked < archives  # some get through, past the last check
    assert [one.name for one in directory.parent.iterdir()] == ["inner"]
