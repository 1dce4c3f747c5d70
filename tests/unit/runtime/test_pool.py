"""The pool: whose uid a member has, and that it is filled again whatever hindered it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import keeping
from runtime.errors import GuestFailed
from runtime.record import Cgroups
from runtime.vm import launch, machine
from runtime.vm import pool as pools
from runtime.vm.pool import Member, Pool

if TYPE_CHECKING:
    from runtime.vm.launch import Root, Template

SHAPE = machine.Shape(1 << 20, 1, "tcg")


class Groups:
    """Control groups that are none."""

    def create(self, _name: str) -> Cgroups:
        return Cgroups()

    def weigh(self, _groups: Cgroups, _weight: int) -> None:
        pass

    async def remove(self, _groups: Cgroups) -> None:
        pass


def a_pool(path: Path, first_uid: int = 0, kind: type[Pool] = Pool) -> Pool:
    async def settled(shape: machine.Shape) -> Any:
        return SimpleNamespace(shape=shape)

    host: Any = None
    templates: Any = SimpleNamespace(settled=settled)
    groups: Any = Groups()
    return kind(
        path, path, host, templates, groups, first_uid, path / "init", 1 << 20,
        depth=1, limit=4, memory_bytes=1 << 30, max_age_s=60.0,
    )  # fmt: skip


class Filled(Pool):
    """Its members are made of nothing."""

    async def _rehearsal_image(self) -> Path:
        return self._data

    async def _make(self, template: Template, rehearsal: Path, root: Root | None) -> Member:
        del template, rehearsal, root
        process = SimpleNamespace(alive=lambda: True)
        member: Any = SimpleNamespace(made_at=time.monotonic(), memory_bytes=1, process=process)
        return member

    async def _discard(self, member: Member) -> None:
        pass


async def has_one(pool: Pool) -> None:
    """Return as soon as a member waits."""
    async with asyncio.timeout(10):
        while not pool.waiting:  # noqa: ASYNC110 -- nothing there could wake us
            await asyncio.sleep(0.01)


async def uid_of_the_next(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> int:
    uids: list[int] = []

    async def start(_host: object, order: launch.Order, *_: object, **__: object) -> None:
        uids.append(order.uid)
        raise GuestFailed("it is looked at alone")

    monkeypatch.setattr(launch, "start", start)
    template: Any = SimpleNamespace(shape=SHAPE)
    with pytest.raises(GuestFailed, match="looked at alone"):
        await pool._make(template, Path("rehearsal"), None)
    return uids[0]


async def test_a_uid_under_which_something_runs_is_given_to_no_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM that was handed out, above all, also by a daemon before this one."""
    first = os.geteuid()
    assert await uid_of_the_next(a_pool(tmp_path, first), monkeypatch) > first


async def test_uids_are_not_used_up_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set(range(700, 700 + 5000))
    monkeypatch.setattr(pools, "uids_in_use", lambda: used)
    pool = a_pool(tmp_path, 700)
    assert await uid_of_the_next(pool, monkeypatch) == 5700
    used.discard(703)
    assert await uid_of_the_next(pool, monkeypatch) == 703


async def test_it_is_filled_whatever_has_hindered_it_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hindrances: list[Exception | None] = [
        OSError("no room for the rehearsal's image"), None, IndexError("pop from an empty deque"), None, None,
    ]  # fmt: skip

    class Hindered(Filled):
        async def _rehearsal_image(self) -> Path:
            return self._unhindered(await super()._rehearsal_image())

        async def _make(self, template: Template, rehearsal: Path, root: Root | None) -> Member:
            return self._unhindered(await super()._make(template, rehearsal, root))

        def _unhindered(self, made: Any) -> Any:
            if error := hindrances.pop(0):
                raise error
            return made

    monkeypatch.setattr(keeping, "AGAIN_S", 0.01)
    monkeypatch.setattr(pools, "_PUT_OFF_S", 0.01)
    monkeypatch.setattr(pools, "_LOOK_S", 0.01)
    pool = a_pool(tmp_path, kind=Hindered)
    pool.open(SHAPE)
    await has_one(pool)
    assert caplog.messages == ["the pool: no room for the rehearsal's image", "the pool's member for 1 MiB: a defect"]
    await asyncio.wait_for(pool.close(), 5)
    assert pool._task is not None
    assert pool._task.cancelled()


async def test_a_size_of_which_none_can_be_made_keeps_no_other_from_having_its_own(tmp_path: Path) -> None:
    large = machine.Shape(2 << 20, 1, "tcg")

    class Some(Filled):
        async def _make(self, template: Template, rehearsal: Path, root: Root | None) -> Member:
            if template.shape == large:
                raise GuestFailed("template failed")
            return await super()._make(template, rehearsal, root)

    pool = a_pool(tmp_path, kind=Some)
    for image in ("a", "b", "c"):
        (tmp_path / image).touch()
        # More of it are wanted than of the other.
        assert pool.take(large, launch.Root(tmp_path / image, "sh", "")) == (None, "the pool is empty")
    pool.open(SHAPE)
    await has_one(pool)
    assert pool.take(SHAPE, launch.Root(tmp_path / "a", "sh", ""))[0] is not None
    await asyncio.wait_for(pool.close(), 5)


async def test_a_size_that_fails_again_is_put_off_for_longer_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []

    class Failing(Filled):
        async def _make(self, template: Template, rehearsal: Path, root: Root | None) -> Member:
            pauses_s.append(self._put_off.get(pools.Kind(SHAPE), (0.0, 0.0))[1])
            if len(pauses_s) < 5:
                raise GuestFailed("template failed")
            return await super()._make(template, rehearsal, root)

    monkeypatch.setattr(pools, "_PUT_OFF_S", 0.01)
    monkeypatch.setattr(pools, "_PUT_OFF_MOST_S", 0.04)
    monkeypatch.setattr(pools, "_LOOK_S", 0.01)
    pool = a_pool(tmp_path, kind=Failing)
    pool.open(SHAPE)
    await has_one(pool)
    assert pauses_s[:5] == [0.0, 0.01, 0.02, 0.04, 0.04]
    assert not pool._put_off
    await asyncio.wait_for(pool.close(), 5)
