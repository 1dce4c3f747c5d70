"""Programs for guests that turn against the host: a PID 1 (`hostile.c`), and one that sends any frame (`frames.c`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_WRAPPED = ("command_run", "port_pump", "streams_open", "streams_pump", "log_open", "log_pump", "container_step")


def build(directory: Path) -> Path:
    """Compile it: the sources of the real init, and ours between it and its ports."""
    program = directory / "hostile-init"
    multiarch = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, check=True, text=True).stdout.strip()
    command = ["musl-gcc", "-Os", "-std=c11", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-fno-strict-aliasing"]
    command += ["-D_GNU_SOURCE", '-DHYPER_VERSION="hostile"', "-I", str(ROOT / "runtime/guest")]
    # musl brings no kernel headers: those of the build host come after its own.
    command += ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{multiarch}"]
    command += [f"-Wl,--wrap={name}" for name in _WRAPPED]
    sources = [*sorted((ROOT / "runtime/guest").glob("*.c")), Path(__file__).with_name("hostile.c")]
    subprocess.run([*command, "-o", str(program), *map(str, sources)], check=True, timeout=120)
    return program


def build_frames(directory: Path) -> Path:
    """Compile the sender of frames; it needs nothing of an image."""
    program = directory / "frames"
    source = Path(__file__).with_name("frames.c")
    subprocess.run(["musl-gcc", "-Os", "-static", "-s", "-o", str(program), str(source)], check=True, timeout=60)
    return program


def hostile(port: str, how: str, data: bytes = b"", times: int = 1) -> tuple[str, ...]:
    """Options of `hyper run` that make its guest hostile."""
    return ("-e", f"HOSTILE={port}:{how}:{times}:{data.hex()}")
