"""Rollouts over VMs that are only pretended: every way they can go, and a crash before every write to the store."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import evidence, recovery
from runtime.changes import course, readiness, signals
from runtime.changes.hostwait import HostTime
from runtime.changes.rollout import ENDS, FOLLOWING, State
from runtime.changes.rollouts import Asked, Terms
from runtime.config import Config
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.errors import Conflict, DigestMoved, DiskFull, GuestFailed, HostUnable, InvalidInput, NoKnownGood
from runtime.life import Check
from runtime.network.ports import PortReservations
from runtime.record import Network, Port, Quarantine
from runtime.spec import HealthSpec, PortSpec, RestartSpec, Spec, VolumeSpec
from runtime.store import Store
from tests.host import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from runtime.changes.rollout import Rollout
    from runtime.life import Container

OLD, NEW, ILL = ("sha256:" + letter * 64 for letter in "abc")
VOLUME = (VolumeSpec(source="kept", target="/srv"),)
WRITES = ("INSERT", "UPDATE", "DELETE")


class Crash(BaseException):
    """The daemon is gone: what it was doing does not go on."""


class World:
    """What is there whether a daemon lives or not: VMs by id, with their images, and the kernel's table of ports."""

    def __init__(self) -> None:
        self.vms: dict[str, str] = {}
        self.table: list[tuple[str, Port]] = []
        self.started: set[str] = set()
        self.nft_works = True
        self.answers = True
        self.host_is_short = False
        self.most_at_once = 0


class DoomedStore(Store):
    """Crashes before the write with this number, and at everything after it."""

    def __init__(self, path: Path, crash_at: int | None = None) -> None:
        self.writes, self.crash_at, self.dead = 0, None, False
        super().__init__(path)
        self.crash_at = crash_at

    def arm(self, crash_at: int | None) -> None:
        self.writes, self.crash_at = 0, crash_at

    def execute(self, statement: str, *values: object) -> Any:
        if statement.startswith(WRITES) and " events " not in statement:  # which are never alone
            self.writes += 1
            self.dead = self.dead or (self.crash_at is not None and self.writes >= self.crash_at)
        if self.dead:
            raise Crash
        return super().execute(statement, *values)


class Vms:
    """In the place of the supervisor."""

    def __init__(self, engine: Engine, world: World, store: DoomedStore) -> None:
        self._engine, self._world, self._store = engine, world, store

    async def start(self, container: Container, *, retry: bool = False) -> None:
        lives, lifecycle = self._engine.lives, container.record.lifecycle
        lives.change(
            container, "starting", desired="running", epoch=lifecycle.epoch + 1, retry_at=None, quarantine=None,
            retries=lifecycle.retries + retry,
        )  # fmt: skip
        await self._live()
        self._world.started.add(container.id)
        digest = container.record.image_digest
        if digest == ILL:
            lives.change(container, "exited", exit_code=1)
            raise GuestFailed("it cannot start")
        ports = self._engine.ports.reserve(container.id, (Port(**one.model_dump()) for one in container.spec.ports))
        self._world.vms[container.id] = digest
        if container.spec.disks:
            self._world.most_at_once = max(self._world.most_at_once, len(self._world.vms))
        network = Network("tap", "bridge", f"10.0.0.{container.slot + 2}", "mac", ports)
        lives.change(container, "running", started_at=time.time() - 60, network=network, health="none")
        if ports:
            await self.publish()

    async def stop(self, container: Container, timeout_s: float | None, number: int | None = None) -> None:
        del timeout_s, number
        await self.kill(container)

    async def kill(self, container: Container) -> None:
        await self._live()
        self._world.vms.pop(container.id, None)
        await self.after_end(container)

    async def after_end(self, container: Container, *, with_host: bool = False) -> None:
        del with_host
        self._engine.ports.release(container.id)
        self._engine.lives.change(container, "exited", exit_code=137, network=None)

    async def end(self, container: Container, exit_code: int = 1) -> None:
        """The VM ends by itself."""
        self._world.vms.pop(container.id)
        self._engine.ports.release(container.id)
        self._engine.lives.change(container, "exited", exit_code=exit_code, network=None)

    async def publish(self, *more: tuple[str, Port], without: str = "") -> None:
        await self._live()
        if not self._world.nft_works:
            raise HostUnable("nft refused")
        table = [
            (one.record.network.address, port)
            for one in self._engine.lives.all()
            if one.live and one.id != without and one.record.network
            for port in one.record.network.ports
        ] + list(more)
        assert len({port.host_port for _, port in table}) == len(table), "a port is published once"
        self._world.table = table

    async def pause(self, container: Container) -> None:
        await self._live()

    resume = pause

    def attend(self, container: Container, image: object) -> None:
        pass

    def clear(self, container: Container) -> None:
        pass

    async def _live(self) -> None:
        await asyncio.sleep(0)
        if self._store.dead:
            raise Crash


class Images:
    """Three images, by their digests or as `old`, `new` and `ill`."""

    async def resolve(self, text: str) -> Any:
        digest = {"old": OLD, "new": NEW, "ill": ILL}.get(text, text)
        config = SimpleNamespace(
            entrypoint=["x"], cmd=[], stop_signal="", env=[], healthcheck=None, labels={"of": text}
        )
        return SimpleNamespace(digest=digest, config=config)

    async def collect(self, in_use: object) -> tuple[str, ...]:
        del in_use
        return ()


class NoVolumes:
    """Volumes that are always there."""

    def resolve(self, spec: Spec) -> tuple[Spec, frozenset[str]]:
        return spec, frozenset()

    async def ensure(self, spec: Spec, anonymous: frozenset[str]) -> None:
        pass

    async def forget(self, owner: object) -> None:
        pass


def an_engine(path: Path, world: World, store: DoomedStore) -> Engine:
    config = Config(state_dir=path / "run", data_dir=path / "data")
    for parent in (config.state_dir, config.data_dir):
        (parent / "containers").mkdir(parents=True, exist_ok=True)
    cgroups: Any = SimpleNamespace(existing=dict, oom_kills=lambda groups: None)
    counts = Counts(path / "runtime.json", {}, dict)
    engine = Engine(config, store, Images(), None, cgroups, PortReservations(), counts, NoVolumes())  # type: ignore[arg-type]  # pretended
    engine.supervisor = Vms(engine, world, store)  # type: ignore[assignment]  # same
    return engine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    async def look(container: Container) -> signals.Sample | None:
        if container.state != "running" or not world.answers:
            return None
        waited_ns = int(time.monotonic() * 20e9) if world.host_is_short else 0
        host = HostTime(1, {1: waited_ns}, 0)
        return signals.Sample(time.monotonic(), 1 << 20, 0, int(time.monotonic() * 1000), {}, host)

    async def accepts(container: Container, port: int) -> bool:
        del port
        return container.state == "running"

    async def connections(container: Container, ports: object) -> int:
        del container, ports
        return 0

    monkeypatch.setattr(signals, "look", look)
    monkeypatch.setattr(signals, "accepts", accepts)
    monkeypatch.setattr(signals, "connections", connections)
    monkeypatch.setattr(course, "DRAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(readiness, "_POLL_S", 0.001)

    def process(container: Container) -> Any:
        async def kill() -> None:
            world.vms.pop(container.id, None)

        return SimpleNamespace(kill=kill, pid=1) if container.id in world.vms else None

    monkeypatch.setattr(recovery, "_process_of", process)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: some hundred databases are made in it."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture
async def engine(tmp_path: Path, world: World) -> AsyncIterator[Engine]:
    store = DoomedStore(tmp_path / "hyper.db")
    one = an_engine(tmp_path, world, store)
    yield one
    await finished(one)
    release(one)
    store.close()


async def web(engine: Engine, **members: Any) -> Container:
    port = PortSpec(host_ip="127.0.0.1", host_port=free_port(), container_port=80)
    return await engine.start((await engine.create(Spec(image="old", name="web", ports=(port,), **members))).id)


async def finished(engine: Engine) -> None:
    """Wait for what goes on in the background."""
    while tasks := [*engine.rollouts._tasks.values(), *engine._background]:
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


def release(engine: Engine) -> None:
    for id_ in list(engine.ports._sockets):
        engine.ports.release(id_)


def well(engine: Engine, world: World, digest: str) -> None:
    """One container, of this image, has the name and the port, and nothing else is there."""
    (one,) = engine.lives.all()
    assert (one.record.name, one.spec.name, one.record.image_digest, one.state) == ("web", "web", digest, "running")
    assert world.vms == {one.id: digest}
    assert one.record.network is not None
    (port,) = one.record.network.ports
    assert world.table == [(one.record.network.address, port)]
    assert set(engine.ports._sockets) == {one.id}
    assert engine.book.open_rollouts() == []
    assert engine.store.interrupted() == []
    assert [path.name for path in (engine.config.data_dir / "containers").iterdir()] == [one.id]


def kept(data_dir: Path) -> dict[str, str]:
    """Why each container was saved as it was, by id."""
    about = [json.loads(one.read_text()) for one in data_dir.glob("evidence/*/about.json")]
    assert len({one["id"] for one in about}) == len(about), "each once"
    return {one["id"]: one["reason"] for one in about}


def terms(**members: Any) -> Terms:
    return Terms(**{"drain_s": 0.01, **members})


async def test_promoted(engine: Engine, world: World) -> None:
    first = await web(engine, restart=RestartSpec(policy="always"), env=("A=1",))
    rollout = await engine.rollouts.change("web", "new", terms(canary_s=0.2), Asked("me", "why", "r1"))
    assert rollout.state == "done", rollout
    well(engine, world, NEW)
    (one,) = engine.lives.all()
    assert one.id != first.id
    assert one.spec == first.spec.model_copy(update={"image": "new", "name": "web", "restart": one.spec.restart})
    assert (one.spec.restart.policy, one.spec.env) == ("always", ("A=1",))
    assert (one.record.revision, one.record.lifecycle.desired) == (2, "running")
    assert await engine.rollouts.change("web", "new", terms(), Asked("me", "why", "r1")) == rollout
    told = [event.action for event in engine.store.events(0, 0, 1000) if event.action.startswith("update")]
    assert told == [f"update: {what}" for what in ("starting", "observing", "switching", "switched", "done")]
    assert engine.store.audit_log(1)[0]["detail"]["state"] == "done"
    change, made = engine.rollouts.history("web")
    assert rollout.comparison
    assert (change.comparison, made.comparison) == (rollout.comparison, ())
    (observed,) = (step.text for step in rollout.steps if step.text.startswith("observed for"))
    assert observed.startswith("observed for 0.2 s: well; nothing is said by latency (no health check), ")
    assert kept(engine.config.data_dir) == {}, "nothing was wrong with what is gone"


async def test_what_a_name_of_an_image_has_become_is_not_taken_for_what_it_was(engine: Engine, world: World) -> None:
    await web(engine)
    with pytest.raises(DigestMoved, match=NEW):
        await engine.rollouts.change("web", "new", terms(), Asked(), OLD)
    assert engine.rollouts.rollouts("web") == []
    well(engine, world, OLD)
    assert (await engine.rollouts.change("web", "new", terms(), Asked(), NEW)).state == "done"


@pytest.mark.parametrize("short", [False, True], ids=["with room", "short of CPUs"])
async def test_one_whose_checks_take_longer_is_held_back(engine: Engine, world: World, *, short: bool) -> None:
    world.host_is_short = short
    first = await web(engine, health=HealthSpec(test=("CMD", "true")))
    changing = asyncio.create_task(engine.rollouts.change("web", "new", terms(canary_s=0.3), Asked()))
    await reached(engine, "observing")
    new = next(one for one in engine.lives.all() if one is not first)
    now = time.time()
    for one, took_s in ((first, 0.02), (new, 0.9)):
        one.checks.extend(Check(now + number, now + number + took_s, 0, "") for number in range(5))
    rollout = await changing
    assert rollout.state == ("inconclusive" if short else "failed")
    assert "latency (20 ms (5 checks) → 900 ms (5 checks)" in rollout.detail
    assert ("host's CPUs" in rollout.detail) == short
    well(engine, world, OLD)
    assert set(kept(engine.config.data_dir)) == {new.id}
    assert rollout.evidence == (str(next(engine.config.data_dir.glob("evidence/*"))),)
    (failed, _) = engine.rollouts.history("web")
    (latency,) = (row.verdict for row in failed.comparison if row.signal == "latency")
    assert latency == ("unknown" if short else "worse")


@pytest.mark.parametrize("failure", [DiskFull("no room"), OSError("no room"), KeyError("a defect")])
async def test_what_cannot_be_saved_is_undone_all_the_same(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def save(*args: object) -> Any:
        raise failure

    monkeypatch.setattr(evidence, "save", save)
    await web(engine)
    rollout = await engine.rollouts.change("web", "ill", terms(), Asked())
    assert (rollout.state, rollout.evidence) == ("failed", ())
    well(engine, world, OLD)


@pytest.mark.parametrize("volumes", [(), VOLUME], ids=["side by side", "in place"])
async def test_what_cannot_start_changes_nothing(engine: Engine, world: World, volumes: tuple[VolumeSpec, ...]) -> None:
    first = await web(engine, volumes=volumes, auto_remove=True)
    rollout = await engine.rollouts.change("web", "ill", terms(), Asked())
    assert (rollout.state, "it cannot start" in rollout.detail) == ("failed", True)
    well(engine, world, OLD)
    assert engine.lives.all() == [first]
    assert first.spec.auto_remove
    assert world.most_at_once <= 1
    assert [one.outcome for one in engine.rollouts.history("web")] == ["failed", "done"]
    assert kept(engine.config.data_dir) == {rollout.new.container_id: rollout.detail}


async def test_in_place(engine: Engine, world: World) -> None:
    await web(engine, volumes=VOLUME, auto_remove=True)
    with pytest.raises(InvalidInput):
        await engine.rollouts.change("web", "new", terms(canary_s=1), Asked())
    assert (await engine.rollouts.change("web", "new", terms(), Asked())).state == "done"
    well(engine, world, NEW)
    assert world.most_at_once == 1


async def test_one_that_was_stopped_is_changed_without_a_start(engine: Engine, world: World) -> None:
    await web(engine)
    await engine.stop("web")
    assert (await engine.rollouts.change("web", "new", terms(), Asked())).state == "done"
    assert world.vms == {}
    await engine.start("web")
    well(engine, world, NEW)


async def test_one_that_crashed_is_rolled_back_with_its_ports(engine: Engine, world: World) -> None:
    first = await web(engine)
    engine.book.mark_good(first.record, 1.0)
    await engine.rollouts.change("web", "new", terms(), Asked())
    (second,) = engine.lives.all()
    await engine.supervisor.end(second)  # type: ignore[attr-defined]  # of the pretended one
    rollout = await engine.rollouts.rollback("web", None, Asked())
    assert (rollout.state, rollout.health_before) == ("done", "exited (1)")
    well(engine, world, OLD)
    assert kept(engine.config.data_dir) == {second.id: "before the rollback"}
    with pytest.raises(NoKnownGood):
        await engine.rollouts.rollback("web", None, Asked())


@pytest.mark.parametrize("what", ["stop", "remove", "quarantine", "exit", "unhealthy", "silence"])
async def test_what_happens_while_it_is_observed(engine: Engine, world: World, what: str) -> None:
    first = await web(engine)
    changing = asyncio.create_task(engine.rollouts.change("web", "new", terms(canary_s=0.5), Asked()))
    await reached(engine, "observing")
    new = next(one for one in engine.lives.all() if one is not first)
    assert new.record.network is not None
    assert new.record.network.ports == ()
    with pytest.raises(Conflict):
        await engine.rollouts.change("web", "new", terms(), Asked())
    if what == "stop":
        await engine.stop("web")
    elif what == "remove":
        await engine.remove("web", force=True)
    elif what == "quarantine":
        engine.lives.change(first, quarantine=Quarantine(1.0, "why", "me"))
    elif what == "exit":
        await engine.supervisor.end(new)  # type: ignore[attr-defined]  # of the pretended one
    elif what == "unhealthy":
        engine.lives.change(new, health="unhealthy")
    else:
        world.answers = False
    rollout = await changing
    uncertain = {"stop", "quarantine", "silence"}
    if what != "remove":  # which is a stop at first
        assert rollout.state == ("inconclusive" if what in uncertain else "failed"), rollout
    assert rollout.detail
    assert new.id not in world.vms
    assert kept(engine.config.data_dir) == {new.id: rollout.detail}
    if what in ("exit", "unhealthy", "silence"):
        well(engine, world, OLD)
    if what == "quarantine":
        engine.lives.change(first, quarantine=None)


async def test_nft_that_refuses_leaves_the_old_one(engine: Engine, world: World) -> None:
    await web(engine)
    changing = asyncio.create_task(engine.rollouts.change("web", "new", terms(canary_s=0.1), Asked()))
    await reached(engine, "observing")
    world.nft_works = False
    assert (await changing).state == "failed"
    well(engine, world, OLD)


@pytest.mark.parametrize(
    ("rollback_on", "state"), [(("exit",), "rolled_back"), (("unhealthy",), "done")], ids=["named", "not named"]
)
async def test_watched(engine: Engine, world: World, rollback_on: Any, state: str) -> None:
    await web(engine)
    patience = terms(watch_s=0.5, rollback_on=rollback_on)
    changing = asyncio.create_task(engine.rollouts.change("web", "new", patience, Asked()))
    await reached(engine, "watching")
    (new,) = engine.lives.all()
    await engine.supervisor.end(new)  # type: ignore[attr-defined]  # of the pretended one
    assert (await changing).state == state
    if state == "rolled_back":
        well(engine, world, OLD)
        assert [one.kind for one in engine.rollouts.history("web")] == ["rollback", "update", "create"]
    saved = {new.id: "it ended with 1 while it was watched after an update"} if state == "rolled_back" else {}
    assert kept(engine.config.data_dir) == saved, "what it was like before it is gone"


async def reached(engine: Engine, state: str) -> None:
    """Wait for a rollout in this state."""
    while not any(one.state == state for one in engine.book.open_rollouts()):  # noqa: ASYNC110 -- it is the store that is waited for
        await asyncio.sleep(0.004)


# --- a crash before every write


# The states in which a crash has been seen, by what was going on.
REACHED: dict[str, set[State]] = {
    "update": {"starting", "switching", "draining"},
    "update in place": {"starting", "switching", "draining"},
    "update of a stopped one": {"starting", "switching", "draining"},
    "canary": {"starting", "observing", "switching", "draining"},
    "ill": {"starting"},
    "ill in place": {"starting", "switching"},
    "rollback": {"starting", "switching", "draining"},
    "rollback in place": {"starting", "switching", "draining"},
    "watched": {"switching", "draining", "watching", "starting"},
    "watched in place": {"switching", "draining", "watching", "starting"},
}
# What comes before is as in an update.
FIRST_WRITE = {"canary": 15, "watched": 20, "watched in place": 20}


def test_a_crash_is_tried_in_every_state() -> None:
    assert set().union(*REACHED.values()) == set(FOLLOWING) - ENDS


@pytest.mark.parametrize("kind", REACHED)
async def test_a_crash_before_any_write(memory: Path, kind: str) -> None:
    """Whenever the daemon ends, the next one finishes or undoes it, once."""
    crashes = 0
    outcomes: set[str] = set()
    reached: set[State] = set()
    for crash_at in range(FIRST_WRITE.get(kind, 1), 200):
        crash = await crashed(memory / f"{crash_at}", kind, crash_at)
        if crash is None:
            break
        crashes += 1
        reached |= crash.states
        asked = await comes_back(crash, kind)
        outcomes.add(asked.state if asked else "not begun")
    print(f"\n{kind}: {crashes} crashes in {sorted(reached)}, {sorted(outcomes)}")
    assert crashes > 10
    assert reached == REACHED[kind]
    assert kind in FIRST_WRITE or "not begun" in outcomes
    assert outcomes & {"done", "failed", "rolled_back"}


@pytest.mark.parametrize("kind", ["ill in place", "watched in place"])
async def test_a_crash_of_the_one_that_comes_back(memory: Path, kind: str) -> None:
    """Of each state once: the daemon that finishes or undoes it ends before one of its own writes."""
    tried: set[State] = set()
    crashes = 0
    for crash_at in range(FIRST_WRITE.get(kind, 1), 200):
        crash = await crashed(memory / f"{crash_at}", kind, crash_at)
        if crash is None:
            break
        if crash.states <= tried:
            continue
        tried |= crash.states
        for again_at in range(1, 200):
            other = crash.copied(memory / f"{crash_at}-{again_at}")
            engine, store = other.comes_up()
            store.arm(again_at)
            with contextlib.suppress(Crash):
                await recovery.recover(engine)
                if kind.startswith("watched"):
                    await kill_the_new(engine)
                await finished(engine)
            dead = store.dead
            await goes_down(engine, store)
            if not dead:
                break
            crashes += 1
            await comes_back(other, kind)
    print(f"\n{kind}: {crashes} crashes of what came back, first in {sorted(tried)}")
    assert tried == REACHED[kind]
    assert crashes > len(tried)


@dataclasses.dataclass
class Crashed:
    """What a daemon has left, and the image that `web` had before what it was doing."""

    path: Path
    world: World
    before: str
    states: frozenset[State] = frozenset()

    def comes_up(self) -> tuple[Engine, DoomedStore]:
        """The next daemon, before it recovers."""
        _patch_processes(self.world)
        store = DoomedStore(self.path / "hyper.db")
        return an_engine(self.path, self.world, store), store

    def copied(self, path: Path) -> Crashed:
        """The same once more."""
        shutil.copytree(self.path, path)
        return dataclasses.replace(self, path=path, world=copy.deepcopy(self.world))


async def crashed(path: Path, kind: str, crash_at: int) -> Crashed | None:
    """Do something, with a daemon that ends before this write; None: it has ended before."""
    path.mkdir()
    left = Crashed(path, World(), OLD)
    engine, store = left.comes_up()
    first = await web(engine, volumes=VOLUME if "in place" in kind else ())
    engine.book.mark_good(first.record, 1.0)
    if "rollback" in kind:
        await engine.rollouts.change("web", "new", terms(), Asked())
        left.before = NEW
    if "stopped" in kind:
        await engine.stop("web")
    store.arm(crash_at)
    with contextlib.suppress(Crash):
        await act(engine, kind)
    dead = store.dead
    await goes_down(engine, store)
    if not dead:
        return None
    engine, store = left.comes_up()
    left.states = frozenset(one.state for one in engine.book.open_rollouts())
    store.close()
    return left


async def goes_down(engine: Engine, store: DoomedStore) -> None:
    await engine.rollouts.close()
    release(engine)
    store.close()


async def comes_back(left: Crashed, kind: str) -> Rollout | None:
    """The next daemon sets all right; returns what became of what was asked for."""
    world, before = left.world, left.before
    engine, store = left.comes_up()
    await recovery.recover(engine)
    if kind.startswith("watched"):
        await kill_the_new(engine)
    await finished(engine)
    found = engine.rollouts.rollouts("web")
    current = engine.lives.find("web").record.image_digest
    asked: list[Rollout] = [one for one in found if one.request_id == "r"]
    assert len(asked) <= 1
    if not asked:
        assert current == before, "nothing was begun"
    outcome = asked[0].state if asked else "not begun"
    wanted = {"done": asked[0].new.digest if asked else "", "failed": before, "rolled_back": before}
    assert current == wanted.get(outcome, before), (left, outcome)
    if "stopped" in kind:
        assert world.vms == {}
        await engine.start("web")
    well(engine, world, current)
    assert world.most_at_once <= 1
    if "rollback" in kind and asked:
        assert outcome == "done", "an interrupted rollback is made anew"
    thrown_away = world.started - set(world.vms) - {asked[0].old.container_id if asked else ""}
    if outcome in {"failed", "rolled_back"}:
        assert thrown_away <= set(kept(engine.config.data_dir)), "how it was is known"
    again = await act(engine, kind)
    assert again is not None
    assert len([one for one in engine.rollouts.rollouts("web") if one.request_id == "r"]) == 1
    if asked:
        assert again.id == asked[0].id
        well(engine, world, current)
    await finished(engine)
    release(engine)
    store.close()
    return asked[0] if asked else None


async def act(engine: Engine, kind: str) -> Rollout:
    asked = Asked("me", "why", "r")
    if "rollback" in kind:
        return await engine.rollouts.rollback("web", None, asked)
    if not kind.startswith("watched"):
        canary_s = 0.05 if kind == "canary" else 0.0
        return await engine.rollouts.change("web", "ill" if "ill" in kind else "new", terms(canary_s=canary_s), asked)
    changing = asyncio.create_task(engine.rollouts.change("web", "new", terms(watch_s=60), asked))
    await kill_the_new(engine)
    return await changing


async def kill_the_new(engine: Engine) -> None:
    """As long as something goes on, end each VM of the new image that is watched."""
    await asyncio.sleep(0)
    while engine.rollouts._tasks:
        for one in engine.lives.all() if is_watched(engine) else ():
            if one.record.name == "web" and one.record.image_digest == NEW and one.state == "running":
                await engine.supervisor.end(one)  # type: ignore[attr-defined]  # of the pretended one
        await asyncio.sleep(0.004)


def is_watched(engine: Engine) -> bool:
    with contextlib.suppress(Crash):
        return any(one.state == "watching" for one in engine.book.open_rollouts())
    return False


def _patch_processes(world: World) -> None:
    def process(container: Container) -> Any:
        async def kill() -> None:
            world.vms.pop(container.id, None)

        return SimpleNamespace(kill=kill, pid=1) if container.id in world.vms else None

    recovery._process_of = process


def test_terms_are_those_of_a_rollout() -> None:
    from runtime.changes.rollout import Rollout

    names = {one.name for one in dataclasses.fields(Rollout)}
    assert {one.name for one in dataclasses.fields(Terms)} <= names
