"""A change of image: nothing is lost on the way, what does not do well is not promoted, and a crash leaves no half."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from runtime.calls import ApiError, DaemonUnreachable
from runtime.client import Client
from tests.host import free_port, get, wait_for
from tests.images.build import TAG, build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

RATE = 200.0
STAGES = ("starting", "observing", "switching", "draining", "watching")


@dataclass(frozen=True, slots=True)
class Site:
    """The host, and three images: of nginx an old and a new one, and one that ends at once."""

    host: Host
    client: Client
    old: str
    new: str
    ends: str


@dataclass(frozen=True, slots=True)
class Web:
    """A container that answers at this port of the host."""

    name: str
    port: int

    @property
    def page(self) -> str:
        return get(f"http://127.0.0.1:{self.port}/")


@pytest.fixture(scope="module")
def site(host: Host, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Site:
    layout = tmp_path_factory.mktemp("layout") / "new"
    shutil.copytree(build("nginx"), layout)
    subprocess.run(["umoci", "config", "--image", f"{layout}:{TAG}", "--config.env", "VERSION=2"], check=True)
    images.registry.push(layout, "nginx-new")
    new = f"{images.registry.address}/nginx-new"
    host.hyper("pull", new)
    return Site(host, Client(str(host.state_dir / "hyperd.sock")), images.nginx, new, images.busybox)


@pytest.fixture
def options() -> tuple[str, ...]:
    """More options of the `hyper run` of `web`; a test may give others."""
    return ()


@pytest.fixture
def web(site: Site, options: tuple[str, ...]) -> Web:
    """One of the old image. Its name, and so its history, is the test's own."""
    one = Web(f"web-{free_port()}", free_port())
    site.host.run(
        *("--name", one.name, "-p", f"{one.port}:80", "-e", "KEPT=1", "--stop-timeout", "2"),
        *options,
        site.old,
    )
    wait_for(lambda: one.page, "it answers")
    return one


@contextmanager
def load(port: int) -> Iterator[Counter[str]]:
    """Requests at a steady rate, a connection each; how they ended, once the block has."""
    ended: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/", headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read()
            ended[f"status {answer.status}"] += 1
        except ConnectionRefusedError:
            ended["refused"] += 1
        except ConnectionResetError:
            ended["reset"] += 1
        except (OSError, http.client.HTTPException) as err:
            ended[type(err).__name__] += 1
        finally:
            connection.close()

    def run(offset_s: float, threads: int) -> None:
        due = time.monotonic() + offset_s
        while not stop.wait(max(0.0, due - time.monotonic())):
            ask()
            due = max(due + threads / RATE, time.monotonic() - 0.1)

    count = 16
    threads = [threading.Thread(target=run, args=(index / RATE, count)) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def digest(site: Site, web: Web) -> str:
    return str(site.client.container(web.name)["image_digest"])


def history(site: Site, web: Web) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(site.host.hyper("history", "--format", "json", web.name).stdout)
    return found


def test_an_update_under_load_loses_no_request(site: Site, web: Web) -> None:
    before = digest(site, web)
    with load(web.port) as ended:
        wait_for(lambda: ended["status 200"] > 100, "the load is on")
        began = time.monotonic()
        done = site.host.hyper("update", web.name, "--image", site.new, "--canary", "1s", "--reason", "for the test")
        took_s = time.monotonic() - began
        count = ended["status 200"]
        wait_for(lambda: ended["status 200"] > count + 100, "the load goes on")
    print(f"\nupdate under load: {took_s:.1f} s, {dict(ended)}; refused {ended['refused']}, reset {ended['reset']}")
    assert set(ended) == {"status 200"}
    now = site.client.container(web.name)
    assert now["image_digest"] != before
    assert now["spec"]["env"] == ["KEPT=1"]
    assert [line for line in done.stdout.splitlines() if line.startswith("memory")]
    for step in ("starting", "accepting connections", "observing for 1 s", "switched", "drained"):
        assert f"{web.name}: {step}" in done.stderr
    newest, first = history(site, web)
    assert (newest["kind"], newest["reason"], newest["outcome"]) == ("update", "for the test", "done")
    assert (first["digest"], first["good"]) == (before, True)
    audit = site.client.audit()
    assert (audit[0]["action"], audit[0]["outcome"]) == ("update", "done")


def test_open_connections_stay_with_the_old_one(site: Site, web: Web) -> None:
    with hold_open(web.port) as held:
        changing = threading.Thread(target=change, args=(site, web, {"image": site.new, "drain_s": 3}))
        changing.start()
        wait_for(lambda: state(site, web) == "draining", "the ports have been switched", interval_s=0.01)
        held.request("GET", "/")
        answer = held.getresponse()
        answer.read()
        assert answer.status == 200
    changing.join()
    assert state(site, web) == "done"


UDP_PORT = free_port()


@pytest.mark.parametrize("options", [("-p", f"{UDP_PORT}:9999/udp")], ids=["udp"])
def test_udp_goes_to_the_new_one_at_once(site: Site, web: Web) -> None:
    """A client that keeps sending from one port keeps its flow alive, which must not stay with the old guest."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", UDP_PORT))
        own = client.getsockname()[1]

        def reached() -> str:
            """Where the kernel sends what this client sends."""
            with contextlib.suppress(ConnectionRefusedError):  # nobody listens in the guest
                client.send(b"something")
            with NFCTSocket() as tracker:
                flows = list(tracker.dump(tuple_orig=NFCTAttrTuple(proto=socket.IPPROTO_UDP, sport=own)))
            tuples = [NFCTAttrTuple.from_netlink(socket.AF_INET, one.get_attr("CTA_TUPLE_REPLY")) for one in flows]
            return " ".join(one.saddr for one in tuples)

        old = address(site, web)
        assert wait_for(reached, "a flow") == old
        site.host.hyper("update", web.name, "--image", site.new, "--drain", "0s")
        assert wait_for(reached, "another flow") == address(site, web) != old


def address(site: Site, web: Web) -> str:
    return str(site.client.container(web.name)["network"]["address"])


@pytest.mark.parametrize(
    "options",
    [("--health-cmd", 'test -z "$VERSION"', "--health-interval", "1s", "--health-retries", "1")],
    ids=["checked"],
)
def test_what_does_not_come_up_is_not_promoted(site: Site, web: Web) -> None:
    before = site.client.container(web.name)["id"]
    with load(web.port) as ended:
        for image, why in ((site.ends, "it ended with 0"), (site.new, "its health check fails")):
            done = site.host.hyper("update", web.name, "--image", image, check=False)
            assert done.returncode == 1
            assert why in done.stdout
            assert site.client.container(web.name)["id"] == before
    assert set(ended) == {"status 200"}
    assert [one["outcome"] for one in history(site, web)] == ["failed", "failed", "done"]
    assert site.host.hyper("ps", "-a", "-q").stdout.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [("--health-cmd", 'test -z "$VERSION" || sleep 0.7', "--health-interval", "100ms", "--health-timeout", "20s")],
    ids=["slow"],
)
def test_what_answers_slower_is_held_back(site: Site, web: Web) -> None:
    """It is healthy, and takes ten times as long to say so; on a host that is busy too, it is not promoted."""
    before = site.client.container(web.name)["id"]
    done = site.host.hyper("update", web.name, "--image", site.new, "--canary", "12s", check=False)
    print(f"\n{done.stdout}")
    assert done.returncode == 1
    newest = history(site, web)[0]
    rows = {row["signal"]: row for row in newest["comparison"]}
    # A host that lets a VM wait for seconds explains it as well: then people are asked.
    assert (newest["outcome"], rows["latency"]["verdict"]) in {("failed", "worse"), ("inconclusive", "unknown")}
    assert "latency" in done.stdout.splitlines()[-2]
    for resource in ("cpu", "memory", "io"):
        row = rows[f"{resource} pressure"]
        assert "%" in row["old"], row
        assert "%" in row["new"], row
    (kept,) = (Path(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if "is kept as it was in" in line)
    about = json.loads((kept / "about.json").read_text())
    assert (about["id"], before) == (newest["container_id"], site.client.container(web.name)["id"])


def test_a_rollback_goes_to_what_was_good(site: Site, web: Web) -> None:
    before = digest(site, web)
    refusal = site.host.hyper("rollback", web.name, check=False)
    assert refusal.returncode == 125
    assert "no earlier image that proved good" in refusal.stderr
    wait_for(lambda: history(site, web)[0]["good"], "the first image proves good")
    with pytest.raises(ApiError) as moved:
        site.client.container_call(web.name, "change", {"image": site.new, "expected_digest": before})
    assert moved.value.code == "digest_moved"
    site.host.hyper("update", web.name, "--image", site.new)
    site.host.hyper("rmi", site.new)  # the name goes, and the image is kept
    after = digest(site, web)
    assert site.host.hyper("rollback", web.name, "--reason", "as before").returncode == 0
    assert digest(site, web) == before
    assert "Hello" in web.page
    asked = {"request_id": "again-1", "actor": "remediation", "to_digest": after}
    first = site.client.container_call(web.name, "rollback", asked)
    assert (first["state"], digest(site, web)) == ("done", after)
    again = site.client.container_call(web.name, "rollback", asked)
    assert again == first, "a request is carried out once"
    with pytest.raises(ApiError) as refused:
        site.client.container_call(web.name, "change", {"image": site.old, "request_id": "again-1"})
    assert refused.value.code == "conflict"
    site.host.hyper("tag", after.removeprefix("sha256:"), site.new)


def test_one_that_fails_while_it_is_watched_is_rolled_back(site: Site, web: Web) -> None:
    before = digest(site, web)
    rollout: list[dict[str, Any]] = []
    body = {"image": site.new, "watch_s": 60, "drain_s": 0, "actor": "test"}
    thread = threading.Thread(target=lambda: rollout.append(change(site, web, body)))
    thread.start()
    wait_for(lambda: state(site, web) == "watching", "the new one is watched")
    os.kill(site.client.container(web.name)["vm"]["pid"], signal.SIGKILL)
    wait_for(lambda: state(site, web, 1) == "rolled_back", "it is rolled back")
    thread.join()
    assert rollout[0]["state"] == "rolled_back"
    assert digest(site, web) == before
    assert "Hello" in web.page
    assert [(one["kind"], one["outcome"]) for one in history(site, web)] == [
        ("rollback", "done"), ("update", "rolled_back"), ("create", "done"),
    ]  # fmt: skip


@pytest.mark.parametrize("options", [("-v", "kept:/srv")], ids=["volume"])
def test_a_volume_is_never_with_two(site: Site, web: Web) -> None:
    site.host.hyper("exec", web.name, "sh", "-c", "echo written > /srv/file; sync")
    refused = site.host.hyper("update", web.name, "--image", site.new, "--canary", "1s", check=False)
    assert "cannot run side by side" in refused.stderr
    before = digest(site, web)
    assert site.host.hyper("update", web.name, "--image", site.ends, check=False).returncode == 1
    assert digest(site, web) == before
    wait_for(lambda: web.page, "the old one answers again")
    site.host.hyper("update", web.name, "--image", site.new)
    assert digest(site, web) != before
    assert site.host.hyper("exec", web.name, "cat", "/srv/file").stdout == "written\n"
    assert "Hello" in web.page
    site.host.hyper("rm", "-f", web.name)
    site.host.hyper("volume", "rm", "kept")


def test_quarantine_and_evidence(site: Site, web: Web) -> None:
    with pytest.raises(ApiError, match="samples"):
        site.client.container_call(web.name, "evidence", {"samples": "x" * (4 * 1024**2 + 1)})
    asked = {"reason": "odd", "request_id": "evidence-1", "samples": "one 1\n"}
    saved = site.client.container_call(web.name, "evidence", asked)
    files = {name: Path(saved["path"]) / name for name in saved["files"]}
    samples = {"samples.prom"}
    assert set(files) == {"about.json", "inspect.json", "events.json", "qmp.json", "log.txt", "console.txt"} | samples
    assert files["samples.prom"].read_text() == "one 1\n"
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert json.loads(files["qmp.json"].read_text())["query-status"]["running"] is True
    site.host.hyper("quarantine", web.name, "--reason", "odd")
    kept = site.client.container(web.name)
    assert (kept["state"], kept["desired"], kept["quarantine"]["reason"]) == ("paused", "stopped", "odd")
    with pytest.raises(OSError, match="refused"):
        get(f"http://127.0.0.1:{web.port}/", timeout_s=0.5)
    with pytest.raises(ApiError):
        site.client.redeploy(web.name, "test", "")
    site.host.hyper("start", web.name)
    assert "Hello" in web.page
    assert site.client.container(web.name)["quarantine"] is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_of_hyperd_finishes_or_undoes_it(site: Site, web: Web, stage: str) -> None:
    """Whatever was under way, one container has the name, and it answers."""
    before = digest(site, web)
    body = {"image": site.new, "canary_s": 0.3, "drain_s": 0.5, "watch_s": 0.3, "request_id": f"crash-{stage}"}
    with hold_open(web.port) if stage == "draining" else contextlib.nullcontext():
        asking = crash_during(site, web, body)
        wait_for(lambda: journal(site, body["request_id"]) in STAGES[STAGES.index(stage) :], stage, interval_s=0.001)
        site.host.hyperd.kill()
    seen = journal(site, body["request_id"])
    asking.join()
    site.host.start()
    result = change(site, web, body)
    print(f"\nkilled when {seen}: {result['state']}")
    undone = seen in ("starting", "observing", "switching")
    assert result["state"] == ("failed" if undone else "done")
    if seen == "observing":  # it ran by then, and ran on until the next daemon came
        (path,) = result["evidence"]
        assert json.loads((Path(path) / "qmp.json").read_text())["query-status"]["running"] is True
    assert (digest(site, web) == before) == undone
    assert "Hello" in web.page
    ids = site.host.hyper("ps", "-a", "-q").stdout.split()
    assert len(ids) == 1
    assert len([one for one in site.host.leftovers() if one.startswith("process")]) == 1
    assert {path.name[:12] for path in site.host.state_dir.glob("containers/*")} == set(ids)
    assert {path.name[:12] for path in site.host.data_dir.glob("containers/*")} == set(ids)
    table = subprocess.run(
        ["nft", "list", "table", "ip", f"hyper_{site.host.bridge}"], capture_output=True, text=True, check=True
    ).stdout
    assert table.count(f"{web.port} : ") == 1


@pytest.mark.parametrize("options", [("-v", "kept:/srv")], ids=["volume"])
def test_a_crash_in_the_middle_of_a_change_in_place(site: Site, web: Web) -> None:
    """The name and the disk are with the new container, which has not proved itself: the old one gets both back."""
    before = site.client.container(web.name)["id"]
    body = {"image": site.ends, "request_id": f"crash-{web.name}"}
    asking = crash_during(site, web, body)
    wait_for(lambda: site.client.container(web.name)["id"] != before, "the name is with the new one", interval_s=0.001)
    site.host.hyperd.kill()
    asking.join()
    site.host.start()
    assert change(site, web, body)["state"] == "failed"
    wait_for(lambda: web.page, "the old one answers again")
    assert site.client.container(web.name)["id"] == before
    assert site.host.hyper("ps", "-a", "-q", "--no-trunc").stdout.split() == [before]
    site.host.hyper("rm", "-f", web.name)
    site.host.hyper("volume", "rm", "kept")


def crash_during(site: Site, web: Web, body: dict[str, Any]) -> threading.Thread:
    """Ask for a change that the daemon does not live to answer."""

    def ask() -> None:
        with pytest.raises(DaemonUnreachable):
            change(site, web, body)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def change(site: Site, web: Web, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = site.client.container_call(web.name, "change", body)
    return found


def state(site: Site, web: Web, index: int = 0) -> str:
    found = site.client.container_call(web.name, "rollouts", method="GET")
    return str(found[index]["state"])


def journal(site: Site, request_id: str) -> str:
    """The state of a rollout, as the store has it."""
    with sqlite3.connect(f"file:{site.host.data_dir}/hyper.db?mode=ro", uri=True) as database:
        rows = database.execute("SELECT body FROM rollouts ORDER BY seq DESC LIMIT 1").fetchall()
    database.close()
    found = json.loads(rows[0][0]) if rows else {}
    return str(found["state"]) if found.get("request_id") == request_id else ""


@contextmanager
def hold_open(port: int) -> Iterator[http.client.HTTPConnection]:
    """A connection that stays open, so that the old container has something to wait for."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        yield connection
