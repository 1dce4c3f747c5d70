"""Bad images are rolled out to services that are well; what was good comes back by itself, and the story is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host import Daemon, free_port, get, running_host, wait_for
from tests.images.build import TAG, build
from tests.images.registry import Registry
from tests.monitoring import QUICK, alertmanager, prometheus, query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

THRESHOLDS = replace(
    QUICK, unhealthy_for="1s", memory_near_limit_ratio=0.5, memory_near_limit_for="2s", flapping_window="1m",
    flapping_restarts_count=3,
)  # fmt: skip
KNOWN_GOOD_AFTER_S = 6.0
SERVE = (
    "mkdir -p /www/cgi-bin; echo well >/www/index.html; printf '#!/bin/sh\\nif [ -e /sick ]; then "
    'echo "Status: 500 Sick"; fi; echo; echo well\\n\' >/www/cgi-bin/health; chmod 755 /www/cgi-bin/health; '
)
"""Each image serves the same; the bad ones do so until they are told that it is time."""
WAIT = "httpd -p 80 -h /www; while [ ! -e /now ]; do sleep 0.1; done; "
SCRIPTS = {
    "good": "exec httpd -f -p 80 -h /www",
    "crashes": WAIT + "exit 3",
    "leaks": WAIT + "m=$(head -c 6000000 /dev/zero | tr '\\0' x); while :; do a=$a$m; sleep 0.5; done",
    "fails": WAIT + "touch /sick; while :; do sleep 1; done",
    "flaps": "sleep 0.3; exit 1",
}
CHECK = "wget -q -O /dev/null http://127.0.0.1/cgi-bin/health"


@dataclass(frozen=True, slots=True)
class Stack:
    """A host with everything around it."""

    host: Host
    prometheus: str
    registry: str
    controller: str

    def image(self, name: str) -> str:
        return f"{self.registry}/{name}"

    def decisions(self, container: str) -> list[dict[str, Any]]:
        """What the controller decided about a container, newest first."""
        listed = self.host.hyper("remediation", "ls", "-n", "200", "--container", container, "--format", "json")
        found: list[dict[str, Any]] = json.loads(listed.stdout)
        return found

    def ended(self, container: str, action: str) -> dict[str, Any] | None:
        """The first action of this kind that has an outcome."""
        ended = [one for one in self.decisions(container) if one["action"] == action and one["outcome"]]
        return ended[-1] if ended else None


def made(layout: Path, script: str) -> Path:
    """An image of busybox that runs a script."""
    shutil.copytree(build("busybox"), layout)
    command = [word for one in ("sh", "-c", script) for word in ("--config.cmd", one)]
    subprocess.run(["umoci", "config", "--image", f"{layout}:{TAG}", *command], check=True)
    return layout


@pytest.fixture(scope="module")
def stack(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("remediation")
    for name, script in SCRIPTS.items():
        images.registry.push(made(root / name, SERVE + script), name)
    address = f"127.0.0.1:{free_port()}"
    names = [f"{images.registry.address}/{name}" for name in SCRIPTS]
    policy = root / "policy.toml"
    policy.write_text("[follow]\nwatch_s = 1\n")
    settings = {
        "known_good_after_s": KNOWN_GOOD_AFTER_S, "remediation_listen": address, "remediation_policy_file": policy,
    }  # fmt: skip
    with running_host(*names, **settings) as host:
        host.start_exporter()
        program = str(Path(sys.executable).parent / "hyper-remediation")
        guards = ("--set", "cooldown_s=0.1", "--set", "sustain_s=2")
        controller = Daemon([program, *guards], host.env, root / "remediation.log")
        controller.start()
        try:
            controller.ready(lambda: get(f"http://{address}/healthz"))
            with (
                alertmanager(root, f"http://{address}/alertmanager") as alerts,
                prometheus(root, host.exporter, alerts, address, THRESHOLDS) as url,
            ):
                yield Stack(host, url, images.registry.address, address)
        except BaseException:
            print(controller.log.read_text()[-8000:])
            raise
        finally:
            controller.stop()
            everything = host.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
            if everything:
                host.hyper("rm", "-f", *everything)


def healed(stack: Stack, kind: str, port: int) -> float:
    """Roll a bad image out to a service, let it turn bad; seconds from then until the service is well again."""
    host, name = stack.host, f"svc-{kind}"
    good = host.inspect(name)["image_digest"]
    host.hyper("update", "--image", stack.image(kind), name)
    assert get(f"http://127.0.0.1:{port}/") == "well\n"
    bad = host.inspect(name)["image_digest"]
    assert bad != good
    host.hyper("exec", name, "touch", "/now", check=False)  # it may end before it answers
    began = time.monotonic()
    rollback = wait_for(lambda: stack.ended(name, "rollback"), f"{kind}: a rollback", 60, 0.3)
    assert rollback["outcome"]["outcome"] == "done", rollback
    wait_for(lambda: get(f"http://127.0.0.1:{port}/cgi-bin/health") == "well\n", f"{kind}: it answers again")
    seconds = time.monotonic() - began
    after = host.inspect(name)
    assert (after["image_digest"], after["state"], after["desired"]) == (good, "running", "running")
    assert rollback["digest"] == bad
    saved = Path(rollback["outcome"]["evidence"])
    assert {"inspect.json", "samples.prom", "events.json"} <= {path.name for path in saved.iterdir()}
    assert json.loads((saved / "inspect.json").read_text())["image_digest"] == bad
    assert rollback["container_id"] in (saved / "samples.prom").read_text()
    history = json.loads(host.hyper("history", name, "--format", "json").stdout)
    assert (history[0]["kind"], history[0]["actor"], history[0]["digest"]) == ("rollback", "remediation", good)
    assert rollback["id"] in history[0]["reason"]
    assert [one["action"] for one in stack.decisions(name) if one["verdict"] == "act"].count("rollback") == 1
    return seconds


def test_bad_images_are_rolled_back_to_what_was_good(stack: Stack) -> None:
    host, kinds = stack.host, ("crashes", "leaks", "fails")
    ports = {kind: free_port() for kind in kinds}
    for kind, port in ports.items():
        host.run(
            "--name", f"svc-{kind}", "-p", f"{port}:80", "--label", "hyper.remediation=rollback",
            "--stop-timeout", "1", "--health-cmd", CHECK, "--health-interval", "1s", "--health-retries", "2",
            stack.image("good"),
        )  # fmt: skip
    for kind, port in ports.items():
        wait_for(lambda port=port: get(f"http://127.0.0.1:{port}/") == "well\n", f"{kind} answers")
        history = ("history", f"svc-{kind}", "--format", "json")
        wait_for(lambda history=history: json.loads(host.hyper(*history).stdout)[0]["good"], f"{kind} is known good")
    with ThreadPoolExecutor(len(kinds)) as pool:
        seconds = dict(zip(kinds, pool.map(lambda kind: healed(stack, kind, ports[kind]), kinds), strict=True))
    done = 'sum(hyper_remediation_actions_total{action="rollback",outcome="done"}) == 3'
    wait_for(lambda: query(stack.prometheus, done), "the rollbacks are on a metric")
    for kind, value in seconds.items():
        print(f"\nfrom the moment at which an image {kind} to a service that is well: {value:.1f} s")


def test_what_starts_again_and_again_ends_in_quarantine(stack: Stack) -> None:
    host = stack.host
    host.run("--name", "flaps", "--restart", "always", "--label", "hyper.remediation=full", stack.image("flaps"))
    began = time.monotonic()
    quarantine = wait_for(lambda: stack.ended("flaps", "quarantine"), "a quarantine", 60, 0.3)
    assert quarantine["outcome"]["outcome"] == "done"
    assert quarantine["reason"] in {"crash_loop", "no_recovery"}
    after = host.inspect("flaps")
    assert (after["quarantine"]["actor"], after["desired"]) == ("remediation", "stopped")
    restarts = after["restarts"]
    wait_for(lambda: host.value("container_desired_running", name="flaps") == 0, "it is not wanted running")
    assert host.inspect("flaps")["restarts"] == restarts
    print(f"\nfrom the first start to quarantine: {time.monotonic() - began:.1f} s, {restarts} restarts")


def test_a_push_to_a_real_registry_is_followed(stack: Stack, tmp_path: Path) -> None:
    host, port = stack.host, free_port()
    with Registry(tmp_path / "registry", notified=f"http://{stack.controller}/registry") as registry:
        registry.push(made(tmp_path / "one", SERVE + SCRIPTS["good"]), "followed")
        host.run(
            "--name", "follower", "-p", f"{port}:80", "--stop-timeout", "1",
            "--label", "hyper.remediation.follow=true", f"{registry.address}/followed",
        )  # fmt: skip
        wait_for(lambda: get(f"http://127.0.0.1:{port}/") == "well\n", "it answers")
        digest = registry.push(made(tmp_path / "two", SERVE.replace("well", "new") + SCRIPTS["good"]), "followed")
        update = wait_for(lambda: stack.ended("follower", "update"), "an update", 60, 0.3)
        assert (update["outcome"]["outcome"], update["to_digest"]) == ("done", digest), update
        assert get(f"http://127.0.0.1:{port}/") == "new\n"
        assert host.inspect("follower")["image_digest"] == digest
