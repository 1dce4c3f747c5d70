"""The controller as a process of its own, against a hyperd that speaks the REST API on a real unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from alerts.generate import write_alertmanager
from alerts.thresholds import Routing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ID = "3f" * 32


@dataclass
class FakeHyperd:
    """The three answers of hyperd that matter here, and the ways in which they go wrong."""

    socket: Path
    state: str = "exited"
    desired: str = "running"
    epoch: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = 3
    redeploys: list[dict[str, Any]] = field(default_factory=list)
    posts: int = 0
    reads: int = 0
    mode: str = "ok"  # ok; busy: 503 and nothing done; mute: done, and never answered; broken: 500 after it was done
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    def container(self) -> dict[str, Any]:
        return {
            "id": ID, "name": "web", "image": "nginx", "image_digest": "sha256:00", "args": [], "state": self.state,
            "desired": self.desired, "status": "", "epoch": self.epoch, "labels": self.labels, "tenant": "default",
            "project": None, "exit_code": self.exit_code, "oom_killed": False, "restarts": self.epoch - 1,
        }  # fmt: skip

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/containers/{ref}")
        async def read(ref: str) -> Response:
            self.reads += 1
            if ref not in {ID, "web"}:
                error = {"code": "not_found", "message": f"no container {ref}", "field": None}
                return JSONResponse({"error": error}, status_code=404)
            return JSONResponse(self.container())

        @app.post("/v1/containers/{ref}/redeploy")
        async def redeploy(ref: str, request: Request) -> Response:
            assert ref == ID
            body = await request.json()
            assert set(body) == {"actor", "reason"}
            self.posts += 1
            if self.mode == "busy":
                error = {"code": "host_unable", "message": "no kernel", "field": None}
                return JSONResponse({"error": error}, status_code=503)
            self.redeploys.append(body)
            self.epoch += 1
            self.state = "exited" if self.mode == "broken" else "running"
            if self.mode == "broken":
                return JSONResponse({"error": {"code": "internal", "message": "guest died"}}, status_code=500)
            while self.mode == "mute" and not await request.is_disconnected():  # noqa: ASYNC110 -- no event for it
                await asyncio.sleep(0.01)
            return JSONResponse(self.container())

        return app

    def start(self) -> None:
        config = uvicorn.Config(self.app(), uds=str(self.socket), log_config=None, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until(lambda: self._server is not None and self._server.started)

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(20)
        self._server = None
        self.socket.unlink(missing_ok=True)


def until(condition: Callable[[], object], deadline_s: float = 30.0) -> Any:
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)  # between two looks at the condition, never instead of one
    return value


@dataclass
class Controller:
    """`hyper-remediation` as a process."""

    root: Path
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    starts: int = 0

    def start(self, *arguments: str, **environment: str) -> None:
        self.starts += 1
        log = self.root / f"controller-{self.starts}.log"
        self.process = self.spawn(log, *arguments, **environment)
        marker = "listening on 127.0.0.1:"
        process = self.process
        until(lambda: marker in log.read_text() or process.poll() is not None)
        assert marker in log.read_text(), log.read_text()
        self.url = "http://127.0.0.1:" + log.read_text().partition(marker)[2].split()[0]
        until(self.healthy)

    def spawn(self, log: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HYPER_")},
            "HYPER_CONFIG": str(self.root / "none.toml"),
            "HYPER_STATE_DIR": str(self.root),
            "HYPER_DATA_DIR": str(self.root / "data"),
            "HYPER_REMEDIATION_LISTEN": "127.0.0.1:0",
            **environment,
        }
        with log.open("wb") as file:
            command = [sys.executable, "-m", "alerts.remediation.main", *arguments]
            return subprocess.Popen(command, env=env, stdout=file, stderr=file)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    def idle(self) -> bool:
        return bool(httpx.get(f"{self.url}/healthz").json()["pending"] == 0)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def post(self, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/alertmanager", json=body, headers=headers)

    def audit(self) -> list[dict[str, Any]]:
        path = self.root / "data/audit/remediation.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def outcomes(self) -> list[str]:
        return [line["outcome"] for line in self.audit() if line["kind"] == "outcome"]

    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.audit() if line["kind"] == "decision"]


def webhook(*, status: str = "firing", name: str = "HyperContainerDown", starts: str = "2026-01-01T00:00:00Z",
            labels: dict[str, str] | None = None, copies: int = 1) -> dict[str, Any]:  # fmt: skip
    given = {"alertname": name, "id": ID, "name": "web", "severity": "page"} if labels is None else labels
    alert = {"status": status, "labels": given, "annotations": {}, "startsAt": starts,
             "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "c0ffee0123456789"}  # fmt: skip
    return {"version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": status, "receiver": "remediation",
            "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "",
            "alerts": [alert] * copies}  # fmt: skip


def _at_least(controller: Controller, count: int) -> Callable[[], bool]:
    return lambda: len(controller.reasons()) >= count


@pytest.fixture
def hyperd(tmp_path: Path) -> Iterator[FakeHyperd]:
    fake = FakeHyperd(tmp_path / "hyperd.sock")
    fake.start()
    yield fake
    fake.mode = "ok"
    fake.stop()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    program = Controller(tmp_path)
    yield program
    if program.process is not None and program.process.poll() is None:
        program.kill()


def test_one_firing_alert_is_one_redeploy_however_often_it_is_told(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    for _ in range(5):
        assert controller.post(webhook(copies=3)).json() == {"accepted": 3}
    until(controller.idle)
    assert len(hyperd.redeploys) == 1
    assert hyperd.redeploys[0]["actor"] == "remediation"
    assert "HyperContainerDown" in hyperd.redeploys[0]["reason"]
    assert "exit code 3" in hyperd.redeploys[0]["reason"]
    hyperd.state = "exited"  # down again, but this is still the same firing of the same alert
    controller.post(webhook())
    until(controller.idle)
    assert hyperd.posts == 1
    assert controller.reasons().count("container_down") == 1
    assert set(controller.reasons()) == {"container_down", "duplicate"}
    assert len(controller.reasons()) == 16
    assert controller.outcomes() == ["done"]
    intent = next(line for line in controller.audit() if line["reason"] == "container_down")
    assert (intent["container_id"], intent["epoch"], intent["action"]) == (ID, 1, "redeploy")
    assert controller.end() == 0


def test_the_cooldown_holds_back_a_new_alert_also_after_a_restart(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    controller.post(webhook())
    until(controller.outcomes)
    assert controller.end() == 0
    controller.start()
    hyperd.state = "exited"
    controller.post(webhook(starts="2026-01-01T01:00:00Z"))
    until(lambda: len(controller.reasons()) == 2)
    assert controller.reasons() == ["container_down", "cooldown"]
    assert hyperd.posts == 1
    metrics = httpx.get(f"{controller.url}/metrics").text
    assert 'hyper_remediation_decisions_total{decision="skip",reason="cooldown"} 1.0' in metrics
    assert "hyper_remediation_last_action_timestamp_seconds" in metrics


def test_what_calls_for_no_action_gets_none_and_is_audited(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.start()
    stop = controller.root / "data/remediation.stop"
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("resolved", {}, webhook(status="resolved")),
        ("no_action_for_alert", {}, webhook(name="HyperOomKill")),
        ("no_container_named", {}, webhook(labels={"alertname": "HyperContainerDown", "id": "../../etc"})),
        ("container_unknown", {}, webhook(labels={"alertname": "HyperContainerDown", "name": "other"})),
        ("container_mismatch", {}, webhook(labels={"alertname": "HyperContainerDown", "id": ID, "name": "db"})),
        ("wanted_stopped", {"desired": "stopped"}, webhook()),
        ("already_running", {"state": "running"}, webhook()),
        ("in_transition", {"state": "stopping"}, webhook()),
        ("completed", {"exit_code": 0}, webhook()),
        ("policy_off", {"labels": {"hyper.remediation": "off"}}, webhook()),
        ("policy_unknown", {"labels": {"hyper.remediation": "Redeploy!"}}, webhook()),
        ("stop_switch", {"stop": True}, webhook()),
        ("container_down", {"labels": {"hyper.remediation": "dry-run"}}, webhook()),
        ("duplicate", {}, webhook()),
    ]
    for count, (reason, world, body) in enumerate(cases, 1):
        defaults = {"state": "exited", "desired": "running", "labels": {}, "exit_code": 3}
        stop.unlink(missing_ok=True)
        if world.pop("stop", False):
            stop.touch()
        for key, value in {**defaults, **world}.items():
            setattr(hyperd, key, value)
        assert controller.post(body).status_code == 200
        until(_at_least(controller, count))
        assert controller.reasons()[-1] == reason
    assert hyperd.posts == 0
    assert [line["verdict"] for line in controller.audit()].count("dry_run") == 1
    newest = httpx.get(f"{controller.url}/audit", params={"limit": 2}).json()
    assert [line["reason"] for line in newest] == ["duplicate", "container_down"]


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


@pytest.fixture(scope="module")
def shared_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    program = Controller(tmp_path_factory.mktemp("shared"))
    program.start()
    yield program
    assert program.end() == 0


def test_a_web_page_cannot_post_an_alert(shared_controller: Controller) -> None:
    answer = httpx.post(f"{shared_controller.url}/alertmanager", content=json.dumps(webhook()))
    assert answer.status_code == 415
    assert httpx.get(f"{shared_controller.url}/audit", params={"limit": 0}).status_code == 400


def test_hyperd_that_is_away_is_asked_again_and_the_result_audited(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.stop()
    controller.start()
    controller.post(webhook())
    until(lambda: "attempt 1" in (controller.root / "controller-1.log").read_text())
    hyperd.start()
    until(controller.outcomes)
    assert controller.outcomes() == ["done"]
    assert len(hyperd.redeploys) == 1


def test_hyperd_that_stays_away_is_given_up_and_the_next_repetition_tries_again(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.stop()
    controller.start("--set", "attempts=2")
    controller.post(webhook())
    until(lambda: controller.reasons() == ["hyperd_away"])
    hyperd.mode = "busy"
    hyperd.start()
    controller.post(webhook())
    until(lambda: controller.outcomes() == ["failed"])
    assert hyperd.posts == 2
    assert "no kernel" in controller.audit()[-1]["detail"]
    assert controller.audit()[-1]["carried_out"] is False
    hyperd.mode = "ok"
    controller.post(webhook())
    until(lambda: len(controller.reasons()) == 3)
    assert controller.reasons()[-1] == "cooldown", "what failed may be tried again, but not at once"


def test_a_redeploy_that_hyperd_made_and_answered_with_an_error_is_not_made_twice(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = "broken"
    controller.start()
    controller.post(webhook())
    until(controller.outcomes)
    assert controller.outcomes() == ["failed"]
    assert controller.audit()[-1]["carried_out"] is True
    assert hyperd.posts == 1


def test_killed_after_hyperd_acted_it_is_not_done_again(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.mode = "mute"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts == 1)
    controller.kill()
    assert controller.outcomes() == []
    hyperd.mode = "ok"
    hyperd.state = "exited"  # it has failed anew; what the intent asked for was done all the same
    controller.start()
    until(controller.outcomes)
    controller.post(webhook())
    until(lambda: len(controller.reasons()) == 2)
    assert (hyperd.posts, controller.outcomes()) == (1, ["done"])
    assert controller.reasons() == ["container_down", "duplicate"]


def test_killed_before_hyperd_acted_it_is_done_once(hyperd: FakeHyperd, controller: Controller) -> None:
    hyperd.mode = "busy"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    assert controller.reasons() == ["container_down"]
    assert (controller.outcomes(), hyperd.redeploys) == ([], [])
    with (controller.root / "data/audit/remediation.jsonl").open("ab") as file:
        file.write(b'{"kind":"outcome","id":"cut off by the cra')
    hyperd.mode = "ok"
    controller.start()
    controller.post(webhook())
    until(lambda: (controller.root / "data/audit/remediation.jsonl").read_text().count('"outcome":"done"') == 1)
    until(controller.idle)
    controller.kill()
    controller.start()
    until(controller.idle)
    assert len(hyperd.redeploys) == 1


def test_killed_with_an_intent_it_holds_to_the_stop_switch_after_the_restart(
    hyperd: FakeHyperd, controller: Controller
) -> None:
    hyperd.mode = "busy"
    controller.start()
    controller.post(webhook())
    until(lambda: hyperd.posts >= 1)
    controller.kill()
    hyperd.mode = "ok"
    (controller.root / "data/remediation.stop").touch()
    controller.start()
    until(controller.outcomes)
    assert (controller.outcomes(), hyperd.redeploys) == (["stop_switch"], [])


def test_what_cannot_be_audited_is_not_done(hyperd: FakeHyperd, controller: Controller) -> None:
    controller.root.joinpath("data").mkdir()
    # A file-size limit stands in for a full disk: the write fails in the middle.
    command = ["prlimit", "--fsize=60", "--pid"]
    controller.start()
    assert controller.process is not None
    subprocess.run([*command, str(controller.process.pid)], check=True)
    controller.post(webhook())
    failed = 'hyper_remediation_decisions_total{decision="skip",reason="audit_unwritable"} 1.0'
    until(lambda: failed in httpx.get(f"{controller.url}/metrics").text)
    assert hyperd.posts == 0


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
        people = {**labels, "alertname": "HyperOomKill"}
        del people["remediation"]
        httpx.post(f"{url}/api/v2/alerts", json=[{"labels": people}]).raise_for_status()
        httpx.post(f"{url}/api/v2/alerts", json=[{"labels": {**labels, "name": "db"}}]).raise_for_status()
        until(lambda: "container_mismatch" in controller.reasons())
        assert "no_action_for_alert" not in controller.reasons(), "alerts for people do not go to the controller"
