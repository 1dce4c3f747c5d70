"""The feed's file, and what is made of it: one reading of each image, one signal of each incident."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from alerts.errors import HyperdAway
from alerts.remediation.feed import FeedFile
from alerts.remediation.hyperd import Build, Hyperd, Image, Package, Packages
from alerts.remediation.policy import Container
from alerts.remediation.scanner import Scanner
from alerts.remediation.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from alerts.remediation.signals import Signal

OLD = Packages(distribution="debian", version="12", packages=[Package(source="openssl", source_version="1")])


def text(*ids: str) -> str:
    events = [{"introduced": "0"}, {"fixed": "2"}]
    affected = {
        "package": {"ecosystem": "Debian:12", "name": "openssl"},
        "ranges": [{"type": "ECOSYSTEM", "events": events}],
    }
    return json.dumps([{"id": one, "affected": [affected]} for one in ids])


@dataclass
class Told:
    """What an observer was told."""

    readings: list[tuple[bool, float | None]] = field(default_factory=list)

    def feed(self, *, readable: bool, written_at: float | None = None) -> None:
        self.readings.append((readable, written_at))


def replaced(path: Path, content: str) -> None:
    """As who writes it is to do it."""
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


def test_a_file_is_read_when_it_is_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, told = tmp_path / "feed", Told()
    feed = FeedFile(path, told)
    assert [feed.refresh(), feed.refresh()] == [False, False]
    replaced(path, text("DSA-1"))
    assert [feed.refresh(), feed.refresh()] == [True, False]
    assert feed.fixable(OLD) == {"DSA-1"}
    assert told.readings == [(False, None), (False, None), (True, path.stat().st_mtime)]
    replaced(path, text("DSA-2"))  # as long as the other
    os.utime(path, (1, 1))
    assert feed.refresh()
    assert (feed.fixable(OLD), told.readings[-1]) == ({"DSA-2"}, (True, 1.0))
    path.write_text(text("DSA-1", "DSA-3")[:-5])
    assert [feed.refresh(), feed.refresh()] == [False, False]
    assert (feed.fixable(OLD), told.readings[-1]) == ({"DSA-2"}, (False, None))
    path.unlink()
    os.mkfifo(path)
    assert [feed.refresh(), feed.refresh()] == [False, False]
    path.unlink()
    path.mkdir()
    assert not feed.refresh()
    path.rmdir()
    assert not feed.refresh()
    replaced(path, text("DSA-4"))
    assert (feed.refresh(), feed.fixable(OLD), told.readings[-1][0]) == (True, {"DSA-4"}, True)
    kept = [record.message for record in caplog.records if "is kept" in record.message]
    assert len(kept) == len(set(kept)) + 1 == 5, "each once: missing (twice, as it came back), cut, a pipe, a directory"


def test_what_is_being_written_is_left_for_the_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "feed", Told()
    path.write_text(text("DSA-1"))
    feed = FeedFile(path, told)
    real, times = os.fstat, iter(range(10))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda number: (os.utime(path, ns=(0, next(times))), real(number))[1])
        assert not feed.refresh()
    assert (told.readings, feed.fixable(OLD)) == ([], frozenset())
    assert feed.refresh()
    assert not FeedFile(None, told).refresh()


@dataclass
class World:
    """hyperd in memory."""

    digests: dict[str, str]
    packages_of: dict[str, Packages | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    rounds: int = 0

    async def containers(self) -> list[Container]:
        self.rounds += 1
        return [
            Container(id=name, name=name, state="stopped" if name == "off" else "running", desired="running", epoch=1,
                      labels={}, image="web:1", image_digest=digest)
            for name, digest in self.digests.items()
        ]  # fmt: skip

    async def image(self, digest: str) -> Image:
        return Image(digest=digest, build=None if digest == "pulled" else Build(archive_digest="x"))

    async def packages(self, digest: str) -> Packages:
        self.asked.append(digest)
        found = self.packages_of.get(digest, OLD)
        if found is None:
            raise HyperdAway("it cannot be read", sent=True)
        return found


async def rounds(scanner: Scanner, world: World, count: int) -> None:
    """Let it look so many times."""
    end = world.rounds + count
    task = asyncio.ensure_future(scanner.run())
    async with asyncio.timeout(20):
        while world.rounds < end:  # noqa: ASYNC110 -- no event for it
            await asyncio.sleep(0.001)  # between two looks at the condition, never instead of one
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_image_is_asked_for_once_and_each_incident_told_once_in_a_while(tmp_path: Path) -> None:
    path = tmp_path / "feed"
    path.write_text(text("DSA-1"))
    new = OLD.model_copy(update={"packages": [Package(source="openssl", source_version="2")]})
    world = World(
        {"a": "one", "b": "one", "c.new-00000000": "one", "d": "pulled", "e": "broken", "f": "new", "off": "one"},
        {"broken": None, "new": new},
    )
    told: list[tuple[str, str]] = []
    takes, now = True, 1000.0

    def submit(found: Sequence[tuple[Signal, Any]]) -> bool:
        told.extend((container.name, signal.incident) for signal, container in found)
        return takes

    clock: Callable[[], float] = lambda: now  # noqa: E731 -- it is read anew each time
    scanner = Scanner(cast("Hyperd", world), FeedFile(path, Told()), submit, Settings(feed_s=0.001), clock)
    takes = False
    await rounds(scanner, world, 1)
    assert [name for name, _ in told][:2] == ["a", "b"]
    takes = True
    told.clear()
    await rounds(scanner, world, 5)
    assert [name for name, _ in told] == ["a", "b"], "told until it was taken"
    assert len({incident for _, incident in told}) == 2
    assert (world.asked.count("one"), world.asked.count("new"), world.asked.count("pulled")) == (1, 1, 0)
    assert world.asked.count("broken") > 1
    first = set(told)
    now += Settings().feed_again_s
    await rounds(scanner, world, 3)
    assert told == [*sorted(first), *sorted(first)]
    replaced(path, text("DSA-1", "DSA-2"))
    world.digests.pop("b")
    await rounds(scanner, world, 3)
    assert [name for name, _ in told[4:]] == ["a"]
    assert told[4] not in first, "another hole is another incident"
    assert world.asked.count("one") == 2
    world.digests["a"] = "two"
    await rounds(scanner, world, 3)
    assert [name for name, _ in told[5:]] == ["a"]
    assert told[5] != told[4], "and so is another image"
