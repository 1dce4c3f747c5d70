"""`hyper update --image`, `rollback`, `quarantine` and `history` as processes, against a server of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.fake_hyperd import Daemon, Refusal, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD, NEW = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
ROLLOUT: dict[str, Any] = {
    "id": "1", "name": "web", "kind": "update", "state": "done", "detail": "", "observed_s": 600.0, "canary_s": 600.0,
    "watch_s": 0.0, "watch_until": None, "request_id": "r", "steps": [{"time": 1.0, "text": "starting"}],
    "from": {"container_id": "a", "image": "nginx:1", "digest": OLD},
    "to": {"container_id": "b", "image": "nginx:2", "digest": NEW},
    "comparison": [
        {"signal": "memory", "old": "10.0 MiB", "new": "11.0 MiB", "verdict": "same", "why": ""},
        {"signal": "latency", "old": "no check", "new": "no check", "verdict": "silent", "why": "no health check"},
    ],
    "evidence": [],
}  # fmt: skip
REVISION: dict[str, Any] = {
    "revision": 2, "time": time.time() - 120, "container_id": "b" * 64, "image": "nginx:2", "digest": NEW,
    "kind": "update", "actor": "user:root", "reason": "security fix of the month", "request_id": None, "good": False,
    "good_at": None, "health_before": "healthy", "health_after": "exited (1)", "outcome": "failed",
    "comparison": ROLLOUT["comparison"],
}  # fmt: skip
FIRST = {**REVISION, "revision": 1, "digest": OLD, "kind": "create", "good": True, "outcome": "done", "reason": "",
         "health_before": "", "health_after": "healthy", "comparison": []}  # fmt: skip
STEP = {"created_at": 1.0, "created_by": "RUN make", "comment": "", "size_bytes": 1, "layer": None}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "hyperd.sock") as daemon:
        daemon.answers["GET /v1/containers/web"] = {"name": "web"}
        daemon.answers["GET /v1/images/nginx:2"] = {"digest": NEW}
        daemon.answers["GET /v1/containers/web/rollouts"] = []
        daemon.answers["GET /v1/containers/web/history"] = [REVISION, FIRST]
        yield daemon


@pytest.fixture
def hyper(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    environment = {
        **os.environ, "HYPER_STATE_DIR": str(tmp_path), "HYPER_CONFIG": "/none", "COLUMNS": "80", "TZ": "UTC",
    }  # fmt: skip

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime.cli.program", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)

    return run


def test_a_change_shows_its_steps_and_the_comparison(hyper: Any, daemon: Daemon) -> None:
    observed = threading.Event()

    def change(body: dict[str, Any]) -> dict[str, Any]:
        going = {**ROLLOUT, "state": "observing", "observed_s": 12.0, "request_id": body["request_id"]}

        def rollouts(_: Any) -> list[dict[str, Any]]:
            observed.set()
            return [going]

        daemon.answers["GET /v1/containers/web/rollouts"] = rollouts
        assert observed.wait(10)
        return {**ROLLOUT, "steps": [*ROLLOUT["steps"], {"time": 2.0, "text": "switched"}]}

    daemon.answers["POST /v1/containers/web/change"] = change
    terms = ("--canary", "10m", "--drain", "3s", "--rollback-on", "exit,worse", "--reason", "fix")
    done = hyper("update", "web", "--image", "nginx:2", *terms)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["web: starting", "web: switched"]
    assert done.stdout.splitlines() == [
        "SIGNAL    OLD        NEW        VERDICT",
        "memory    10.0 MiB   11.0 MiB   same",
        "latency   no check   no check   silent (no health check)",
        "web has changed from abababababab to cdcdcdcdcdcd",
    ]
    (body,) = daemon.bodies("POST /v1/containers/web/change")
    assert body.pop("request_id").startswith("cli-")
    assert body.pop("actor").startswith("user:")
    assert body == {
        "image": "nginx:2", "canary_s": 600.0, "watch_s": 0.0, "drain_s": 3.0, "rollback_on": ["exit", "worse"],
        "reason": "fix",
    }  # fmt: skip


@pytest.mark.parametrize("state", ["failed", "inconclusive", "rolled_back"])
def test_what_is_not_promoted_ends_with_1(hyper: Any, daemon: Daemon, state: str) -> None:
    told = {"state": state, "detail": "it ended with 1", "evidence": ["/var/lib/hyper/evidence/web-1"]}
    daemon.answers["POST /v1/containers/web/change"] = {**ROLLOUT, **told}
    done = hyper("update", "web", "--image", "nginx:2", "--rollback-on", "exit")
    assert done.returncode == 1
    verdict, kept = done.stdout.splitlines()[-2:]
    assert "it ended with 1" in verdict
    assert kept == "what was thrown away is kept as it was in /var/lib/hyper/evidence/web-1"
    assert daemon.bodies("POST /v1/containers/web/change")[0]["watch_s"] == 60.0
    asked = hyper("update", "web", "--image", "nginx:2", "--format", "json")
    assert (asked.returncode, json.loads(asked.stdout)[0]["state"]) == (1, state)


def test_a_refusal_is_an_error(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers/web/rollback"] = Refusal(409, "no_known_good", "there is none")
    done = hyper("rollback", "web")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "hyper: there is none\n")


def test_a_digest_is_completed_from_the_history(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers/web/rollback"] = {**ROLLOUT, "kind": "rollback", "comparison": []}
    assert hyper("rollback", "web", "--to", "abab").returncode == 0
    assert daemon.bodies("POST /v1/containers/web/rollback")[0]["to_digest"] == OLD
    refused = hyper("rollback", "web", "--to", "ff")
    assert refused.stderr == "hyper: --to ff: no digest of its history begins so; see: hyper history web\n"


def test_quarantine(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["POST /v1/containers/web/quarantine"] = {"name": "web"}
    done = hyper("quarantine", "web", "--reason", "odd")
    assert (done.returncode, done.stdout) == (0, "web\n")
    assert daemon.bodies("POST /v1/containers/web/quarantine")[0]["reason"] == "odd"


def test_the_history_of_a_container_fits_a_terminal(hyper: Any, daemon: Daemon) -> None:
    done = hyper("history", "web")
    heading, second, first = done.stdout.splitlines()
    assert heading.split() == ["REV", "CHANGE", "DIGEST", "OUTCOME", "GOOD", "HEALTH", "WHEN", "BY", "WHY"]
    assert second.split()[:5] == ["2", "update", "cdcdcdcdcdcd", "failed", "no"]
    assert first.split()[:5] == ["1", "create", "abababababab", "done", "yes"]
    assert max(map(len, (heading, second, first))) <= 100
    assert json.loads(hyper("history", "--format", "json", "web").stdout) == [REVISION, FIRST]
    assert hyper("history", "-q", "web").stdout == "cdcdcdcdcdcd\nabababababab\n"
    compared = "memory 10.0 MiB → 11.0 MiB: same; latency no check → no check: silent (no health check)"
    assert hyper("history", "--format", "{{.Compared}}", "web").stdout.splitlines() == [compared, "-"]
    assert compared in hyper("history", "--no-trunc", "web").stdout
    assert hyper("history", "--format", "{{.Revision}} {{.Reason}}", "web").stdout.startswith("2 security fix")


def test_a_name_that_is_both_is_the_container(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/history/web"] = [STEP]
    daemon.answers["GET /v1/history/nginx:2"] = [STEP]
    assert "REV" in hyper("history", "web").stdout
    assert "RUN make" in hyper("image", "history", "web").stdout
    assert "RUN make" in hyper("history", "nginx:2").stdout


def test_a_container_that_is_gone_comes_after_the_image(hyper: Any, daemon: Daemon) -> None:
    daemon.answers["GET /v1/containers/gone/history"] = [REVISION]
    assert "REV" in hyper("history", "gone").stdout
    daemon.answers["GET /v1/history/gone"] = [STEP]
    assert "RUN make" in hyper("history", "gone").stdout
    daemon.answers["GET /v1/history/none"] = Refusal(404, "image_unknown", "there is no image none on this host")
    assert hyper("history", "none").stderr == "hyper: there is no image none on this host\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("update web --canary 10s", "--canary goes with --image: name the image to change to"),
        ("update web --image x -m 64m", "--image changes the image alone"),
        ("update web --image x --canary 10", "--canary '10': write a number with its unit"),
        ("update web --image x --rollback-on smoke", "there is no 'smoke'; write unhealthy, exit, worse"),
        ("update web --image x --pull never", "no such thing"),
    ],
)
def test_wrong_values_are_one_line_with_the_remedy(hyper: Any, daemon: Daemon, args: str, message: str) -> None:
    daemon.answers["GET /v1/images/x"] = Refusal(404, "image_unknown", "no such thing")
    done = hyper(*args.split())
    assert (done.returncode, done.stdout) == (125, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_change_goes_on_when_hyperd_was_away(tmp_path: Path, hyper: Any) -> None:
    """The same request is made again; the daemon knows what became of it."""
    path = tmp_path / "hyperd.sock"
    asked: list[str] = []
    with serving(path) as first:
        first.answers["GET /v1/containers/web"] = {"name": "web"}
        first.answers["GET /v1/images/nginx:2"] = {"digest": NEW}

        def crash(body: dict[str, Any]) -> Any:
            asked.append(body["request_id"])
            path.unlink()
            raise ConnectionResetError

        first.answers["POST /v1/containers/web/change"] = crash
        found: list[subprocess.CompletedProcess[str]] = []
        caller = threading.Thread(target=lambda: found.append(hyper("update", "web", "--image", "nginx:2")))
        caller.start()
        deadline = time.monotonic() + 20
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)  # between two looks at the condition
        other = tmp_path / "again"
        other.mkdir()
        with serving(other / "s") as second:
            second.answers["POST /v1/containers/web/change"] = lambda body: (
                asked.append(body["request_id"]) or {**ROLLOUT, "request_id": body["request_id"]}
            )
            (other / "s").rename(path)
            caller.join(30)
    assert found[0].returncode == 0, found[0].stderr
    assert "waiting for it to come back" in found[0].stderr
    assert len(asked) == 2
    assert asked[0] == asked[1]
