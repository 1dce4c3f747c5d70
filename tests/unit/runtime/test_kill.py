"""Signals to a container, of which some are a stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import Conflict
from runtime.spec import Spec
from tests.unit.runtime.test_course import DoomedStore, World, an_engine, release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.engine import Engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    store = DoomedStore(tmp_path / "hyper.db")
    made = an_engine(tmp_path, World(), store)
    yield made
    release(made)
    store.close()


@pytest.mark.parametrize(
    ("configured", "sent", "stops"),
    [
        (None, "TERM", True), (None, "INT", True), (None, "HUP", False), ("SIGRTMIN+3", "37", True),
        ("QUIT", "QUIT", True), ("QUIT", "HUP", False), ("QUIT", "TERM", False),
    ],
)  # fmt: skip
async def test_the_stop_signal_counts_as_a_stop_and_without_one_those_of_a_terminal(
    engine: Engine, configured: str | None, sent: str, stops: bool
) -> None:
    one = await engine.create(Spec(image="old", name="web", stop_signal=configured))
    await engine.start("web")
    known: list[object] = []

    async def call(_: str, __: float, **arguments: object) -> None:
        known.append((one.record.lifecycle.stop_epoch, arguments["all"]))

    agent: Any = SimpleNamespace(call=call)
    one.agent = agent
    await engine.kill("web", sent)
    assert known == [(1 if stops else None, False)], "before it is sent"
    assert (one.state, one.record.lifecycle.desired) == ("running", "running"), "it may go on"
    await engine.restart("web")
    assert one.record.lifecycle.epoch == 2


@pytest.mark.parametrize(("sent", "stops"), [("QUIT", True), ("KILL", True), ("HUP", False)])
async def test_one_that_waits_to_be_started_again_is_stopped_by_a_stop_signal(
    engine: Engine, sent: str, stops: bool
) -> None:
    one = await engine.create(Spec(image="old", name="web", stop_signal="QUIT"))
    await engine.start("web")
    engine.lives.change(one, "exited", exit_code=1, network=None, retry_at=1e12)
    if stops:
        await engine.kill("web", sent)
    else:
        with pytest.raises(Conflict):
            await engine.kill("web", sent)
    assert one.waits_to_retry != stops
    assert one.record.lifecycle.desired == ("stopped" if stops else "running")
