"""The agent's fetches under sanitizers, against servers that close, reset, drip, flood, or say nothing."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from tests.fuzz.sanitized import built

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = ("fetch.c", "arguments.c", "json.c", "json_write.c")
SECONDS = int(os.environ.get("HYPER_FUZZ_SECONDS", "5"))


def test_no_server_breaks_or_holds_up_the_agent(tmp_path: Path) -> None:
    program = built("fetch_fuzz.c", SOURCES, tmp_path)
    done = subprocess.run(
        [program, "20261126", str(SECONDS)],
        env={"ASAN_OPTIONS": "detect_leaks=0:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.fullmatch(r"(\d+) begun, (\d+) refused, (\d+) done, (\d+) with an error\n", done.stdout)
    assert found, done.stdout
    print(done.stdout)
    begun, refused, ended, errors = map(int, found.groups())
    assert begun - refused > 100
    assert ended > 50
    assert 0 < errors < ended
