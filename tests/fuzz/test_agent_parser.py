"""The agent's parsers under sanitizers and mutated input; deterministic but for how many rounds the time allows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

GUEST = Path(__file__).resolve().parents[2] / "runtime" / "guest"
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
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: install build-essential")
    program = tmp_path_factory.mktemp("fuzz") / "agent_fuzz"
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE", '-DHYPER_VERSION="fuzz"']
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    files = [str(GUEST / name) for name in SOURCES]
    source = str(Path(__file__).with_name("agent_fuzz.c"))
    subprocess.run(
        ["gcc", *flags, *sanitizers, f"-I{GUEST}", "-o", str(program), source, *files], check=True, timeout=90
    )
    return program


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
