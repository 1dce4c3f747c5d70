from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from alerts.generate import write_alertmanager
from alerts.thresholds import Routing
from tests.contract.remediation.harness import ID, Controller, FakeHyperd, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def alertmanager(root: Path, webhook_url: str) -> Iterator[str]:
    config = root / "alertmanager.yml"
    write_alertmanager(config, Routing(webhook_url=webhook_url, group_wait="0s", group_interval="1s"))
    log = root / "alertmanager.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                "prometheus-alertmanager", f"--config.file={config}", f"--storage.path={root / 'am'}",
                "--cluster.listen-address=", "--web.listen-address=127.0.0.1:0",
            ],
            stdout=file, stderr=file,
        )  # fmt: skip
    try:
        until(lambda: "Listening on" in log.read_text() or process.poll() is not None)
        line = next((line for line in log.read_text().splitlines() if "Listening on" in line), log.read_text())
        yield "http://" + line.partition("address=")[2].split()[0]
    finally:
        process.terminate()
        process.wait(20)


def test_a_real_alertmanager_brings_an_alert_to_a_redeploy(hyperd: FakeHyperd, controller: Controller) -> None:
    assert shutil.which("prometheus-alertmanager"), "install prometheus-alertmanager"
    controller.start()
    labels = {"alertname": "HyperContainerDown", "id": ID, "name": "web", "namespace": "default", "container": "web",
              "severity": "page", "remediation": "redeploy"}  # fmt: skip
    with alertmanager(controller.root, f"{controller.url}/alertmanager") as url:
        pairs = [f"{key}={value}" for key, value in labels.items()]
        subprocess.run(["amtool", f"--alertmanager.url={url}", "alert", "add", *pairs], check=True)
        until(controller.outcomes)
        assert controller.outcomes() == ["done"]
        assert len(hyperd.redeploys) == 1
        people = {**labels, "alertname": "HyperDiskFull"}
        del people["remediation"]
        httpx.post(f"{url}/api/v2/alerts", json=[{"labels": people}]).raise_for_status()
        httpx.post(f"{url}/api/v2/alerts", json=[{"labels": {**labels, "name": "db"}}]).raise_for_status()
        until(lambda: "container_mismatch" in controller.reasons())
        assert "no_action_for_alert" not in controller.reasons(), "alerts for people do not go to the controller"
