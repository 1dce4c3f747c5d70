"""An exporter without a clock and a listener: a round, or a scrape, when it is told. So that two take turns.

    python -m tests.bench.stepping STATE_DIR ROOT DEADLINE_S

It is told on standard input, a line each, and answers each with one line of numbers:

    round     samples all, writes the exposition's lines: CPU ns, containers with a source that is down
    scrape    joins the lines: CPU ns, wall ns
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collector.rounds import Collector
from collector.watch import Settings
from exporter.main import look_for_garbage
from exporter.server import Application
from tests.fakevm.process import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Stepper:
    """A running one."""

    process: asyncio.subprocess.Process

    async def ask(self, command: str) -> tuple[int, int]:
        """Have it do something, and return its two numbers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n".encode())
        first, second = (await self.process.stdout.readline()).split()
        return int(first), int(second)


@contextlib.asynccontextmanager
async def stepper(state_dir: Path, root: Path, deadline_s: float) -> AsyncIterator[Stepper]:
    """Run one for the time of a test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.stepping", str(state_dir), str(root), str(deadline_s)),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Stepper(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _main(state_dir: Path, root: Path, deadline_s: float) -> None:
    collector = Collector(state_dir, Settings(node="bench", root=root, deadline_s=deadline_s))
    application = Application("0")
    gc.disable()
    with asyncio.Runner() as runner:
        # Its own run() gives a signal handler the task, which CPython makes a text of, with the snapshot in it.
        run = runner.get_loop().run_until_complete
        for line in sys.stdin:
            began, cpu_began = time.perf_counter_ns(), time.process_time_ns()
            if line == "round\n":
                snapshot = run(collector.round())
                application.publish(snapshot)
                look_for_garbage()
                cpu_ns = time.process_time_ns() - cpu_began
                second = sum(1 for one in snapshot.containers.values() if one.down)
            else:
                application.text()
                cpu_ns = time.process_time_ns() - cpu_began
                second = time.perf_counter_ns() - began
            sys.stdout.write(f"{cpu_ns} {second}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
