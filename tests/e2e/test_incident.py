"""The whole way in one test: a process dies, and the container runs again, and the audit log says why."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.host import Daemon, free_port, get, wait_for
from tests.monitoring import alertmanager, prometheus, query

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host


def test_a_container_that_dies_is_seen_told_and_redeployed(host: Host, images: Images, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    program = str(Path(sys.executable).parent / "hyper-remediation")
    controller = Daemon([program], {**host.env, "HYPER_REMEDIATION_LISTEN": address}, tmp_path / "remediation.log")
    controller.start()
    try:
        controller.ready(lambda: get(f"http://{address}/healthz"))
        with (
            alertmanager(tmp_path, f"http://{address}/alertmanager") as alerts,
            prometheus(tmp_path, host.exporter, alerts, address) as url,
        ):
            script = "while [ ! -e /die ]; do sleep 0.1; done; exit 3"
            host.run("--name", "shop", "--label", "hyper.remediation=redeploy", images.busybox, "sh", "-c", script)
            wait_for(lambda: query(url, 'container_state{name="shop",state="running"} == 1'), "seen running")
            assert query(url, 'ALERTS{alertstate="firing", name="shop"}') == []
            first = host.inspect("shop")

            began = time.monotonic()
            host.hyper("exec", "shop", "touch", "/die")
            wait_for(lambda: host.inspect("shop")["state"] == "exited", "the end is noticed")
            assert "Exited (3)" in host.hyper("ps", "-a").stdout
            wait_for(lambda: host.value("container_exit_code", name="shop") == 3, "exit code exported")
            assert host.value("container_state", name="shop", state="exited") == 1
            of_shop = {"filter": 'name="shop"'}
            fired = wait_for(
                lambda: httpx.get(f"{alerts}/api/v2/alerts", params=of_shop).json(), "the alert reaches Alertmanager"
            )
            assert fired[0]["labels"]["alertname"] == "HyperContainerDown"
            assert fired[0]["labels"]["name"] == "shop"

            wait_for(lambda: host.inspect("shop")["state"] == "running", "redeployed", 60)
            seconds = time.monotonic() - began
            again = host.inspect("shop")
            assert again["restarts"] == 1
            assert again["image_digest"] == first["image_digest"]
            assert again["network"]["address"] == first["network"]["address"]
            assert host.hyper("exec", "shop", "ls", "/die", check=False).returncode == 1, "with fresh files"
            wait_for(lambda: host.value("container_restarts_total", name="shop") == 1, "restart count exported")
            wait_for(lambda: not httpx.get(f"{alerts}/api/v2/alerts", params=of_shop).json(), "the alert is resolved")

            socket = httpx.HTTPTransport(uds=str(host.state_dir / "hyperd.sock"))
            with httpx.Client(transport=socket) as client:
                entry = client.get("http://hyperd/v1/audit").json()[0]
            assert (entry["actor"], entry["action"], entry["container"]) == ("remediation", "redeploy", "shop")
            assert "HyperContainerDown" in entry["reason"]
            assert entry["outcome"] == "done"
            decisions = (host.data_dir / "audit/remediation.jsonl").read_text().splitlines()
            ours = [one for one in map(json.loads, decisions) if one.get("container_id") == first["id"]]
            assert any("HyperContainerDown" in json.dumps(one) for one in ours), decisions
            done = wait_for(
                lambda: query(url, 'hyper_remediation_actions_total{outcome="done"} == 1'), "the action is on a metric"
            )
            assert len(done) == 1
            print(f"\nfrom the exit of the process to a running container: {seconds:.1f} s")
    finally:
        controller.stop()
