"""Rollouts over VMs that are only pretended: every way they can go, and a crash before every write to the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import recovery
from runtime.changes import course, readiness, signals
from runtime.changes.rollouts import Asked, Terms
from runtime.config import Config
from runtime.counts import Counts
from runtime.engine import Engine
from runtime.errors import Conflict, GuestFailed, HostUnable, InvalidInput, NoKnownGood
from runtime.network.ports import PortReservations
from runtime.record import Network, Port, Quarantine
from runtime.spec import PortSpec, RestartSpec, Spec, VolumeSpec
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
        self.nft_works = True
        self.answers = True
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
        config = SimpleNamespace(entrypoint=["x"], cmd=[], stop_signal="", env=[], healthcheck=None)
        return SimpleNamespace(digest=digest, config=config)

    async def collect(self, in_use: object) -> None:
        del in_use


class NoVolumes:
    """Volumes that are always there."""

    def resolve(self, spec: Spec) -> tuple[Spec, frozenset[str]]:
        return spec, frozenset()

    async def ensure(self, spec: Spec, anonymous: frozenset[str]) -> None:
        pass

    async def forget(self, spec: Spec) -> None:
        pass


def an_engine(path: Path, world: World, store: DoomedStore) -> Engine:
    config = Config(state_dir=path / "run", data_dir=path / "data")
    for parent in (config.state_dir, config.data_dir):
        (parent / "containers").mkdir(parents=True, exist_ok=True)
    cgroups: Any = SimpleNamespace(existing=dict)
    counts = Counts(path / "runtime.json", {}, dict)
    engine = Engine(config, store, Images(), None, cgroups, PortReservations(), counts, NoVolumes())  # type: ignore[arg-type]  # pretended
    engine.supervisor = Vms(engine, world, store)  # type: ignore[assignment]  # same
    return engine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    async def look(container: Container) -> signals.Sample | None:
        if container.state != "running" or not world.answers:
            return None
        return signals.Sample(time.monotonic(), 1 << 20, 0, int(time.monotonic() * 1000))

    async def accepts(container: Container, port: int) -> bool:
        del port
        return container.state == "running"

    async def connections(container: Container, ports: object) -> int:
        del container, ports
        return 0

    async def forget_udp(address: str, ports: object) -> int:
        del address, ports
        return 0

    monkeypatch.setattr(signals, "look", look)
    monkeypatch.setattr(signals, "accepts", accepts)
    monkeypatch.setattr(signals, "connections", connections)
    monkeypatch.setattr("runtime.network.flows.forget_udp", forget_udp)
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


async def reached(engine: Engine, state: str) -> None:
    """Wait for a rollout in this state."""
    while not any(one.state == state for one in engine.book.open_rollouts()):  # noqa: ASYNC110 -- it is the store that is waited for
        await asyncio.sleep(0.004)


# --- a crash before every write


@pytest.mark.parametrize("kind", ["update", "update in place", "ill in place", "rollback", "watched"])
async def test_a_crash_before_any_write(memory: Path, kind: str) -> None:
    """Whenever the daemon ends, the next one finishes or undoes it, once."""
    crashes, outcomes = 0, set()
    first_write = 20 if kind == "watched" else 1  # what comes before is as in an update
    for crash_at in range(first_write, 200):
        world, path = World(), memory / f"{crash_at}"
        path.mkdir()
        _patch_processes(world)
        store = DoomedStore(path / "hyper.db")
        engine = an_engine(path, world, store)
        first = await web(engine, volumes=VOLUME if "in place" in kind else ())
        engine.book.mark_good(first.record, 1.0)
        before = OLD
        if kind == "rollback":
            await engine.rollouts.change("web", "new", terms(), Asked())
            before = NEW
        store.arm(crash_at)
        with contextlib.suppress(Crash):
            await act(engine, kind)
        if not store.dead:
            release(engine)
            store.close()
            break
        crashes += 1
        await engine.rollouts.close()
        release(engine)
        store.close()
        store = DoomedStore(path / "hyper.db")
        engine = an_engine(path, world, store)
        await recovery.recover(engine)
        if kind == "watched":
            await kill_the_new(engine)
        await finished(engine)
        found = engine.rollouts.rollouts("web")
        current = engine.lives.find("web").record.image_digest
        asked: list[Rollout] = [one for one in found if one.request_id == "r"]
        assert len(asked) <= 1
        if not asked:
            assert current == before, "nothing was begun"
        outcome = asked[0].state if asked else "not begun"
        outcomes.add(outcome)
        wanted = {"done": asked[0].new.digest if asked else "", "failed": before, "rolled_back": before}
        assert current == wanted.get(outcome, before), (crash_at, outcome)
        well(engine, world, current)
        assert world.most_at_once <= 1
        if kind == "rollback" and asked:
            assert outcome == "done", "an interrupted rollback is made anew"
        again = await act(engine, kind)
        assert again is not None
        assert len([one for one in engine.rollouts.rollouts("web") if one.request_id == "r"]) == 1
        if asked:
            assert again.id == asked[0].id
            well(engine, world, current)
        await finished(engine)
        release(engine)
        store.close()
    print(f"\n{kind}: {crashes} crashes, {sorted(outcomes)}")
    assert crashes > 10
    assert kind == "watched" or "not begun" in outcomes
    assert outcomes & {"done", "failed", "rolled_back"}


async def act(engine: Engine, kind: str) -> Rollout:
    asked = Asked("me", "why", "r")
    if kind == "rollback":
        return await engine.rollouts.rollback("web", None, asked)
    if kind != "watched":
        return await engine.rollouts.change("web", "ill" if "ill" in kind else "new", terms(), asked)
    changing = asyncio.create_task(engine.rollouts.change("web", "new", terms(watch_s=60), asked))
    await kill_the_new(engine)
    return await changing


async def kill_the_new(engine: Engine) -> None:
    """As long as something goes on, end each VM of the new image that has the name."""
    await asyncio.sleep(0)
    while engine.rollouts._tasks:
        for one in engine.lives.all():
            if one.record.name == "web" and one.record.image_digest == NEW and one.state == "running":
                await engine.supervisor.end(one)  # type: ignore[attr-defined]  # of the pretended one
        await asyncio.sleep(0.004)


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
