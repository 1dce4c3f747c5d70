"""Events: which change is which, that they are kept within bounds, and that filters find them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING

import pytest

from runtime import events, store
from runtime.events import Event, Events, Wanted, of_change, of_container
from runtime.record import Lifecycle, Limits, Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.record import State


def record(state: State, **lifecycle: object) -> Record:
    life = dataclasses.replace(Lifecycle(state, "running", 1.0), **lifecycle)  # type: ignore[arg-type]  # members by name
    return Record("ab" * 32, "web", "nginx", "sha256:0", Limits(1 << 27, 1), life, labels={"team": "shop"})


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[store.Store]:
    one = store.Store(tmp_path / "hyper.db")
    yield one
    one.close()


@pytest.mark.parametrize(
    ("old", "new", "actions"),
    [
        (record("starting"), record("running"), ["start"]),
        (record("running"), record("paused"), ["pause"]),
        (record("paused"), record("running"), ["unpause"]),
        (record("running"), record("exited", exit_code=3), ["die"]),
        (record("running"), record("exited", exit_code=137, oom_killed=True), ["oom", "die"]),
        (record("starting"), record("exited", exit_code=127), ["die"]),
        (record("running"), record("running", health="healthy"), ["health_status: healthy"]),
        (record("starting"), record("running", health="starting"), ["start"]),
        (record("running"), record("stopping"), []),
        (record("exited"), record("removing"), []),
    ],
)
def test_changes_are_events(old: Record, new: Record, actions: list[str]) -> None:
    assert [event.action for event in of_change(old, new)] == actions


def test_an_end_tells_its_exit_code_and_a_new_name_the_old_one() -> None:
    (died,) = of_change(record("running"), record("exited", exit_code=3))
    assert died.attributes == {"exitCode": "3", "name": "web", "image": "nginx", "team": "shop"}
    (renamed,) = of_change(record("running"), dataclasses.replace(record("running"), name="new"))
    assert (renamed.attributes["oldName"], renamed.attributes["name"]) == ("web", "new")


def test_what_is_kept_is_bounded(kept: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_EVENTS", 10)
    for number in range(25):
        kept.keep([Event("image", str(number), "i", {}, number)])
    assert [event.action for event in kept.events(0, 0, 100)] == [str(number) for number in range(15, 25)]
    assert kept.last_event() == 25
    long = dataclasses.replace(record("created"), labels={f"{number}": "x" * 5000 for number in range(100)})
    assert len(of_container(long, "create", command="y" * 10**6).attributes) == 4
    assert max(map(len, of_container(long, "create", command="y" * 10**6).attributes.values())) <= 8192


def test_an_event_and_its_change_are_one_transaction(kept: store.Store) -> None:
    with pytest.raises(TypeError):
        kept.save(record("running"), Event("container", "start", "x", {"bad": object()}, 1))  # type: ignore[dict-item]  # on purpose: it cannot be written
    assert kept.last_event() == 0


async def test_a_reader_gets_old_and_new_ones_in_their_order(kept: store.Store) -> None:
    told = Events(kept)
    told.tell(Event("image", "pull", "old", {}, time.time_ns()))
    got: list[str] = []

    async def read() -> None:
        async for event in told.read(Wanted(), 0, None):
            got.append(event.id)
            if len(got) == 302:
                return

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for number in range(301):
        told.tell(Event("image", "pull", str(number), {}, time.time_ns()))
    async with asyncio.timeout(10):
        await reading
    assert got == ["old", *map(str, range(301))]


async def test_without_since_only_new_ones_and_until_ends(kept: store.Store) -> None:
    told = Events(kept)
    told.tell(Event("image", "pull", "old", {}, time.time_ns()))
    assert [event.id async for event in told.read(Wanted(), None, time.time_ns())] == []
    assert [event.id async for event in told.read(Wanted(), 0, time.time_ns())] == ["old"]
    async with asyncio.timeout(10):
        assert [event.id async for event in told.read(Wanted(), 0, time.time_ns() + 50_000_000)] == ["old"]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(), True),
        (Wanted(container=("web",)), True),
        (Wanted(container=("abab",)), True),
        (Wanted(container=("other",)), False),
        (Wanted(container=("other", "web")), True),
        (Wanted(event=("health_status",)), True),
        (Wanted(event=("health_status: healthy",)), True),
        (Wanted(event=("die",)), False),
        (Wanted(type=("image",)), False),
        (Wanted(image=("nginx",)), True),
        (Wanted(label=("team=shop",)), True),
        (Wanted(label=("team=shop", "none")), False),
    ],
)
def test_filters(wanted: Wanted, fits: bool) -> None:
    assert wanted.has(of_container(record("running"), "health_status: healthy")) is fits
    assert Wanted(container=("web",)).has(events.of_image("pull", "web")) is False


@pytest.mark.parametrize(
    ("image", "wanted", "fits"),
    [
        ("nginx:1.27", "nginx", True),
        ("nginx:1.27", "nginx:1.27", True),
        ("nginx:1.27", "nginx:1.26", False),
        ("docker.io/library/nginx:1.27", "nginx", True),
        ("host:5000/team/x", "host:5000/team/x", True),
        ("host:5000/team/x:1", "host:5000/team/x", True),
        ("host:5000/team/x:1", "host", False),
        (f"nginx@sha256:{'ab' * 32}", "nginx", True),
        ("Not a reference", "Not a reference", True),
        ("Not a reference", "nginx", False),
    ],
)
def test_an_image_is_found_without_its_tag(image: str, wanted: str, fits: bool) -> None:
    only = Wanted(image=("other", wanted))
    assert only.has(of_container(dataclasses.replace(record("running"), image=image), "start")) is fits
    assert only.has(events.of_image("pull", image)) is fits
