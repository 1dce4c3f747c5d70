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
from fastapi.responses import JSONResponse, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ID = "3f" * 32


GOOD, BAD, PUSHED = (f"sha256:{letter * 64}" for letter in "abc")
IMAGE = "127.0.0.1:5000/web:latest"


@dataclass
class FakeHyperd:
    """The answers of hyperd that matter here, and the ways in which they go wrong; one container, `web`.

    Like the real one it carries out a call with a `request_id` once, and knows a call by one id.
    """

    socket: Path
    state: str = "exited"
    desired: str = "running"
    epoch: int = 1
    labels: dict[str, str] = field(default_factory=lambda: {"hyper.remediation": "redeploy"})
    exit_code: int | None = 3
    health: str = "none"
    checked_at: float = 0.0  # when the last health check began
    id: str = ID
    digest: str = GOOD
    named: str = GOOD  # what the image's name is that of
    pullable: str = PUSHED
    bases: dict[str, str] = field(default_factory=dict)  # of the image that runs
    builds: int = 0
    packages: dict[str, str] = field(default_factory=dict)  # the version of the only one, by the image's digest
    removed: list[str] = field(default_factory=list)
    built: str = PUSHED  # what a rebuild gives
    quarantine: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    deaths: int = 0
    redeploys: list[dict[str, Any]] = field(default_factory=list)
    # what was carried out: the kind of each action, once for each time
    done: list[str] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    directory: Path | None = None
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    pulls: int = 0
    canaries: list[float] = field(default_factory=list)  # of each change, how long it was to be observed
    posts: int = 0
    reads: int = 0
    lists: int = 0
    # ok; busy: 503 and nothing done; refusing: 409 and nothing done; mute: done, and never answered;
    # broken: 500 after it was tried; taken: 409 after it was tried; hopeless: 409, no known good
    # alone: two cannot run side by side
    # vague: what is observed cannot be judged
    mode: str = "ok"
    evidence_mode: str = "ok"  # ok; full: 507; mute: saved, and never answered
    to_say: list[dict[str, Any]] = field(default_factory=list)
    _answers: dict[str, tuple[str, int, Any]] = field(default_factory=dict)
    _server: uvicorn.Server | None = None
    _thread: threading.Thread | None = None

    def container(self) -> dict[str, Any]:
        return {
            "id": self.id, "name": "web", "image": IMAGE, "image_digest": self.digest, "args": [], "state": self.state,
            "desired": self.desired, "status": "", "epoch": self.epoch, "labels": self.labels, "tenant": "default",
            "project": None, "exit_code": self.exit_code, "oom_killed": False, "restarts": self.epoch - 1,
            "health": self.health, "checks": [{"began": self.checked_at, "exit_code": 1}],
            "quarantine": self.quarantine, "revision": len(self.history),
        }  # fmt: skip

    def changed(self, *, good: bool = False, ago_s: float = 30.0) -> None:
        """The image was changed a while ago, from one that is known to be good."""
        now = time.time()
        self.digest = BAD
        self.history = [
            revision(2, now - ago_s, BAD, "update", good=good),
            revision(1, now - ago_s - 9000, GOOD, "create", good=True),
        ]

    def _carry_out(self, kind: str, body: dict[str, Any]) -> Any:
        """What an action changes, and what is answered."""
        self.done.append(kind)
        self.epoch += 1
        self.state, self.health = "running", "none"
        if kind == "redeploy":
            self.redeploys.append(body)
        if kind == "quarantine":
            self.quarantine = {"since": 1.0, "reason": body["reason"], "actor": body["actor"]}
            self.desired, self.state = "stopped", "paused"
        if kind == "change":
            self.canaries.append(body["canary_s"])
        if self.mode == "vague" and body.get("canary_s"):
            self.done.pop()
            self.epoch -= 1
            one = revision(len(self.history) + 1, time.time(), self.pullable, "update", good=False)
            self.history.insert(0, {**one, "outcome": "inconclusive"})
            return {"id": "r", "kind": kind, "state": "inconclusive", "detail": "not enough could be seen",
                    "request_id": body["request_id"]}  # fmt: skip
        if kind in {"rollback", "change"}:
            self.id = f"{len(self.done):064x}"
            wanted = self.built if self.builds else self.pullable
            self.digest = GOOD if kind == "rollback" else wanted
            self.epoch = 1
            kind = {"change": "update"}.get(kind, kind)
            self.history.insert(0, revision(len(self.history) + 1, time.time(), self.digest, kind, good=False))
            rollout = {"id": f"r{len(self.rollouts)}", "kind": kind, "state": "done", "detail": "",
                       "request_id": body["request_id"]}  # fmt: skip
            self.rollouts.insert(0, rollout)
            return rollout
        return self.container()

    async def _act(self, kind: str, ref: str, request: Request) -> Response:
        body = await request.json()
        known = self._answers.get(body.get("request_id", ""))
        if known is not None:
            assert known[0] == kind, "one id for two calls"
            return JSONResponse(known[2], status_code=known[1])
        assert ref in {self.id, "web"}
        self.posts += 1
        if self.mode == "busy":
            error = {"code": "host_unable", "message": "no kernel", "field": None}
            return JSONResponse({"error": error}, status_code=503)
        if self.mode in {"refusing", "hopeless"}:
            code = "conflict" if self.mode == "refusing" else "no_known_good"
            return JSONResponse({"error": {"code": code, "message": "not now"}}, status_code=409)
        if self.mode == "alone" and body.get("canary_s"):
            self.canaries.append(body["canary_s"])
            error = {"code": "invalid_input", "message": "old and new cannot run side by side", "field": "canary_s"}
            return JSONResponse({"error": error}, status_code=400)
        answer = self._carry_out(kind, body)
        status = 200
        if self.mode in {"broken", "taken"}:
            self.state = "exited"
            answer = {"error": {"code": "port_in_use", "message": "port 80 is taken", "field": "ports"}}
            status = 500 if self.mode == "broken" else 409
        elif "request_id" in body:
            self._answers[body["request_id"]] = (kind, status, answer)
        while self.mode == "mute" and not await request.is_disconnected():  # noqa: ASYNC110 -- no event for it
            await asyncio.sleep(0.01)
        return JSONResponse(answer, status_code=status)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/containers")
        async def containers() -> Response:
            self.lists += 1
            return JSONResponse([self.container()])

        @app.get("/v1/containers/{ref}")
        async def read(ref: str) -> Response:
            self.reads += 1
            if ref not in {self.id, "web"}:
                error = {"code": "not_found", "message": f"no container {ref}", "field": None}
                return JSONResponse({"error": error}, status_code=404)
            return JSONResponse(self.container())

        @app.get("/v1/containers/{ref}/history")
        async def history(ref: str) -> Response:
            return JSONResponse(self.history)

        @app.get("/v1/containers/{ref}/rollouts")
        async def rollouts(ref: str) -> Response:
            return JSONResponse(self.rollouts)

        @app.get("/v1/events")
        async def events(request: Request) -> Response:
            if "until" in request.query_params:
                lines = [event("die", number) for number in range(self.deaths)]
                return Response("".join(json.dumps(line) + "\n" for line in lines))

            async def stream() -> AsyncIterator[str]:
                while self._server is not None and not self._server.should_exit:
                    while self.to_say:
                        yield json.dumps(self.to_say.pop(0)) + "\n"
                    await asyncio.sleep(0.02)

            return StreamingResponse(stream())

        @app.post("/v1/containers/{ref}/evidence")
        async def evidence(ref: str, request: Request) -> Response:
            body = await request.json()
            if self.evidence_mode == "full":
                return JSONResponse({"error": {"code": "disk_full", "message": "no room"}}, status_code=507)
            assert self.directory is not None
            path = self.directory / f"web-{body['request_id']}"
            if not path.exists():
                path.mkdir(parents=True)
                if body["samples"] is not None:
                    (path / "samples.prom").write_text(body["samples"])
                self.evidence.append(body)
            while self.evidence_mode == "mute" and not await request.is_disconnected():  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.01)
            return JSONResponse({"path": str(path), "files": ["inspect.json"]})

        @app.post("/v1/images/pull")
        async def pull(request: Request) -> Response:
            assert (await request.json())["reference"] == IMAGE
            self.pulls += 1
            return Response(json.dumps({"status": "…"}) + "\n" + json.dumps({"image": {"digest": self.pullable}}))

        @app.post("/v1/images/rebuild")
        async def rebuild(request: Request) -> Response:
            body = await request.json()
            assert body == {"reference": GOOD, "no_cache": bool(self.packages), "unnamed": True}
            self.builds += 1
            image = {"digest": self.built, "references": []}
            return Response(json.dumps({"status": "…"}) + "\n" + json.dumps({"image": image, "changed": True}))

        @app.get("/v1/images/{ref:path}")
        async def image(ref: str) -> Response:
            build = {"bases": self.bases, "archive_digest": BAD}
            named = self.named if ref == IMAGE else ref
            references = [IMAGE] if named == self.named else []
            return JSONResponse({"digest": named, "references": references, "build": build})

        @app.get("/v1/packages/{digest}")
        async def packages(digest: str) -> Response:
            one = {"name": "libssl3", "version": "0", "source": "openssl", "source_version": self.packages.get(digest)}
            found = [one] if digest in self.packages else None
            return JSONResponse({"digest": digest, "distribution": "debian", "version": "12", "packages": found})

        @app.post("/v1/images/tag")
        async def tag(request: Request) -> Response:
            body = await request.json()
            assert body["target"] == IMAGE
            self.named = body["source"]
            return JSONResponse({})

        @app.delete("/v1/images/{digest}")
        async def remove(digest: str) -> Response:
            self.removed.append(digest)
            return JSONResponse({})

        @app.post("/v1/containers/{ref}/{kind}")
        async def act(ref: str, kind: str, request: Request) -> Response:
            return await self._act(kind, ref, request)

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


def revision(number: int, at: float, digest: str, kind: str, *, good: bool) -> dict[str, Any]:
    return {
        "revision": number, "time": at, "container_id": ID, "image": IMAGE, "digest": digest, "kind": kind,
        "actor": "user", "reason": "", "request_id": None, "good": good, "good_at": at + 60 if good else None,
        "health_before": "", "health_after": "", "outcome": "done",
    }  # fmt: skip


def event(action: str, seq: int = 1, **attributes: str) -> dict[str, Any]:
    return {"seq": seq, "time_ns": time.time_ns(), "type": "container", "action": action, "id": ID,
            "attributes": {"name": "web", "image": IMAGE, **attributes}}  # fmt: skip


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

    def skipped(self) -> set[str]:
        return {line["reason"] for line in self.audit() if line.get("verdict") == "skip"}

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
