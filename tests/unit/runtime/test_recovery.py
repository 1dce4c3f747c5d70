"""Coming back: nobody waits for who does not answer, ports stay with whom they were, and nothing is left half done."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import recovery
from runtime.errors import Conflict, GuestFailed, NotFound
from runtime.spec import PortSpec, Spec
from tests.host import free_port
from tests.unit.runtime.test_course import DoomedStore, World, an_engine, finished, release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.engine import Engine
    from runtime.life import Container

WEDGED = 30


class Daemon:
    """A host on which one daemon after the other lives."""

    def __init__(self, path: Path) -> None:
        self.path, self.world = path, World()
        self.engine = self._engine()

    def _engine(self) -> Engine:
        self._store = DoomedStore(self.path / "hyper.db")
        return an_engine(self.path, self.world, self._store)

    def dies(self) -> Engine:
        """It is killed; gives the next one, before it has come back."""
        release(self.engine)
        self._store.close()
        self.engine = self._engine()
        return self.engine

    def close(self) -> None:
        release(self.engine)
        self._store.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    one = Daemon(tmp_path)

    def process(container: Container) -> Any:
        async def kill() -> None:
            one.world.vms.pop(container.id, None)

        return SimpleNamespace(kill=kill, pid=1) if container.id in one.world.vms else None

    monkeypatch.setattr(recovery, "_process_of", process)
    yield one
    one.close()


async def made(engine: Engine, name: str, port: int | None = None) -> Container:
    ports = (PortSpec(host_ip="127.0.0.1", host_port=port, container_port=80),) if port else ()
    return await engine.create(Spec(image="old", name=name, ports=ports))


def interrupted(engine: Engine) -> set[str]:
    return {one.container_id for one in engine.store.interrupted()}


async def test_many_that_do_not_answer_hold_up_neither_each_other_nor_anybody_else(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = daemon.engine
    wedged = [await engine.start((await made(engine, f"wedged{number}")).id) for number in range(WEDGED)]
    late = await made(engine, "late")
    for one in wedged:
        engine.store.begin(one.id, "update")
    engine.store.begin(late.id, "start")
    engine.lives.change(late, "starting", desired="running")
    engine = daemon.dies()
    answer, waiting = asyncio.Event(), 0

    async def resume(container: Container) -> None:
        nonlocal waiting
        waiting += 1
        await answer.wait()
        raise GuestFailed(f"{container.id}: QEMU's monitor did not answer")

    monkeypatch.setattr(engine.supervisor, "resume", resume)
    monkeypatch.setattr(engine, "limit", lambda _: None)
    monkeypatch.setattr(recovery, "_MOMENT_S", 0.05)
    await asyncio.wait_for(recovery.recover(engine), 20)
    assert waiting == WEDGED, "all are asked at once"
    while engine.lives.find("late").state != "running":  # noqa: ASYNC110 -- it is started in the background
        await asyncio.sleep(0.001)
    assert interrupted(engine) == {one.id for one in wedged}, "what is not done stays in the journal"
    assert all(engine.lives.find(one.id).lock.locked() for one in wedged), "and nobody else does anything to it"
    answer.set()
    await finished(engine)
    assert interrupted(engine) == set()
    assert {one.state for one in engine.lives.all()} == {"running"}


async def test_who_runs_keeps_its_port_and_who_is_to_be_started_gets_it_not(daemon: Daemon) -> None:
    engine, port = daemon.engine, free_port()
    first, second = await made(engine, "first", port), await made(engine, "second", port)
    await engine.start(second.id)
    engine.store.begin(first.id, "start")
    engine.lives.change(first, "starting", desired="running")
    engine = daemon.dies()
    await recovery.recover(engine)
    network = engine.lives.find("second").record.network
    assert network is not None
    taken = engine.ports._sockets.get(second.id, [])
    await finished(engine)
    assert [one.getsockname()[1] for one in taken] == [port]
    assert engine.lives.find("second").state == "running"


@pytest.mark.parametrize("how", ["it had come up and ended", "it cannot start"])
async def test_one_that_goes_by_itself_goes_also_when_its_start_was_interrupted(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    engine = daemon.engine
    came_up = how == "it had come up and ended"
    one = await engine.create(Spec(image="old" if came_up else "ill", name="temporary", auto_remove=True))
    engine.store.begin(one.id, "start")
    engine.lives.change(one, "starting", desired="running")
    engine = daemon.dies()

    async def after_end(container: Container, *, with_host: bool = False) -> None:
        del with_host
        desired: Callable[..., None] = engine.lives.change
        desired(container, "exited", exit_code=0, desired="stopped" if came_up else "running")

    monkeypatch.setattr(engine.supervisor, "after_end", after_end)
    await recovery.recover(engine)
    await finished(engine)
    assert engine.lives.all() == []
    assert interrupted(engine) == set()


async def test_nothing_that_a_daemon_before_was_killed_over_is_left_in_the_journal(daemon: Daemon) -> None:
    """It was killed while it recovered: what was to be finished is there twice, and would be finished twice."""
    engine = daemon.engine
    one = await made(engine, "twice")
    for _ in range(2):
        engine.store.begin(one.id, "start")
    engine.lives.change(one, "starting", desired="running")
    engine = daemon.dies()
    await recovery.recover(engine)
    await finished(engine)
    assert engine.lives.find("twice").state == "running"
    assert interrupted(engine) == set()


async def test_one_that_is_started_meanwhile_is_not_removed(daemon: Daemon) -> None:
    engine = daemon.engine
    one = await made(engine, "again")
    async with one.lock:  # a restart, above all: between its end and its start it is over
        removing = asyncio.create_task(engine.remove("again"))
        await asyncio.sleep(0.01)
        with engine.operation(one, "start"):
            await engine.supervisor.start(one)
    with pytest.raises(Conflict, match="the container again is running"):
        await removing
    assert engine.lives.find("again").state == "running"
    async with one.lock:
        removing = asyncio.create_task(engine.remove("again", force=True))
        second = asyncio.create_task(engine.remove("again", force=True))
        await asyncio.sleep(0.01)
    await removing
    with pytest.raises(NotFound):
        await second
    assert interrupted(engine) == set()


async def test_what_the_daemons_end_cancels_stays_in_the_journal(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = daemon.engine
    one = await engine.start((await made(engine, "web")).id)

    async def stop(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(engine.supervisor, "stop", stop)
    restarting = asyncio.create_task(engine.restart("web"))
    await asyncio.sleep(0.01)
    assert one.state == "stopping"
    restarting.cancel()
    await asyncio.wait([restarting])
    assert interrupted(engine) == {one.id}
    engine = daemon.dies()
    await recovery.recover(engine)
    await finished(engine)
    assert engine.lives.find("web").state == "running"
    assert interrupted(engine) == set()


@pytest.mark.parametrize("died", [False, True], ids=["goes on", "died since"])
async def test_one_that_a_client_removes_is_left_to_it(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, died: bool
) -> None:
    """While it takes the output; if it was killed, or has let go of the container, the daemon removes that."""
    monkeypatch.setattr("runtime.engine._CLIENT_S", 0.2)
    engine = daemon.engine
    one = await engine.create(Spec(image="old", name="shown", auto_remove=True, removed_by="client"))
    await engine.start(one.id)
    engine = daemon.dies()
    await recovery.recover(engine)
    shown = engine.lives.find("shown")
    async with shown.lock:
        with engine.operation(shown, "stop"):
            engine.lives.change(shown, "exited", exit_code=0, desired="stopped")
    if died:
        engine = daemon.dies()
        await recovery.recover(engine)
        shown = engine.lives.find("shown")
    else:
        engine._has_ended(shown)
    with engine.rotation.reading(shown, 0, holds_up=True):
        await asyncio.sleep(0.6)
        assert engine.lives.find("shown").state == "exited", "its output is still wanted"
    with engine.rotation.reading(shown, 0, holds_up=False):  # who only looks does not keep it
        await finished(engine)
    assert engine.lives.all() == []


async def test_what_was_half_made_beside_its_place_is_removed(daemon: Daemon) -> None:
    engine = daemon.engine
    one = await made(engine, "stopped")
    (one.data_directory / ".writable.ext4.new").write_text("half")
    (one.data_directory / ".writable.ext4.content").mkdir()
    (one.data_directory / "writable.ext4").write_text("whole")
    await recovery.recover(daemon.dies())
    assert [path.name for path in one.data_directory.iterdir()] == ["writable.ext4"]


async def test_disks_that_were_held_still_go_on(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon was killed in the middle of a commit, which may hold them still for ten minutes."""
    engine, asked = daemon.engine, []
    await engine.start((await made(engine, "web")).id)
    await made(engine, "stopped")

    class Guest:
        def __init__(self, path: Path) -> None:
            self._path = path

        async def call(self, command: str, _timeout_s: float) -> None:
            asked.append((command, self._path.parent.name))
            raise GuestFailed("the guest agent refused hyper-thaw: nothing is frozen")

    monkeypatch.setattr(recovery, "Agent", Guest)
    engine = daemon.dies()
    await recovery.recover(engine)
    await finished(engine)
    assert asked == [("hyper-thaw", engine.lives.find("web").id)]
