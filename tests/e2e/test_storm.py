"""kill -9 of hyperd at random points of a mixed load; after each, every invariant holds.

`HYPER_STORM` sets how many times; `HYPER_STORM_SEED` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.host import Host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

KILLS = int(os.environ.get("HYPER_STORM", "12"))
SEED = int(os.environ.get("HYPER_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
WORKERS = 2
MAX_CONTAINERS = 6
SETTLE_S = 60.0


class Load:
    """Runs, stops and removes containers as fast as it can, and remembers what it was promised."""

    def __init__(self, host: Host, image: str, number: int) -> None:
        self._host = host
        self._image = image
        self._number = number
        self._random = random.Random(f"{SEED}/{number}")
        self._made = 0
        self.promised: dict[str, int] = {}  # name of a container that was started, to the exit code that it will have
        self.unsure: set[str] = set()  # a command about it was cut off
        self.done: Counter[str] = Counter()

    def until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            choice = self._random.choice(("run", "run", "stop", "remove", "execute"))
            if choice == "run" or not self.promised:
                self._run()
            else:
                name = self._random.choice(sorted(self.promised))
                getattr(self, f"_{choice}")(name)

    def _command(self, name: str, *arguments: str) -> bool:
        self.unsure.add(name)
        done = self._host.hyper(*arguments, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode == 0:
            self.unsure.discard(name)
            self.done[arguments[0]] += 1
        return done.returncode == 0

    def _run(self) -> None:
        if len(self.promised) >= MAX_CONTAINERS:
            return
        self._made += 1
        name, code = f"storm{self._number}-{self._made}", self._random.randrange(1, 100)
        script = f"echo promised {code}; while [ ! -e /end ]; do sleep 0.1; done; exit {code}"
        if self._command(name, "run", "-d", "--name", name, self._image, "sh", "-c", script):
            self.promised[name] = code

    def _stop(self, name: str) -> None:
        del self.promised[name]
        self._command(name, "stop", "-t", "0", name)

    def _remove(self, name: str) -> None:
        del self.promised[name]
        if self._command(name, "rm", "-f", name):
            assert self._host.hyper("inspect", name, check=False).returncode != 0

    def _execute(self, name: str) -> None:
        self._host.hyper("exec", name, "true", check=False)


@pytest.fixture
def stormy(images: Images) -> Iterator[Host]:
    one = Host(accel="tcg", default_disk_bytes=256 * 1024**2)
    try:
        one.start()
        one.hyper("pull", images.busybox)
        wait_for(lambda: "templates ready: 1" in one.hyper("info").stdout, "the template is built", 60)
        yield one
    except BaseException:
        print(one.hyperd.log.read_text()[-8000:])
        raise
    finally:
        one.close()


@pytest.mark.timeout(60 + 20 * KILLS)
def test_every_invariant_holds_after_kill_9(stormy: Host, images: Images) -> None:
    chance = random.Random(SEED)
    print(f"\n{KILLS} kills, HYPER_STORM_SEED={SEED}")
    loads = [Load(stormy, images.busybox, number) for number in range(WORKERS)]
    for _ in range(KILLS):
        stop = threading.Event()
        threads = [threading.Thread(target=load.until, args=(stop,)) for load in loads]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.05, 2.5))  # the moment is what is random
        stormy.hyperd.kill()
        stop.set()
        for thread in threads:
            thread.join(120)
        stormy.start()
        check(stormy, loads)
    for load in loads:
        for name, code in load.promised.items():
            stormy.hyper("exec", name, "touch", "/end")
            assert stormy.hyper("wait", name).stdout.strip() == str(code)
    print(f"done: {dict(sum((load.done for load in loads), Counter()))}")


def check(host: Host, loads: list[Load]) -> None:
    """Nothing promised is lost, nothing that is not owned is there, and what is half-done gets finished."""

    def settled() -> bool:
        rows = json.loads(host.hyper("ps", "-a", "--format", "json").stdout)
        return all(row["state"] in {"running", "exited", "created"} for row in rows)

    wait_for(settled, "every container is in a state of rest", SETTLE_S)
    rows = {row["name"]: row for row in json.loads(host.hyper("ps", "-a", "--format", "json").stdout)}
    for load in loads:
        for name, code in load.promised.items():
            assert rows[name]["state"] == "running", rows[name]
            assert host.hyper("logs", name).stdout == f"promised {code}\n"
        # What was cut off may have happened or not; it is there whole, or not at all. It is forgotten here.
        for name in load.unsure - set(load.promised):
            if name in rows:
                host.hyper("rm", "-f", name)
        load.unsure.clear()
    rows = {row["name"]: row for row in json.loads(host.hyper("ps", "-a", "--format", "json").stdout)}
    ids = {row["id"] for row in rows.values()}
    running = {row["id"] for row in rows.values() if row["state"] == "running"}
    for parent in (host.state_dir / "containers", host.data_dir / "containers"):
        assert {path.name for path in parent.iterdir()} == ids
    groups = {path.name for path in Path("/sys/fs/cgroup").glob(f"**/{host.cgroup_parent}/*") if path.is_dir()}
    assert groups == running
    assert len([one for one in host.leftovers() if one.startswith("process")]) == len(running)
