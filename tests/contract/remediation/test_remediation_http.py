from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.contract.remediation.harness import Controller, FakeHyperd, until, webhook


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "body"),
        (b"{", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b'{"version":"3","groupKey":"","alerts":[]}', 400, "version"),
        (json.dumps({**webhook(), "alerts": [{"status": "firing"}]}).encode(), 400, "alerts.0.labels"),
        (json.dumps({**webhook(), "alerts": webhook(copies=1001)["alerts"]}).encode(), 400, "alerts"),
        (json.dumps(webhook(labels={"x": "y" * 5000})).encode(), 400, "alerts.0.labels.x"),
        (json.dumps(webhook(starts="yesterday")).encode(), 400, "alerts.0.startsAt"),
        (b" " * (2 << 20), 413, "1048576"),
    ],
)
def test_garbage_is_refused_in_one_line(
    body: bytes, status: int, says: str, hyperd: FakeHyperd, shared_controller: Controller
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{shared_controller.url}/alertmanager", content=body, headers=headers)
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert says in message
    assert "\n" not in message
    assert len(message) < 500
    assert hyperd.reads == 0


def test_a_web_page_cannot_post_an_alert(shared_controller: Controller) -> None:
    answer = httpx.post(f"{shared_controller.url}/alertmanager", content=json.dumps(webhook()))
    assert answer.status_code == 415
    assert httpx.get(f"{shared_controller.url}/audit", params={"limit": 0}).status_code == 400


@pytest.mark.parametrize("path", ["waiting", "audit", "metrics"])
def test_a_name_that_a_web_page_gave_our_address_reads_nothing(shared_controller: Controller, path: str) -> None:
    url = f"{shared_controller.url}/{path}"
    refused = httpx.get(url, headers={"Host": "evil.example:9721"})
    assert (refused.status_code, "Host" in refused.json()["error"]["message"]) == (403, True)
    for host in ("localhost:9721", "127.0.0.1", "[::1]:9721"):
        assert httpx.get(url, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["stop", "resume", "approve/0"])
def test_nobody_fills_its_memory(shared_controller: Controller, path: str) -> None:
    """The body is read before the token is looked at."""
    assert shared_controller.process is not None
    status = Path(f"/proc/{shared_controller.process.pid}/status")

    def most_kib() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))

    before = most_kib()
    content = (b" " * (1 << 20) for _ in range(64))
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{shared_controller.url}/{path}", content=content, headers=headers)
    assert answer.status_code == 413
    assert most_kib() - before < 16 << 10
    assert not httpx.get(f"{shared_controller.url}/healthz").json()["stopped"]


def test_the_token_is_asked_for(hyperd: FakeHyperd, controller: Controller) -> None:
    token = controller.root / "token"
    token.write_text("a-long-enough-secret\n")
    controller.start(HYPER_REMEDIATION_TOKEN_FILE=str(token))
    assert controller.post(webhook()).status_code == 401
    assert controller.post(webhook(), Authorization="Bearer wrong").status_code == 401
    assert httpx.get(f"{controller.url}/audit").status_code == 401
    assert controller.audit() == []
    assert controller.post(webhook(), Authorization="Bearer a-long-enough-secret").status_code == 200
    until(controller.outcomes)
    assert len(hyperd.redeploys) == 1


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HYPER_REMEDIATION_LISTEN": "0.0.0.0:0"}, "set remediation_token_file"),
        ({"HYPER_REMEDIATION_LISTEN": "nowhere"}, "not host:port"),
        ({"HYPER_REMEDIATION_TOKEN_FILE": "/nonexistent"}, "No such file"),
        ({"HYPER_REMEDIATION_TOKEN_FILE": "/dev/null"}, "characters are needed"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(environment: dict[str, str], says: str, controller: Controller) -> None:
    log = controller.root / "log"
    assert controller.spawn(log, **environment).wait(30) == 2
    assert says in log.read_text()
    assert len(log.read_text().splitlines()) == 1


def test_a_second_controller_is_refused(controller: Controller) -> None:
    controller.start()
    log = controller.root / "log"
    assert controller.spawn(log).wait(30) == 1
    assert "another remediation controller" in log.read_text()
