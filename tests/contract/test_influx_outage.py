"""An InfluxDB that is away, then answers 503, then is back, with a `kill -9` of the exporter in the middle.

`HYPER_OUTAGE_S` is how long it is away altogether. Every sample finds the VMs 10 ms of CPU time older than the one
before, so the values that arrive tell by themselves which samples the guests gave and whether one is missing. What a
guest gave too late for its round is missing, too: such a round says of itself that the guest was down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.server
import os
import re
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.fakevm import running
from tests.fakevm.fleet import WORK_USEC, cpu_usec, lay_out
from tests.fakevm.process import exporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fakevm.fleet import FleetVm
    from tests.fakevm.process import Exporter

OUTAGE_S = float(os.environ.get("HYPER_OUTAGE_S", "6"))
INTERVAL_S = 0.2
VMS = 3
_DOWN = re.compile(r"^microvm_source,id=(\w+),\S*source=guest\S* up=0\.0 ", re.MULTILINE)
_LINE = re.compile(r"(?P<series>container_cpu,(?:\\.|[^ \\])*) (?P<fields>\S+) (?P<at_ns>\d+)")


class Database(http.server.ThreadingHTTPServer):
    """Takes v2 writes while `status` is 204, and keeps them in the order in which they came."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = 204
        self.refused = 0
        self.bodies: list[str] = []

    def series(self) -> dict[str, list[tuple[int, int]]]:
        """Nanoseconds and CPU microseconds of `container_cpu_usage_seconds_total`, by series, as they came."""
        found = defaultdict(list)
        for line in "".join(self.bodies).splitlines():
            if (parts := _LINE.fullmatch(line)) and (
                used := re.search(r"usage_seconds_total=([\d.]+)", parts["fields"])
            ):
                found[parts["series"]].append((int(parts["at_ns"]), round(float(used[1]) * 1e6)))
        return found

    def rounds_without_guest(self) -> dict[str, int]:
        """How many rounds said that the guest was down, by the id of the container."""
        return Counter(_DOWN.findall("".join(self.bodies)))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Database

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status = self.server.status
        if status == 204:
            assert self.path.startswith("/api/v2/write?")
            self.server.bodies.append(body.decode() + "\n")
        else:
            self.server.refused += 1
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def database(port: int) -> Iterator[Database]:
    server = Database(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def until(what: str, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def go_on(vms: list[FleetVm]) -> None:
    """A third of the outage, in rounds."""
    enough = vms[-1].samples + max(3, round(OUTAGE_S / 3 / INTERVAL_S))
    await until("rounds go on", lambda: vms[-1].samples >= enough, 30 + OUTAGE_S)


async def backlog(process: Exporter) -> int:
    found = re.search(r"^hyper_influx_backlog_bytes (\S+)$", await process.metrics(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.timeout(90 + 2 * OUTAGE_S)
async def test_an_outage_with_a_kill_in_it_leaves_no_gap(tmp_path: Path, port: int) -> None:
    vms = lay_out(tmp_path, VMS)
    spool = tmp_path / "data/influx-spool"
    environment = {"HYPER_INFLUX_URL": f"http://127.0.0.1:{port}", "HYPER_DATA_DIR": str(tmp_path / "data")}

    def run() -> contextlib.AbstractAsyncContextManager[Exporter]:
        return exporter(
            tmp_path / "state", "--root", str(tmp_path / "root"), interval_s=INTERVAL_S, environment=environment
        )

    async with contextlib.AsyncExitStack() as serving:
        for vm in vms:
            serving.callback(os.close, vm.host_cpu_stat)
            await serving.enter_async_context(running(vm))
        process = await serving.enter_async_context(run())
        await process.until(r"^hyper_influx_failures_total [1-9]")
        backlogs = [await backlog(process)]
        await go_on(vms)
        backlogs.append(await backlog(process))
        with database(port) as server:
            server.status = 503
            await until("nothing was tried again", lambda: server.refused > 0, 60)
            await go_on(vms)
            backlogs.append(await backlog(process))
            # Each round is one file. What was sampled by now is on disk; what comes until the kill may be.
            on_disk = vms[-1].samples - 1
            await until("not all is spooled", lambda: len([*spool.glob("*.lp")]) >= on_disk)
            assert await process.end(signal.SIGKILL) == -signal.SIGKILL
            killed_at = max(vm.samples for vm in vms)
            async with run() as again:
                backlogs.append(await backlog(again))
                await go_on(vms)
                backlogs.append(await backlog(again))
                assert server.bodies == []
                assert backlogs == sorted(set(backlogs)), "it only grows while nothing is taken"
                server.status = 204
                await again.until(r"^hyper_influx_backlog_bytes 0$", 60 + OUTAGE_S)
                last = vms[-1].samples
                await until("the last are not there", lambda: _samples(server, last))
                text = await again.metrics()
                assert await again.end() == 0
            stored = server.series()
    assert re.findall(r'^hyper_influx_dropped_total\{reason="\w+"\} (\d+)$', text, re.MULTILINE) == ["0"] * 4
    assert len(stored) == VMS
    down = server.rounds_without_guest()
    print(f"\n{sum(down.values())} rounds without a guest's sample, of {VMS} times {last}")
    for series, samples in stored.items():
        times = [at_ns for at_ns, _ in samples]
        assert times == sorted(set(times)), "oldest first, none twice"
        numbers = [(used - cpu_usec(0)) // WORK_USEC for _, used in samples]
        missing = set(range(1, last + 1)) - set(numbers)
        assert numbers == sorted(set(numbers))
        lost = {number for number in missing if not on_disk < number <= killed_at}
        [container_id] = re.findall(r",id=(\w+)", series)
        assert len(lost) <= down[container_id], f"lost: {sorted(lost)}"


def _samples(server: Database, number: int) -> bool:
    found = server.series().values()
    return len(found) == VMS and all(samples[-1][1] >= cpu_usec(number) for samples in found)
