"""kill -9 of hyperd at random points of a mixed load; after each, every invariant holds.

`HYPER_STORM` sets how many times (200; `make soak` does it 1000 times); `HYPER_STORM_SEED` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.client import Client, ClientError
from runtime.logs import EVENT, Decoder
from tests.host import Host, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

KILLS = int(os.environ.get("HYPER_STORM", "200"))
SEED = int(os.environ.get("HYPER_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
WORKERS = 2
MAX_CONTAINERS = 4
LONGEST_LOAD_S = 1.0
STEADY = 0.25  # so many rounds go on until a container was started: on a slow machine none may be, in the time above
FIRST_START_S = 60.0
SETTLE_S = 60.0
CHOICES = ("run", "run", "finish", "stop", "remove", "execute", "pause", "restart", "volume")


@dataclass(slots=True)
class Promise:
    """What is owed for a container that was started: its exit code, its log line once a start, and whether it runs."""

    code: int
    starts: int = 1
    running: bool = True


@dataclass(slots=True)
class Load:
    """Runs, stops and removes containers as fast as it can, and remembers what it was promised."""

    host: Host
    image: str
    number: int
    promised: dict[str, Promise] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)  # a command about it was cut off
    done: Counter[str] = field(default_factory=Counter)
    made: int = 0
    random: random.Random = field(default_factory=random.Random)

    def until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            choice = self.random.choice(CHOICES)
            running = sorted(name for name, promise in self.promised.items() if promise.running)
            if choice == "volume":
                self._volume()
            elif choice in {"run", "finish"} or not running:
                self._run(ends=choice == "finish")
            else:
                getattr(self, f"_{choice}")(self.random.choice(running))

    def _command(self, name: str, *arguments: str) -> bool:
        self.unsure.add(name)
        done = self.host.hyper(*arguments, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            self.unsure.discard(name)
            self.done[arguments[0]] += 1
        return done.returncode == 0

    def _run(self, *, ends: bool) -> None:
        if len(self.promised) >= MAX_CONTAINERS:
            self._remove(self.random.choice(sorted(self.promised)))
            return
        self.made += 1
        name, code = f"storm{self.number}-{self.made}", self.random.randrange(1, 100)
        # One ends by itself, perhaps while no daemon is there to see it; the others when the test is over.
        life = f"sleep 0.{self.random.randrange(10)}" if ends else "while [ ! -e /end ]; do sleep 0.1; done"
        script = f"echo promised {code}; {life}; exit {code}"
        if self._command(name, "run", "-d", "-p", "80", "--name", name, self.image, "sh", "-c", script):
            self.promised[name] = Promise(code, running=not ends)

    def _stop(self, name: str) -> None:
        del self.promised[name]
        self._command(name, "stop", "-t", "0", name)

    def _remove(self, name: str) -> None:
        del self.promised[name]
        if self._command(name, "rm", "-f", name):
            assert self.host.hyper("inspect", name, check=False).returncode != 0

    def _restart(self, name: str) -> None:
        promise = self.promised.pop(name)
        if self._command(name, "restart", "-t", "0", name):
            promise.starts += 1
            self.promised[name] = promise

    def _pause(self, name: str) -> None:
        promise = self.promised.pop(name)
        if self._command(name, "pause", name) and self._command(name, "unpause", name):
            self.promised[name] = promise

    def _execute(self, name: str) -> None:
        self.host.hyper("exec", name, "true", check=False)

    def _volume(self) -> None:
        if self.volumes:
            name = self.volumes.pop()
            self._command(name, "volume", "rm", name)
            return
        self.made += 1
        name = f"volume{self.number}-{self.made}"
        if self._command(name, "volume", "create", "--size", "16m", name):
            self.volumes.add(name)


@pytest.fixture
def stormy(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, default_disk_bytes=256 * 1024**2) as one:
        yield one


@pytest.mark.timeout(120 + 20 * KILLS)
def test_every_invariant_holds_after_kill_9(stormy: Host, images: Images) -> None:
    chance = random.Random(SEED)
    print(f"\n{KILLS} kills, HYPER_STORM_SEED={SEED}")
    loads = [
        Load(stormy, images.busybox, number, random=random.Random(f"{SEED}/{number}")) for number in range(WORKERS)
    ]
    client = Client(str(stormy.state_dir / "hyperd.sock"), timeout_s=30)
    for _ in range(KILLS):
        stop = threading.Event()
        threads = [threading.Thread(target=load.until, args=(stop,)) for load in loads]
        for thread in threads:
            thread.start()
        if chance.random() < STEADY:
            before = started(loads)
            wait_for(lambda before=before: started(loads) > before, "a container was started", FIRST_START_S)
        time.sleep(chance.uniform(0.02, LONGEST_LOAD_S))  # the moment is what is random
        stormy.hyperd.kill()
        stop.set()
        for thread in threads:
            thread.join(120)
        stormy.hyperd.start()
        stormy.hyperd.ready(lambda: answers(client))
        check(stormy, client, loads)
    backing = [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    for directory in (stormy.data_dir, stormy.state_dir):
        assert not [
            line for line in [*Path("/proc/self/mounts").read_text().splitlines(), *backing] if str(directory) in line
        ]
    for load in loads:
        for name, promise in load.promised.items():
            if promise.running:
                stormy.hyper("exec", name, "touch", "/end")
            assert stormy.hyper("wait", name).stdout.strip() == str(promise.code)
    print(f"done: {dict(sum((load.done for load in loads), Counter()))}")
    assert started(loads), "the load did something"


def started(loads: list[Load]) -> int:
    """How many containers the load has started."""
    return sum(load.done["run"] for load in loads)


def answers(client: Client) -> bool:
    try:
        client.ping()
    except ClientError:
        return False
    return True


def check(host: Host, client: Client, loads: list[Load]) -> None:
    """Nothing promised is lost, nothing that is not owned is there, and what is half-done gets finished."""

    def settled() -> bool:
        found = {one["name"]: one for one in client.containers(everything=True)}
        ended = [name for load in loads for name, promise in load.promised.items() if not promise.running]
        return all(one["state"] in {"running", "paused", "exited", "created"} for one in found.values()) and all(
            found[name]["state"] == "exited" for name in ended
        )

    wait_for(settled, "every container is in a state of rest", SETTLE_S)
    rows = {one["name"]: one for one in client.containers(everything=True)}
    volumes = {one["name"] for one in client.call("GET", "/v1/volumes")}
    for load in loads:
        for name, promise in load.promised.items():
            state, code = ("running", None) if promise.running else ("exited", promise.code)
            assert (rows[name]["state"], rows[name]["exit_code"]) == (state, code), rows[name]
            assert written(client, name) == f"promised {promise.code}\n" * promise.starts
        assert load.volumes <= volumes
        # What was cut off may have happened or not; it is there whole, or not at all. It is forgotten here.
        for name in load.unsure - set(load.promised):
            if name in rows:
                client.remove(name, force=True)
            if name in volumes and name not in load.volumes:
                client.call("DELETE", f"/v1/volumes/{name}")
        load.unsure.clear()
    owned(host, client, {name for load in loads for name in load.volumes})


def written(client: Client, name: str) -> str:
    """What the container has written."""
    decoder = Decoder()
    records = [record for piece in client.logs(name) for record in decoder.feed(piece)]
    return b"".join(record.payload for record in records if record.kind != EVENT).decode()


def owned(host: Host, client: Client, volumes: set[str]) -> None:
    """Directories, control groups, processes, taps, rules and disks are those of what is there, and no more."""
    rows = client.containers(everything=True)
    ids = {row["id"] for row in rows}
    running = {row["id"]: row["network"] for row in rows if row["state"] == "running"}
    for parent in (host.state_dir / "containers", host.data_dir / "containers"):
        assert {path.name for path in parent.iterdir()} == ids
    assert {path.name for path in (host.data_dir / "volumes").iterdir()} == volumes
    trees = [path for level in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{level}{host.cgroup_parent}/*")]
    groups = {path.name for path in trees if path.is_dir()}
    assert groups == set(running)
    left = host.leftovers()
    assert len([one for one in left if one.startswith("process")]) == len(running), left
    assert {one for one in left if one.startswith("hyp")} == {network["tap"] for network in running.values()}
    ruled = subprocess.run(
        ["nft", "-j", "list", "table", "ip", f"hyper_{host.bridge}"], capture_output=True, check=True, text=True
    ).stdout
    maps = [one["map"] for one in json.loads(ruled)["nftables"] if "map" in one]
    published = {
        (port, tuple(target["concat"]))
        for one in maps
        if one["name"] == "tcp_any"
        for port, target in one.get("elem", ())
    }
    assert published == {
        (port["host_port"], (network["address"], port["container_port"]))
        for network in running.values()
        for port in network["ports"]
    }
