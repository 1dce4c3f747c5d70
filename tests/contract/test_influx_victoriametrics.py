"""InfluxDB v2 writes against a real server that takes them: VictoriaMetrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakevm.process import exporter
from tests.fakevm.scenario import fake_vm, host_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fakevm import FakeVm


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.asynccontextmanager
async def victoriametrics(port: int, data: Path) -> AsyncIterator[str]:
    program = shutil.which("victoria-metrics")
    assert program, "install the package victoria-metrics"
    process = await asyncio.create_subprocess_exec(
        program,
        f"-httpListenAddr=127.0.0.1:{port}",
        f"-storageDataPath={data}",
        "-loggerLevel=ERROR",
        "-search.latencyOffset=0s",
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    await asyncio.to_thread(_fetch, f"{url}/health")
                    break
                assert process.returncode is None, "victoria-metrics ended"
                await asyncio.sleep(0.05)
        yield url
    finally:
        process.terminate()
        await process.wait()


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 -- loopback http
        return bytes(answer.read())


async def series(url: str, match: str) -> list[dict[str, Any]]:
    """All samples that are stored, once the server has made them visible."""
    await asyncio.to_thread(_fetch, f"{url}/internal/force_flush")
    found = await asyncio.to_thread(_fetch, f"{url}/api/v1/export?" + urllib.parse.urlencode({"match[]": match}))
    return [json.loads(line) for line in found.splitlines()]


async def until_stored(url: str, match: str, samples: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 30
    while True:
        found = await series(url, match)
        if sum(len(one["values"]) for one in found) >= samples:
            return found
        assert time.monotonic() < deadline, f"{match}: only {found}"
        await asyncio.sleep(0.1)


async def until_all_stored(url: str, names: set[str]) -> None:
    """Waits until something of each name is stored."""
    deadline = time.monotonic() + 30
    while missing := names - {one["metric"]["__name__"] for one in await series(url, '{__name__!=""}')}:
        assert time.monotonic() < deadline, f"not stored: {sorted(missing)}"
        await asyncio.sleep(0.1)


async def until_answered(url: str, query: str) -> list[str]:
    """Values of a PromQL query, as soon as it has any."""
    deadline = time.monotonic() + 40
    while True:
        parameters = urllib.parse.urlencode({"query": query, "nocache": 1, "time": time.time() + 1})
        answer = json.loads(await asyncio.to_thread(_fetch, f"{url}/api/v1/query?{parameters}"))
        if found := [one["value"][1] for one in answer["data"]["result"]]:
            return found
        assert time.monotonic() < deadline, f"no answer to {query}"
        await asyncio.sleep(0.1)


@pytest.fixture
async def vm(tmp_path: Path) -> AsyncIterator[FakeVm]:
    one = fake_vm(tmp_path / "state", "cgroup-v2")
    await one.start()
    yield one
    await one.stop()


def _environment(port: int, tmp_path: Path) -> dict[str, str]:
    token = tmp_path / "token"
    token.write_text("secret\n")
    return {
        "HYPER_INFLUX_URL": f"http://127.0.0.1:{port}",
        "HYPER_DATA_DIR": str(tmp_path / "data"),
        "HYPER_INFLUX_TOKEN_FILE": str(token),
    }


async def test_samples_arrive_under_the_prometheus_names(vm: FakeVm, tmp_path: Path, port: int) -> None:
    root = str(host_root("cgroup-v2", tmp_path / "root"))
    async with (
        victoriametrics(port, tmp_path / "storage") as url,
        exporter(tmp_path / "state", "--root", root, "--deep", environment=_environment(port, tmp_path)) as process,
    ):
        text = await process.until(r"^hyper_influx_written_total [1-9]")
        (rss,) = await until_stored(url, '{__name__="container_memory_rss"}', 1)
        assert rss["metric"]["id"] == vm.record.id
        assert rss["metric"]["namespace"] == "shop"
        assert rss["metric"]["pod"] == "store"
        assert set(rss["values"]) == {118784}
        (usage,) = await until_stored(url, '{__name__="container_cpu_usage_seconds_total",cpu="total"}', 1)
        assert set(usage["values"]) == {13.662434}
        parts = await until_stored(url, '{__name__="microvm_host_memory_bytes"}', 4)
        assert {one["metric"]["part"] for one in parts} == {"guest_ram", "template_shared", "vmm", "page_cache"}
        assert await until_answered(url, 'container_spec_memory_limit_bytes{namespace="shop"}') == ["134217728"]
        for later in ("microvm_starved_by", "microvm_view_residual_seconds"):  # from the second sample on
            await until_stored(url, f'{{__name__="{later}"}}', 1)
        names = set(re.findall(r"^([a-z][a-z_0-9]+)", text, re.MULTILINE))
        assert {
            "hyper_exporter_cpu_seconds_total",
            "hyper_influx_written_total",
            "hyper_scrape_duration_seconds",
        } < names
        # What a view gave and what the exporter says of itself are of the round in which they were first to be seen.
        await until_all_stored(url, names)
        assert await process.end(signal.SIGTERM) == 0


async def _missing(url: str, times_ms: list[int]) -> list[int]:
    # A file is named by the time of its snapshot, as the host's metrics are; a container's sample is a little older.
    stored = [at for one in await series(url, '{__name__="machine_memory_bytes"}') for at in one["timestamps"]]
    return [at for at in times_ms if not any(abs(at - there) <= 1 for there in stored)]


async def test_an_outage_with_a_restart_in_it_loses_nothing(vm: FakeVm, tmp_path: Path, port: int) -> None:
    root = str(host_root("cgroup-v2", tmp_path / "root"))
    environment = _environment(port, tmp_path)
    spool = tmp_path / "data/influx-spool"
    async with exporter(tmp_path / "state", "--root", root, environment=environment) as process:
        text = await process.until(r"^hyper_influx_failures_total [1-9]")
        assert re.search(r"^hyper_influx_backlog_bytes [1-9]", text, re.MULTILINE)
        assert re.search(r"^hyper_influx_written_total 0$", text, re.MULTILINE)
        deadline = time.monotonic() + 15
        while len(list(spool.glob("*.lp"))) < 5:
            assert time.monotonic() < deadline, "nothing is spooled"
            await process.metrics()
        assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    spooled = sorted(int(path.name.partition("-")[0]) // 1_000_000 for path in spool.glob("*.lp"))
    assert len(spooled) >= 5
    async with (
        victoriametrics(port, tmp_path / "storage") as url,
        exporter(tmp_path / "state", "--root", root, environment=environment) as process,
    ):
        await process.until(r"^hyper_influx_written_total ([6-9]|\d\d)")
        deadline = time.monotonic() + 20
        while missing := await _missing(url, spooled):
            assert time.monotonic() < deadline, f"lost: {missing} of {spooled}"
        await process.until(r"^hyper_influx_backlog_bytes 0$")
        text = await process.metrics()
        assert re.findall(r'^hyper_influx_dropped_total\{reason="\w+"\} (\d+)$', text, re.MULTILINE) == ["0"] * 4
