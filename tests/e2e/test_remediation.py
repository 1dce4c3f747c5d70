"""Bad images are rolled out to services that are well; what was good comes back by itself, and the story is told.

What the host does to them, or a dead collector says of them, moves nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from runtime.client import Client
from tests.host import Daemon, free_port, get, running_host, wait_for
from tests.images.build import TAG, build
from tests.images.registry import Registry
from tests.monitoring import QUICK, alertmanager, prometheus, query
from tests.panels import dashboards, filled
from tests.places import serving
from tests.units import NOBODY, UNITS, confined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

THRESHOLDS = replace(
    QUICK, unhealthy_for="1s", memory_near_limit_ratio=0.5, memory_near_limit_for="2s", flapping_window="1m",
    flapping_restarts_count=3, exporter_down_for="1s",
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
BY_NUMBERS = "HyperMemoryPressure"
"""An alert that hyperd cannot bear out by itself: it is the collector's numbers alone."""
SPIN = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
CHECK = "wget -q -O /dev/null http://127.0.0.1/cgi-bin/health"


@dataclass(frozen=True, slots=True)
class Stack:
    """A host with everything around it."""

    host: Host
    prometheus: str
    registry: str
    controller: str
    program: Daemon
    feed: Path

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

    def is_acting(self, container: str) -> bool:
        """Whether an action on it was begun and has not ended."""
        return any(one["verdict"] == "act" and not one["outcome"] for one in self.decisions(container))

    def audit(self) -> list[dict[str, Any]]:
        """All that the controller wrote down lately, newest first."""
        found: list[dict[str, Any]] = json.loads(get(f"http://{self.controller}/audit?limit=1000"))
        return found

    def is_well(self, port: int) -> bool:
        return get(f"http://127.0.0.1:{port}/") == "well\n"

    def marks(self, name: str, container: str, since: float, until: float) -> list[dict[str, Any]]:
        """What the marks of a name on the remediation's dashboard are for a container, looked at each second."""
        board = next(one for one in dashboards().values() if one["uid"] == "hyper-remediation")
        mark = next(one for one in board["annotations"]["list"] if one["name"] == name)
        asked = {"query": filled(mark["expr"], container=container), "start": since, "end": until, "step": 1}
        answer = httpx.post(f"{self.prometheus}/api/v1/query_range", data=asked).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def busy(host: Host) -> Iterator[None]:
    """More processes that spin than there are CPUs; the VMs of this host, and nobody else, have to wait for them."""
    count, parent = 2 * (os.cpu_count() or 1), host.cgroup_parent
    weights = [
        *Path("/sys/fs/cgroup").glob(f"**/{parent}/cpu.shares"),
        *Path("/sys/fs/cgroup").glob(f"**/{parent}/cpu.weight"),
    ]
    assert weights, "no hierarchy has the cpu controller"
    before = [path.read_text() for path in weights]
    spinning = []
    try:
        for path in weights:
            path.write_text("2" if path.name == "cpu.shares" else "1")
        for _ in range(count):
            command = ["nice", "-n", "10", sys.executable, "-c", SPIN]
            spinning.append(subprocess.Popen(command, start_new_session=True))
            group = Path(f"/proc/{spinning[-1].pid}/autogroup")
            if group.exists():
                group.write_text("10")
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()
        for path, text in zip(weights, before, strict=True):
            path.write_text(text)


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
    policy.write_text(
        f'[follow]\ncanary_s = 0\nwatch_s = 1\n[[rules]]\nalerts = ["{BY_NUMBERS}"]\notherwise = ["restart"]\n'
    )
    feed = root / "feed.jsonl"
    settings = {
        "known_good_after_s": KNOWN_GOOD_AFTER_S, "remediation_listen": address, "remediation_policy_file": policy,
        "remediation_feed_file": feed,
    }  # fmt: skip
    with running_host(*names, **settings) as host:
        host.start_exporter()
        program = str(Path(sys.executable).parent / "hyper-remediation")
        guards = ("--set", "cooldown_s=0.1", "--set", "sustain_s=2", "--set", "feed_s=0.5", "--set", "held_s=1")
        guards += ("--set", "rest_s=5")  # a machine that runs two tests at once keeps its guests waiting now and then
        # As its unit has it: an uid and a directory of its own, and hyperd's socket by its group. Where the programs
        # are a user may not look; reading is therefore allowed, and writing is not.
        argv = confined(UNITS / "hyper-remediation.service", [program, *guards], also=("CAP_DAC_READ_SEARCH",))
        own = host.state_dir / "remediation"
        own.mkdir(mode=0o700)
        os.chown(own, NOBODY, NOBODY)
        os.chown(host.state_dir / "hyperd.sock", 0, NOBODY)
        controller = Daemon(argv, {**host.env, "HYPER_DATA_DIR": str(own)}, root / "remediation.log")
        controller.start()
        try:
            controller.ready(lambda: get(f"http://{address}/healthz"))
            with (
                alertmanager(root, f"http://{address}/alertmanager") as alerts,
                prometheus(root, host.exporter, alerts, address, THRESHOLDS) as url,
            ):
                yield Stack(host, url, images.registry.address, address, controller, feed)
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
    rollback = wait_for(lambda: stack.ended(name, "rollback"), f"{kind}: a rollback", 150, 0.3)
    assert rollback["outcome"]["outcome"] == "done", rollback
    wait_for(lambda: get(f"http://127.0.0.1:{port}/cgi-bin/health") == "well\n", f"{kind}: it answers again")
    seconds = time.monotonic() - began
    after = host.inspect(name)
    assert (after["image_digest"], after["state"], after["desired"]) == (good, "running", "running")
    assert rollback["digest"] == bad
    saved = Path(rollback["outcome"]["evidence"])
    assert {"inspect.json", "samples.prom", "events.json"} <= {path.name for path in saved.iterdir()}
    assert json.loads((saved / "inspect.json").read_text())["image_digest"] == bad
    assert saved.parent == host.data_dir / "evidence"
    assert rollback["container_id"] in (saved / "samples.prom").read_text()
    history = json.loads(host.hyper("history", name, "--format", "json").stdout)
    assert (history[0]["kind"], history[0]["actor"], history[0]["digest"]) == ("rollback", "remediation", good)
    assert rollback["id"] in history[0]["reason"]
    assert [one["action"] for one in stack.decisions(name) if one["verdict"] == "act"].count("rollback") == 1
    return seconds


@pytest.mark.timeout(300)
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
    for kind in kinds:
        is_told_by_marks(stack, f"svc-{kind}")
    for kind, value in seconds.items():
        print(f"\nfrom the moment at which an image {kind} to a service that is well: {value:.1f} s")


def is_told_by_marks(stack: Stack, name: str) -> None:
    """See that the remediation's dashboard has the marks of a rollback."""
    rollback = stack.ended(name, "rollback")
    assert rollback is not None
    began, ended = rollback["time"], rollback["outcome"]["time"]

    def acted() -> list[float]:
        found = stack.marks("Remediation", name, began - 30, time.time())
        return [float(value) / 1000 for one in found for _, value in one["values"]]

    # There is one time of a last action: that of another one between two scrapes takes its place.
    wait_for(lambda: any(-0.01 <= at - ended < 10 for at in acted()), f"{name}: a mark of the rollback")

    def digests() -> set[str]:
        # A minute later, which need not be waited for: what is then is what was last seen.
        return {one["metric"]["digest"] for one in stack.marks("Image changes", name, began + 30, ended + 60)}

    good = stack.host.inspect(name)["image_digest"]
    wait_for(lambda: good in digests(), f"{name}: a mark of what came back")


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
    assert host.value("container_quarantine_start_time_seconds", name="flaps") == after["quarantine"]["since"]
    firing = 'ALERTS{alertname="HyperContainerQuarantined", name="flaps", alertstate="firing"}'
    wait_for(lambda: query(stack.prometheus, firing), "people are told of it")
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
        # The controller dies in the middle of the next one, and its successor finds the update under way.
        digest = registry.push(made(tmp_path / "three", SERVE.replace("well", "newer") + SCRIPTS["good"]), "followed")
        wait_for(lambda: stack.is_acting("follower"), "an intent", 60)
        stack.program.kill()
        stack.program.start()
        stack.program.ready(lambda: get(f"http://{stack.controller}/healthz"))
        wait_for(lambda: not stack.is_acting("follower"), "an outcome", 60, 0.3)
        acts = [one for one in stack.decisions("follower") if one["verdict"] == "act"]
        assert [one["outcome"]["outcome"] for one in acts] == ["done", "done"]
        assert acts[0]["to_digest"] == digest
        assert get(f"http://127.0.0.1:{port}/") == "newer\n"
        history = json.loads(host.hyper("history", "follower", "--format", "json").stdout)
        assert [one["kind"] for one in history] == ["update", "update", "create"]
        assert history[0]["digest"] == digest


class Mirror(BaseHTTPRequestHandler):
    """Where a build gets its packages from: `dpkg`'s list of the only one there is."""

    version = "1.0-1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        package = f"Package: app\nStatus: install ok installed\nVersion: {type(self).version}+b1\n"
        self.wfile.write(f"{package}Source: src ({type(self).version})\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Mirror)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/"


def test_what_was_built_here_is_built_again_for_a_new_base_and_for_newer_packages(
    stack: Stack, mirror: str, tmp_path: Path
) -> None:
    host, port = stack.host, free_port()
    client = Client(str(host.state_dir / "hyperd.sock"))
    with Registry(tmp_path / "registry", notified=f"http://{stack.controller}/registry") as registry:
        base = f"{registry.address}/base"
        old = registry.push(made(tmp_path / "one", SERVE + SCRIPTS["good"]), "base")
        (tmp_path / "context").mkdir()
        (tmp_path / "context/Containerfile").write_text(
            f"FROM {base}\n"
            "RUN mkdir -p /var/lib/dpkg && printf 'ID=debian\\nVERSION_ID=12\\n' >/etc/os-release && "
            f"busybox wget -q -O /var/lib/dpkg/status {mirror}\n"
        )
        host.hyper("build", "-q", "-t", "derived:1", str(tmp_path / "context"))
        host.run(
            "--name", "derived", "-p", f"{port}:80", "--stop-timeout", "1",
            "--label", "hyper.remediation.follow=base,vulnerability", "derived:1",
        )  # fmt: skip
        wait_for(lambda: get(f"http://127.0.0.1:{port}/") == "well\n", "it answers")
        assert client.image("derived:1")["build"]["bases"] == {base: old}
        began = time.monotonic()
        new = registry.push(made(tmp_path / "two", SERVE.replace("well", "new") + SCRIPTS["good"]), "base")
        rebuild = wait_for(lambda: stack.ended("derived", "rebuild"), "a rebuild", 60, 0.3)
        assert (rebuild["outcome"]["outcome"], rebuild["reason"]) == ("done", "base_pushed"), rebuild
        assert get(f"http://127.0.0.1:{port}/") == "new\n"
        print(f"\nfrom a push of a base to what was built on it: {time.monotonic() - began:.1f} s")
        image = client.image("derived:1")
        assert image["build"]["bases"] == {base: new}
        assert host.inspect("derived")["image_digest"] == image["digest"] != rebuild["digest"]
        assert client.packages("derived:1")["packages"] == [
            {"name": "app", "version": "1.0-1+b1", "source": "src", "source_version": "1.0-1"}
        ]
        Mirror.version = "1.0-1+deb12u1"
        events = [{"introduced": "0"}, {"fixed": "1.0-1+deb12u1"}]
        affected = {
            "package": {"ecosystem": "Debian:12", "name": "src"},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
        }
        stack.feed.write_text(json.dumps({"id": "DSA-1-1", "affected": [affected]}))
        wait_for(lambda: host.inspect("derived")["image_digest"] != image["digest"], "a newer build", 60, 0.3)
        mended = client.image("derived:1")
        assert host.inspect("derived")["image_digest"] == mended["digest"]
        assert client.packages("derived:1")["packages"][0]["source_version"] == "1.0-1+deb12u1"
        assert mended["build"]["bases"] == {base: new}
        reasons = {one["reason"] for one in stack.decisions("derived") if one["verdict"] == "act"}
        assert reasons == {"base_pushed", "vulnerable"}


def test_a_busy_host_is_no_reason_to_restart(stack: Stack) -> None:
    host, port = stack.host, free_port()
    others = host.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
    if others:
        host.hyper("rm", "-f", *others)
    host.run(
        "--name", "starved", "-p", f"{port}:80", "--stop-timeout", "1", "--label", "hyper.remediation=redeploy",
        "--health-cmd", CHECK, "--health-interval", "1s", "--health-timeout", "1s", "--health-retries", "2",
        stack.image("good"),
    )  # fmt: skip
    wait_for(lambda: host.inspect("starved")["health"] == "healthy", "it is well")
    before = host.inspect("starved")

    def reasons() -> list[str]:
        return [one["reason"] for one in reversed(stack.decisions("starved"))]

    began = time.monotonic()
    with busy(host):
        wait_for(lambda: "host_is_the_cause" in reasons(), "the host is found to be the cause", 60, 0.5)
        told = time.monotonic()
    wait_for(lambda: host.inspect("starved")["health"] == "healthy", "it is well again", 60)
    # Its end may be told while the alert is still being judged, and then stands first.
    wait_for(lambda: {"not_confirmed", "resolved"} & {*reasons()}, "it was looked at again, or is over", 60, 0.5)
    print(f"\nfrom the begin of the load to the decision: {told - began:.1f} s, then {time.monotonic() - told:.1f} s")
    after = host.inspect("starved")
    assert (after["id"], after["epoch"], after["state"]) == (before["id"], before["epoch"], "running")
    assert [one for one in stack.decisions("starved") if one["verdict"] != "skip"] == []
    assert stack.is_well(port)


def test_what_a_dead_collector_says_moves_nothing(stack: Stack) -> None:
    host = stack.host
    container_id = host.run("--name", "shown", "--stop-timeout", "1", stack.image("good"))
    epoch = host.inspect("shown")["epoch"]
    since = datetime.now(UTC).isoformat()

    def tell() -> None:
        labels = {"alertname": BY_NUMBERS, "id": container_id, "name": "shown", "instance": host.exporter}
        alert = {"status": "firing", "labels": labels, "startsAt": since, "fingerprint": "c0ffee0123456789"}
        body = {"version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "alerts": [alert]}
        httpx.post(f"http://{stack.controller}/alertmanager", json=body).raise_for_status()

    def noted(reason: str) -> bool:
        return any(one.get("alert") == "HyperExporterDown" and one["reason"] == reason for one in stack.audit())

    def reasons() -> list[str]:
        return [one["reason"] for one in reversed(stack.decisions("shown"))]

    os.kill(host.hyper_exporter.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: noted("noted"), "Prometheus and Alertmanager tell that the exporter is silent", 60, 0.3)
        tell()
        wait_for(reasons, "a decision", 60, 0.3)
        assert reasons() == ["collector_is_the_cause"]
    finally:
        os.kill(host.hyper_exporter.pid, signal.SIGCONT)
    wait_for(lambda: noted("resolved"), "they tell that it answers again", 60, 0.3)
    assert host.inspect("shown")["epoch"] == epoch
    tell()
    restart = wait_for(lambda: stack.ended("shown", "restart"), "a restart", 60, 0.3)
    assert (restart["outcome"]["outcome"], restart["reason"]) == ("done", "alert_rule"), restart
    assert reasons() == ["collector_is_the_cause", "alert_rule"]
    assert host.inspect("shown")["epoch"] == epoch + 1
