"""Run a program: with a deadline, bounded output, and nothing left of it when the caller goes away.

A program runs in a session of its own and dies with this process (`setpriv --pdeathsig`), also when this process is
killed with -9. On cancellation, on the deadline and on too much output its whole process group is killed and reaped
before the exception goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

STDOUT_LIMIT_BYTES = 8 << 20
STDERR_KEPT_BYTES = 16 << 10
DRAIN_TIMEOUT_S = 1.0
TERMINAL_ROWS, TERMINAL_COLUMNS = 100, 200  # enough for a bar a line
_CHUNK_BYTES = 64 << 10

DEBIAN_PACKAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "busybox": "busybox-static",
    "dump.erofs": "erofs-utils",
    "fsck.erofs": "erofs-utils",
    "ip": "iproute2",
    "mke2fs": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "nft": "nftables",
    "prlimit": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "zstd": "zstd",
}


class OutputTooLarge(Exception):  # noqa: N818 -- reads as what happened, and callers map it to an error of their own
    """The program wrote more to stdout than the caller takes; it was killed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended. `returncode` is negative for a signal; `stderr` is the last 16 KiB of it."""

    program: str
    returncode: int
    stdout: bytes
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of stderr that says anything: where most programs put their error."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        if lines:
            return lines[-1]
        return f"{self.program} ended with {self.returncode} and said nothing"


def find(program: str) -> str:
    """The absolute path of a program.

    Raises:
        HostUnable: it is not installed; the message names the Debian package.
    """
    path = shutil.which(program)
    if path is None:
        package = DEBIAN_PACKAGES.get(program)
        remedy = f"install it: apt-get install {package}" if package else "install it, or put its directory on PATH"
        raise HostUnable(f"the program {program} is not on this host; {remedy}")
    return path


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdout_limit_bytes: int = STDOUT_LIMIT_BYTES,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    memory_limit_bytes: int | None = None,
    file_limit_bytes: int | None = None,
    pass_fds: Sequence[int] = (),
    on_start: Callable[[int], None] | None = None,
    on_output: Callable[[bytes], None] | None = None,
    on_terminal: Callable[[bytes], None] | None = None,
) -> Finished:
    """Run a program to its end; a non-zero exit is a result, not an exception.

    Args:
        argv: Program and arguments; no shell.
        timeout_s: After this it is killed.
        stdout_limit_bytes: More on stdout kills it. Of stderr the end is kept.
        env: Added to this process's environment.
        cwd: Its working directory.
        memory_limit_bytes: `RLIMIT_AS`. Go programs reserve much more than they use: not for them.
        file_limit_bytes: `RLIMIT_FSIZE`, the largest file it may write.
        pass_fds: Descriptors that it gets: a secret in one is in no file and in no argument.
        on_start: Told of its process id.
        on_output: Told of each piece of stdout and stderr as it comes; stdout is not kept then, and has no limit.
        on_terminal: Its stdout is a terminal, and this is told of each piece of it; some programs draw bars only there.

    Raises:
        HostUnable: the program is not installed.
        TimeoutError: it did not end in time.
        OutputTooLarge: it wrote more than the caller takes.
    """
    command = [find("setpriv"), "--pdeathsig", "KILL", find(argv[0]), *argv[1:]]
    limits = [f"--as={memory_limit_bytes}"] if memory_limit_bytes is not None else []
    limits += [f"--fsize={file_limit_bytes}"] if file_limit_bytes is not None else []
    if limits:
        command = [find("prlimit"), *limits, *command]
    with contextlib.ExitStack() as stack:
        terminal = None if on_terminal is None else stack.enter_context(contextlib.closing(_Terminal()))
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if terminal is None else terminal.inside,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                pass_fds=tuple(pass_fds),
            )
        )
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Left to itself asyncio would kill the program alone, and wait for as long as any child holds a pipe.
            await asyncio.shield(_end(await starting))
            raise
        if on_start is not None:
            on_start(process.pid)
        if terminal is not None and on_terminal is not None:
            reading_out = asyncio.create_task(terminal.read(on_terminal))
        elif on_output is None:
            reading_out = asyncio.create_task(_read_all(_piped(process.stdout), stdout_limit_bytes))
        else:
            reading_out = asyncio.create_task(_read_tail(_piped(process.stdout), on_output))
        reading_err = asyncio.create_task(_read_tail(_piped(process.stderr), on_output))
        try:
            async with asyncio.timeout(timeout_s):
                stdout, stderr = await asyncio.gather(reading_out, reading_err)
                returncode = await process.wait()
        except BaseException:
            await asyncio.shield(_end(process, reading_out, reading_err))
            raise
    return Finished(argv[0], returncode, stdout, stderr.decode(errors="replace"))


class _Terminal:
    """A terminal of our own, for a program to write to."""

    def __init__(self) -> None:
        self._outside, self.inside = os.openpty()
        fcntl.ioctl(self.inside, termios.TIOCSWINSZ, struct.pack("HHHH", TERMINAL_ROWS, TERMINAL_COLUMNS, 0, 0))
        self._transport: asyncio.BaseTransport | None = None

    async def read(self, tell: Callable[[bytes], None]) -> bytes:
        """Tell of what is written to it until nobody has it open any more. Called once the program has begun."""
        self._close_inside()
        stream = asyncio.StreamReader()
        file = os.fdopen(self._outside, "rb", buffering=0)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), file)
        with contextlib.suppress(OSError):  # EIO: that was the last one to close it
            return await _read_tail(stream, tell)
        return b""

    def close(self) -> None:
        """Give it up, wherever things stand."""
        self._close_inside()
        if self._transport is not None:
            self._transport.close()
        elif self._outside >= 0:
            os.close(self._outside)
        self._outside = -1

    def _close_inside(self) -> None:
        if self.inside >= 0:
            os.close(self.inside)
        self.inside = -1


async def _end(process: asyncio.subprocess.Process, *readers: asyncio.Task[bytes]) -> None:
    """Kill the process group, reap, and let the pipes close: what is read no more would be left to the collector."""
    if process.returncode is None:  # not reaped, or not seen to be: its id cannot be another's yet
        with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
            os.killpg(process.pid, signal.SIGKILL)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    # Read on to the end of both pipes: while one is full, asyncio may not tell that the process has ended.
    with contextlib.suppress(TimeoutError):  # somebody outside the group holds a pipe
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
            await asyncio.gather(process.wait(), *map(_read_tail, streams))


def _piped(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    assert stream is not None  # noqa: S101 -- for the type checker: it was asked for as a pipe
    return stream


async def _read_all(stream: asyncio.StreamReader, limit_bytes: int) -> bytes:
    parts = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        parts += chunk
        if len(parts) > limit_bytes:
            raise OutputTooLarge(f"more than {limit_bytes} bytes")
    return bytes(parts)


async def _read_tail(stream: asyncio.StreamReader, tell: Callable[[bytes], None] | None = None) -> bytes:
    tail = bytearray()
    while chunk := await stream.read(_CHUNK_BYTES):
        if tell is not None:
            tell(chunk)
        tail += chunk
        del tail[:-STDERR_KEPT_BYTES]
    return bytes(tail)
