"""Real Prometheus and Alertmanager with our rules and routes, quick enough for a test."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from alerts import generate
from alerts.thresholds import Routing, Thresholds
from tests.host import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Thresholds(evaluation_interval="1s", slo_interval="1s", container_down_for="2s", watchdog=False)


@contextmanager
def program(log: Path, marker: str, *command: str) -> Iterator[str]:
    """A server of the Prometheus family; yields the URL that it says it listens on."""
    assert shutil.which(command[0]), f"install {command[0]}"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        pattern = re.compile(marker + r".*?address=(127\.0\.0\.1:\d+)")
        wait_for(lambda: pattern.search(log.read_text()) or process.poll() is not None, f"{command[0]} listens")
        found = pattern.search(log.read_text())
        assert found, log.read_text()
        yield f"http://{found[1]}"
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def alertmanager(root: Path, webhook_url: str) -> Iterator[str]:
    config = root / "alertmanager.yml"
    generate.write_alertmanager(config, Routing(webhook_url=webhook_url, group_wait="0s", group_interval="1s"))
    command = [
        "prometheus-alertmanager", f"--config.file={config}", f"--storage.path={root / 'alertmanager'}",
        "--cluster.listen-address=", "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    with program(root / "alertmanager.log", "Listening on", *command) as url:
        yield url


@contextmanager
def prometheus(
    root: Path, exporter: str, alertmanager_url: str, remediation: str | None = None, thresholds: Thresholds = QUICK
) -> Iterator[str]:
    generate.write_rules(root / "hyper.rules.yml", thresholds)
    generate.write_prometheus(
        root / "prometheus.yml",
        thresholds,
        rule_file=root / "hyper.rules.yml",
        alertmanager_address=alertmanager_url.removeprefix("http://"),
        exporter_address=exporter,
        remediation_address=remediation,
        scrape_interval="1s",
    )
    command = [
        "prometheus", f"--config.file={root / 'prometheus.yml'}", f"--storage.tsdb.path={root / 'prometheus'}",
        "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    with program(root / "prometheus.log", "Listening on", *command) as url:
        wait_for(lambda: httpx.get(f"{url}/-/ready").status_code == 200, "Prometheus is ready")
        yield url


def query(url: str, expr: str, client: httpx.Client | None = None) -> list[dict[str, Any]]:
    answer = (client or httpx).post(f"{url}/api/v1/query", data={"query": expr}).json()
    assert answer["status"] == "success", f"{expr}: {answer}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result
