"""The real `hyper-exporter` as a process, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "exporter.main")
START_TIMEOUT_S = 20.0


@dataclass
class Exporter:
    """A running exporter. `url` is its root."""

    process: asyncio.subprocess.Process
    url: str
    log: list[str]

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[Mapping[str, str], bytes]:
        """Fetch, in a thread, as the fake VMs live in this loop."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}))  # noqa: S310 -- loopback http

        def fetch() -> tuple[Mapping[str, str], bytes]:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- loopback http
                return {key.lower(): value for key, value in answer.headers.items()}, answer.read()

        return await asyncio.to_thread(fetch)

    async def metrics(self) -> str:
        """The text exposition."""
        return (await self.get("/metrics"))[1].decode()

    async def stats(self) -> list[dict[str, Any]]:
        """The containers of /stats."""
        found: list[dict[str, Any]] = json.loads((await self.get("/stats"))[1])["containers"]
        return found

    async def until(self, pattern: str, timeout_s: float = 15.0) -> str:
        """The text exposition as soon as a line matches."""
        async with asyncio.timeout(timeout_s):
            while True:
                text = await self.metrics()
                if re.search(pattern, text, re.MULTILINE):
                    return text
                await asyncio.sleep(0.05)

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        async with asyncio.timeout(15):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def exporter(
    state_dir: Path, *arguments: str, interval_s: float = 0.2, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Exporter]:
    """Run it on a free port, ready to answer."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--state-dir", str(state_dir), "--listen", "127.0.0.1:0", "--interval", str(interval_s), *arguments),
        cwd=REPOSITORY,
        env={**os.environ, "HYPER_CONFIG": "/nonexistent", **(environment or {})},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log: list[str] = []
    url = None
    async with asyncio.timeout(START_TIMEOUT_S):
        while url is None:
            line = (await process.stderr.readline()).decode()
            assert line, f"the exporter ended: {log}"
            log.append(line)
            if found := re.search(r"serving on (http://\S+)/metrics", line):
                url = found[1]
    draining = asyncio.create_task(_drain(process.stderr, log))
    running = Exporter(process, url, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.end(signal.SIGKILL)
        await draining


async def _drain(stream: asyncio.StreamReader, log: list[str]) -> None:
    while line := await stream.readline():
        log.append(line.decode())
