"""Programs of the guest's own sources, built with sanitizers on the host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

GUEST = Path(__file__).resolve().parents[2] / "runtime" / "guest"


def built(harness: str, sources: Iterable[str], directory: Path, *more: str) -> Path:
    """The program of a harness of this directory and these sources of the guest; `more` are options of the compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc: install build-essential")
    program = directory / Path(harness).stem
    flags = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE", *more]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    files = [str(Path(__file__).with_name(harness)), *(str(GUEST / name) for name in sources)]
    subprocess.run(["gcc", *flags, *sanitizers, f"-I{GUEST}", "-o", str(program), *files], check=True, timeout=90)
    return program
