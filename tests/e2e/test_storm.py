"""kill -9 of hyperd at random points of a mixed load; after each, every invariant holds.

`HYPER_STORM` sets how many times (200; `make soak` does it 1000 times); `HYPER_STORM_SEED` repeats a run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.client import Client, ClientError
from runtime.logs import EVENT, Decoder
from tests.contract.images import layouts
from tests.e2e.storm_daemon import Forge
from tests.e2e.storm_load import Load
from tests.host import Host, running_host, wait_for
from tests.images import registry
from tests.images.build import TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import Images

KILLS = int(os.environ.get("HYPER_STORM", "200"))
SEED = int(os.environ.get("HYPER_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
WORKERS = 2
LONGEST_LOAD_S = 0.8
STEADY = 0.25  # so many rounds go on until something was done: on a slow machine nothing may be, in the time above
STEADY_POOLED = 0.7
POOLED = 0.05  # so many rounds have a pool; to fill it takes some seconds, so the others do without
TWICE = 0.1  # so many times it is killed again while it comes back
LONGEST_RETURN_S = 0.5
WHOLE = 0.1  # so many times a whole process is started; the others are forked, with all imported
FIRST_DONE_S = 60.0
SETTLE_S = 60.0
KILLED = 137  # exit code


@pytest.fixture
def stormy(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, default_disk_bytes=256 * 1024**2) as one:
        one.hyperd.env["TMPDIR"] = str(one.data_dir / "tmp")
        (one.data_dir / "tmp").mkdir()
        yield one


def small_image(images: Images, number: int, tmp_path: Path) -> str:
    """An image of a worker's own in the registry, which is soon pulled."""
    data = layouts.entry("random", data=random.Random(number).randbytes(1 << 20))
    layouts.write_layout(tmp_path, [layouts.layer(*layouts.busybox_root(), data)], tag=TAG)
    reference = f"{images.registry.address}/small{number}:1"
    registry.push(tmp_path, reference)
    return reference


@pytest.mark.timeout(120 + 20 * KILLS)
def test_every_invariant_holds_after_kill_9(stormy: Host, images: Images, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    print(f"\n{KILLS} kills, HYPER_STORM_SEED={SEED}")
    client = Client(str(stormy.state_dir / "hyperd.sock"), timeout_s=60)
    loads = [
        Load(
            stormy,
            client,
            images.busybox,
            small_image(images, number, tmp_path / str(number)),
            number,
            random.Random(f"{SEED}/{number}"),
        )
        for number in range(WORKERS)
    ]
    look = Invariants(stormy, client, f"{images.busybox}:latest")
    took: Counter[str] = Counter()
    with Forge(stormy.hyperd) as forge:
        for kill in range(KILLS):
            start = stormy.hyperd.start if chance.random() < WHOLE else forge.start
            began = time.monotonic()
            pooled = chance.random() < POOLED
            if pooled:
                fill_the_pool(stormy, client, start)
            let_loose(stormy, loads, chance, first="run" if pooled else None)
            killed = time.monotonic()
            start()
            if chance.random() < TWICE:
                time.sleep(chance.uniform(0.0, LONGEST_RETURN_S))
                stormy.hyperd.kill()
                start()
            stormy.hyperd.ready(lambda: answers(client))
            back = time.monotonic()
            try:
                look.check(loads)
            except BaseException:
                print(f"after kill {kill} (seed {SEED})\n{stormy.hyperd.log.read_text()[-8000:]}")
                raise
            took += Counter({"load": killed - began, "return": back - killed, "check": time.monotonic() - back})
        stormy.hyperd.kill()
        stormy.start()
    backing = [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    for directory in (stormy.data_dir, stormy.state_dir):
        assert not [
            line for line in [*Path("/proc/self/mounts").read_text().splitlines(), *backing] if str(directory) in line
        ]
    for load in loads:
        for name, promise in load.promised.items():
            if promise.copied:
                assert stormy.hyper("exec", name, "sh", "-c", "cat /copied").stdout == promise.copied
            if promise.running:
                # The container may be gone, and this with it, before it is said how this ended.
                assert stormy.hyper("exec", name, "sh", "-c", "> /end", check=False).returncode in {0, KILLED}
            assert stormy.hyper("wait", name).stdout.strip() == str(promise.code)
    for what in ("done", "cut", "refused"):
        print(f"{what}: {dict(sum((getattr(load, what) for load in loads), Counter()))}")
    print(f"seconds: {took}; pool: {look.from_pool} starts")
    assert done(loads), "the load did something"


def let_loose(host: Host, loads: list[Load], chance: random.Random, first: str | None) -> None:
    """The load, until the daemon is killed at some moment of it."""
    before = done(loads)
    threads = [threading.Thread(target=load.until, args=(first,)) for load in loads]
    for thread in threads:
        thread.start()
    if chance.random() < (STEADY if first is None else STEADY_POOLED):
        wait_for(lambda: done(loads) > before, "something was done", FIRST_DONE_S)
    time.sleep(chance.uniform(0.02, LONGEST_LOAD_S))  # the moment is what is random
    host.hyperd.kill()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    wrong = [text for load in loads for text in load.wrong]
    assert not wrong, wrong


def fill_the_pool(host: Host, client: Client, start: Callable[[], None]) -> None:
    """Come back once more, with a pool, and wait until a clone waits there."""
    host.hyperd.kill()
    host.hyperd.env["HYPER_POOL_DEPTH"] = "1"
    try:
        start()
        host.hyperd.ready(lambda: answers(client))
        wait_for(lambda: client.info()["pool_waiting"] > 0, "a clone waits", 60)
    finally:
        host.hyperd.env["HYPER_POOL_DEPTH"] = "0"


def done(loads: list[Load]) -> int:
    """How much the load has done."""
    return sum(sum(load.done.values()) for load in loads)


def answers(client: Client) -> bool:
    try:
        client.ping()
    except ClientError:
        return False
    return True


def written(client: Client, name: str) -> str:
    """What the container has written."""
    decoder = Decoder()
    records = [record for piece in client.logs(name) for record in decoder.feed(piece)]
    return b"".join(record.payload for record in records if record.kind != EVENT).decode()


class Invariants:
    """What must hold when the daemon has come back."""

    def __init__(self, host: Host, client: Client, image: str) -> None:
        self._host = host
        self._client = client
        self._image = image
        self._whole: set[tuple[str, int, int]] = set()
        self._top = {path.name for path in host.data_dir.iterdir()}
        self._pooled: set[str] = set()

    @property
    def from_pool(self) -> int:
        """How many containers were seen that came from the pool."""
        return len(self._pooled)

    def check(self, loads: list[Load]) -> None:
        """Nothing promised is lost, nothing that is not owned is there, and what is half-done gets finished."""
        client = self._client
        wait_for(lambda: self._settled(loads), "every container is in a state of rest", SETTLE_S)
        rows = {one["name"]: one for one in client.containers(everything=True)}
        volumes = {one["name"] for one in client.call("GET", "/v1/volumes")}
        snapshots = {one["name"] for one in client.call("GET", "/v1/snapshots")}
        names = {name for one in client.images() for name in one["references"]}
        containers: list[Callable[[], object]] = []
        others: list[Callable[[], object]] = []
        for load in loads:
            for name, promise in load.promised.items():
                state, code = ("running", None) if promise.running else ("exited", promise.code)
                assert (rows[name]["state"], rows[name]["exit_code"]) == (state, code), rows[name]
                assert written(client, name) == f"promised {promise.code}\n" * promise.starts
            assert load.volumes <= volumes
            assert load.snapshots <= snapshots
            assert load.images <= names
            # What was cut off may have happened or not; it is there whole, or not at all. It is forgotten here.
            for name in load.unsure - set(load.promised):
                if name in rows:
                    containers.append(functools.partial(client.remove, name, force=True))
                if name in volumes - load.volumes:
                    others.append(functools.partial(client.call, "DELETE", f"/v1/volumes/{name}"))
                if name in snapshots - load.snapshots:
                    others.append(functools.partial(client.call, "DELETE", f"/v1/snapshots/{name}"))
                if name in names - load.images:
                    others.append(functools.partial(client.remove_image, name))
            load.unsure.clear()
        with ThreadPoolExecutor() as threads:  # none of them need wait for another, but a volume for its container
            for forgotten in (containers, others):
                for done in [threads.submit(one) for one in forgotten]:
                    done.result()
        rows = {one["name"]: one for one in client.containers(everything=True)}
        assert set(rows) == {name for load in loads for name in load.promised}
        self._containers(list(rows.values()))
        self._volumes("volumes", {name for load in loads for name in load.volumes})
        self._volumes("snapshots", {name for load in loads for name in load.snapshots})
        self._images(
            {self._image, *(name for load in loads for name in load.images)},
            {one["image_digest"] for one in rows.values()},
        )
        self._nothing_half_made()

    def _settled(self, loads: list[Load]) -> bool:
        """Whether nothing is going on any more; fails with what is."""
        found = {one["name"]: one for one in self._client.containers(everything=True)}
        states = {name: one["state"] for name, one in found.items()}
        ended = [name for load in loads for name, promise in load.promised.items() if not promise.running]
        assert set(states.values()) <= {"running", "paused", "exited", "created"}, states
        assert all(states[name] == "exited" for name in ended), states
        temporary = {name for name in states if name.startswith("temporary")}
        assert all(states[name] == "created" for name in temporary), states
        own = [one for one in self._client.call("GET", "/v1/volumes") if one["anonymous"]]
        assert len(own) <= len(temporary), (own, states)
        nameless = {one["digest"] for one in self._client.images() if not one["references"]}
        assert nameless <= {one["image_digest"] for one in found.values()}
        return True

    def _containers(self, rows: list[dict[str, Any]]) -> None:
        """Directories, control groups, processes, taps, rules and disks are those of what is there, and no more."""
        host = self._host
        ids = {row["id"] for row in rows}
        running = {row["id"]: row["network"] for row in rows if row["state"] == "running"}
        for parent in (host.state_dir / "containers", host.data_dir / "containers"):
            assert {path.name for path in parent.iterdir()} == ids
        trees = [path for level in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{level}{host.cgroup_parent}/*")]
        groups = {path.name for path in trees if path.is_dir()}
        taps = {network["tap"] for network in running.values()}
        # One from the pool keeps the groups that it waited in, and its tap has their name.
        assert {f"hyp{name[:12]}" for name in groups} == taps
        self._pooled |= groups - set(running)
        left = host.leftovers()
        assert len([one for one in left if one.startswith("process")]) == len(running), left
        assert {one for one in left if one.startswith("hyp")} == taps
        assert not [
            path for kind in (host.state_dir, host.data_dir) for path in (kind / "pool").glob("[0-9a-f]" * 64 + "*")
        ]
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

    def _volumes(self, kind: str, promised: set[str]) -> None:
        """Each that is named is there, of its size, and nothing beside it."""
        found = {one["name"]: one["size_bytes"] for one in self._client.call("GET", f"/v1/{kind}")}
        assert set(found) == promised
        assert {path.name for path in (self._host.data_dir / kind).iterdir()} == promised
        for name, size_bytes in found.items():
            files = list((self._host.data_dir / kind / name).iterdir())
            assert [(file.name, file.stat().st_size) for file in files] == [("volume.ext4", size_bytes)]

    def _images(self, names: set[str], in_use: set[str]) -> None:
        """Each that is named has its file and its blobs, whole; one without a name is there for a container alone."""
        data, images = self._host.data_dir, self._client.images()
        assert {name for one in images for name in one["references"]} == names
        assert {one["digest"] for one in images if not one["references"]} <= in_use, "of no use, and there"
        digests = {one["digest"].removeprefix("sha256:") for one in images}
        assert {path.name for path in (data / "images").iterdir()} == digests
        for digest in digests:
            assert (data / "images" / digest / "image.erofs").stat().st_size > 0
        blobs = data / "blobs/sha256"
        for path in blobs.iterdir():
            seen = (path.name, path.stat().st_ino, path.stat().st_mtime_ns)
            if seen not in self._whole:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "a blob is half there"
                self._whole.add(seen)
        for digest in digests:
            manifest = json.loads((blobs / digest).read_bytes())
            for part in (manifest["config"], *manifest["layers"]):
                assert (blobs / part["digest"].removeprefix("sha256:")).stat().st_size == part["size"]

    def _nothing_half_made(self) -> None:
        """No file that is written beside its place, and none in a place of its own."""
        data = self._host.data_dir
        assert list((data / "tmp").iterdir()) == []
        assert {path.name for path in data.iterdir()} - self._top <= {"pool"}
        own = [data / name for name in ("blobs", "containers", "images", "snapshots", "volumes", "templates")]
        assert not [path for parent in own for path in parent.rglob(".*")]
