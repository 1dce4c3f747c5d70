"""Starts that are cut off, and which words of a log are those of the last start; the VM itself is pretended."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import recovery
from runtime.logs import EVENT, LogRecord
from runtime.spec import Spec
from runtime.supervisor import Supervisor
from tests.unit.runtime.test_course import DoomedStore, World, an_engine, finished, release

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engine import Engine
    from runtime.life import Container


class Daemons:
    """One after the other on a host, each with the supervisor that it really has. No VM ever comes up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: DoomedStore | None = None
        self.starting = asyncio.Event()
        self.engine = self.next()

    def next(self) -> Engine:
        """The daemon before is gone; this one has not come back yet."""
        self.close()
        self._store = DoomedStore(self._path / "hyper.db")
        self.engine = engine = an_engine(self._path, World(), self._store)
        cgroups: Any = SimpleNamespace(existing=dict, oom_kills=lambda groups: None, remove=self._remove)
        engine.host_cgroups = cgroups
        starter: Any = SimpleNamespace(start=self._start)
        engine.supervisor = Supervisor(
            engine.config, engine.lives, engine.images, starter, cgroups, engine.counts, engine.ports, engine.events,
            on_end=engine._has_ended,
        )  # fmt: skip
        return engine

    def close(self) -> None:
        if self._store is not None:
            release(self.engine)
            self._store.close()

    async def _start(self, *_: object) -> Any:
        self.starting.set()
        await asyncio.Event().wait()

    async def _remove(self, *_: object) -> None:
        pass


@pytest.fixture
async def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def publish(_: object) -> None:
        pass

    monkeypatch.setattr(Supervisor, "publish", publish)
    one = Daemons(tmp_path)
    yield one
    for task in list(one.engine._background):
        task.cancel()
    one.close()


def wrote(container: Container, *events: dict[str, object]) -> None:
    with container.log_path.open("ab") as file:
        for event in events:
            file.write(LogRecord(EVENT, 0, json.dumps(event).encode()).encode())


async def one_that_ended_well(engine: Engine) -> Container:
    one = await engine.create(Spec(image="old", name="web"))
    with engine.operation(one, "start"):
        engine.lives.change(one, "starting", desired="running", epoch=1)
        wrote(one, {"event": "started"}, {"event": "exited", "exit_code": 0, "oom_killed": False})
        engine.lives.change(one, "exited", exit_code=0, desired="stopped")
    return one


@pytest.mark.parametrize("heard", [False, True], ids=["before its guest was heard of", "and it had ended well again"])
@pytest.mark.parametrize("how", ["killed", "stopped in order"])
async def test_a_start_that_the_daemons_end_cut_off_is_done_by_the_next(
    daemons: Daemons, how: str, heard: bool
) -> None:
    one = await one_that_ended_well(daemons.engine)
    starting = asyncio.create_task(daemons.engine.start("web"))
    await daemons.starting.wait()
    daemons.starting.clear()
    if heard:
        wrote(one, {"event": "started"}, {"event": "exited", "exit_code": 0, "oom_killed": False})
    if how == "stopped in order":  # the server cancels what it is in the middle of
        starting.cancel()
        await asyncio.wait([starting])
    engine = daemons.next()
    await recovery.recover(engine)
    web = engine.lives.find("web")
    if heard:
        await finished(engine)
        assert (web.state, web.record.lifecycle.desired, web.record.lifecycle.exit_code) == ("exited", "stopped", 0)
        assert engine.store.interrupted() == []
        return
    await asyncio.wait_for(daemons.starting.wait(), 5)
    assert web.record.lifecycle.desired == "running"
    assert [one.kind for one in engine.store.interrupted()] == ["start"], "until it runs"


async def test_the_words_of_an_earlier_start_are_not_taken_for_the_end_of_one_that_was_not_heard_of(
    daemons: Daemons,
) -> None:
    engine = daemons.engine
    one = await one_that_ended_well(engine)
    starting = asyncio.create_task(engine.start("web"))
    await daemons.starting.wait()
    await engine.supervisor.after_end(one)
    lifecycle = one.record.lifecycle
    assert (lifecycle.exit_code, lifecycle.desired) == (137, "running")
    assert lifecycle.error is not None
    starting.cancel()
