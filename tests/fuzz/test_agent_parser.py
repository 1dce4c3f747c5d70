"""The agent's parsers under sanitizers and mutated input; deterministic but for how many rounds the time allows."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.sanitized import built

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = (
    "line.c",
    "json.c",
    "json_write.c",
    "arguments.c",
    "requests.c",
    "identity_request.c",
    "commands.c",
    "port.c",
    "streams.c",
)
SECONDS = int(os.environ.get("HYPER_FUZZ_SECONDS", "10"))


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("agent_fuzz.c", SOURCES, tmp_path_factory.mktemp("fuzz"), '-DHYPER_VERSION="fuzz"')


@pytest.mark.parametrize("seed", [1, 20261123])
def test_no_input_breaks_the_parsers(fuzzer: Path, seed: int) -> None:
    environment = {"ASAN_OPTIONS": "detect_leaks=1:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [fuzzer, str(seed), str(SECONDS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.fullmatch(r"(\d+) requests, (\d+) answers, (\d+) accepted\n", done.stdout)
    assert found, done.stdout
    requests, answers, accepted = map(int, found.groups())
    print(done.stdout)
    assert requests > 1000
    assert answers > requests // 2  # the input is mostly lines, and a line is answered
    assert accepted > 100  # the mutations are not so wild that nothing gets past the first check
