"""A hyperd that speaks the REST API on a real unix socket, and the controller as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable
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
    # ok; busy: 503 and nothing done; refusing: 409 and nothing done; mute: done, and never answered;
    # broken: 500 after it was tried; taken: 409 after it was tried
    mode: str = "ok"
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
            if self.mode == "refusing":
                return JSONResponse({"error": {"code": "conflict", "message": "not now"}}, status_code=409)
            self.redeploys.append(body)
            self.epoch += 1
            self.state = "exited" if self.mode in {"broken", "taken"} else "running"
            if self.mode in {"broken", "taken"}:
                error = {"code": "port_in_use", "message": "port 80 is taken", "field": "ports"}
                return JSONResponse({"error": error}, status_code=500 if self.mode == "broken" else 409)
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


def at_least(controller: Controller, count: int) -> Callable[[], bool]:
    return lambda: len(controller.reasons()) >= count
