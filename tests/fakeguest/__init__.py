"""Programs for guests that misbehave: a PID 1 (`hostile.c`), and such as need nothing of an image.

`frames.c` sends any frame, `hog.c` takes all memory of its guest.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_WRAPPED = ("command_run", "port_pump", "streams_open", "streams_pump", "log_open", "log_pump", "container_step")


def build(directory: Path) -> Path:
    """Compile it: the sources of the real init, and ours between it and its ports."""
    program = directory / "hostile-init"
    command = ["musl-gcc", "-Os", "-std=c11", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-fno-strict-aliasing"]
    command += ["-D_GNU_SOURCE", '-DHYPER_VERSION="hostile"', "-I", str(ROOT / "runtime/guest")]
    # musl brings no kernel headers: those of the build host come after its own.
    command += ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{_multiarch()}"]
    command += [f"-Wl,--wrap={name}" for name in _WRAPPED]
    sources = [*sorted((ROOT / "runtime/guest").glob("*.c")), Path(__file__).with_name("hostile.c")]
    subprocess.run([*command, "-o", str(program), *map(str, sources)], check=True, timeout=120)
    return program


def build_program(name: str, directory: Path) -> Path:
    """Compile one that needs nothing of an image."""
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{_multiarch()}"]
    command = ["musl-gcc", "-Os", "-static", "-s", *headers, "-o", str(program), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return program


def _multiarch() -> str:
    return subprocess.run(["gcc", "-print-multiarch"], capture_output=True, check=True, text=True).stdout.strip()


def hostile(port: str, how: str, data: bytes = b"", times: int = 1) -> tuple[str, ...]:
    """Options of `hyper run` that make its guest hostile."""
    return ("-e", f"HOSTILE={port}:{how}:{times}:{data.hex()}")
