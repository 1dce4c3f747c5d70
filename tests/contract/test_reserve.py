"""The reserve and the three writers of the database, on a file system that is really full."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import pytest

from runtime import record as records
from runtime.errors import DiskFull
from runtime.events import of_container
from runtime.images.image import Image, ImageConfig
from runtime.images.index import ImageIndex
from runtime.record import Lifecycle, Limits, Record
from runtime.reserve import SLICE_BYTES, WHOLE_BYTES, Reserve, free_bytes
from runtime.spec import Spec
from runtime.store import Store
from runtime.volumes.index import Volume, VolumeIndex
from runtime.volumes.store import Volumes
from tests.places import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "24m") as path:
        yield path


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def undone(store: Store) -> None:
    with store.transaction():
        store.delete(a_record().id)
        raise ZeroDivisionError


def a_record(number: int = 0) -> Record:
    life = Lifecycle("exited", "stopped", 1.0)
    return Record(f"{number:064x}", f"one{number}", "busybox", DIGEST, Limits(1 << 27, 1), life)


def test_a_store_on_a_full_disk_writes_whole_transactions_on_the_reserve(disk: Path) -> None:
    reserve = Reserve(disk / "reserve")
    store = Store(disk / "hyper.db", reserve)
    _, operation = store.insert(Spec(image="i"), a_record(), of_container(a_record(), "create"))
    fill(disk)
    last = store.last_event()
    with store.transaction():
        second = store.begin(a_record().id, "remove")
        store.save(dataclasses.replace(a_record(), image="x" * 100_000), of_container(a_record(), "die"))
        store.end(operation, of_container(a_record(), "stop"))
    assert 0 < reserve.missing_bytes < WHOLE_BYTES
    assert [one.record.image for one in store.rows()] == ["x" * 100_000]
    assert store.interrupted() == [second]
    assert [one.action for one in store.events(last, 0, 10)] == ["die", "stop"]
    with pytest.raises(ZeroDivisionError):
        undone(store)
    assert len(store.rows()) == 1
    # Whoever is faster than we are may have the slice: the next one is given.
    for _ in range(5):
        fill(disk)
        store.audit("user", "remove", a_record(), "y" * 200_000, "done", {})
    store.delete(a_record().id, of_container(a_record(), "destroy"))
    assert store.rows() == []
    store.close()
    reserve.close()


def test_without_a_reserve_left_nothing_is_written_and_that_is_said(disk: Path) -> None:
    reserve = Reserve(disk / "reserve", SLICE_BYTES)
    store = Store(disk / "hyper.db", reserve)
    store.insert(Spec(image="i"), a_record())
    fill(disk)
    with pytest.raises(DiskFull, match="free some"):
        store.audit("user", "remove", a_record(), "y" * 2_000_000, "done", {})
    with pytest.raises(DiskFull, match="free some"), store.transaction():
        store.save(dataclasses.replace(a_record(), image="x" * 2_000_000))
    assert reserve.missing_bytes == SLICE_BYTES
    assert [one.record for one in store.rows()] == [a_record()]
    assert store.audit_log(10) == []
    (disk / "filler").unlink()
    store.delete(a_record().id)  # it is of use again
    store.close()
    reserve.close()


def test_what_was_given_up_stays_so_until_there_is_room_also_over_a_crash(disk: Path) -> None:
    reserve = Reserve(disk / "reserve")
    reserve.demand_room()
    fill(disk)
    store = Store(disk / "hyper.db", reserve)  # a daemon that comes up on a full disk
    missing = reserve.missing_bytes
    assert missing > 0
    store.close()
    fill(disk)
    reserve.close()
    reserve = Reserve(disk / "reserve")
    assert reserve.missing_bytes == missing
    reserve.refill()
    assert reserve.missing_bytes == missing
    with pytest.raises(DiskFull, match=str(disk)):
        reserve.demand_room()
    (disk / "filler").unlink()
    assert reserve.missing_bytes == missing
    (disk / "other").write_bytes(bytes(free_bytes(disk) - missing))
    with pytest.raises(DiskFull, match="hyper system prune"):
        reserve.demand_room()
    (disk / "other").unlink()
    reserve.refill()
    assert reserve.missing_bytes == 0
    assert (disk / "reserve").stat().st_blocks * 512 == WHOLE_BYTES
    reserve.demand_room()
    reserve.close()


def test_where_there_can_be_no_reserve_it_is_gone_without(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    (disk / "reserve").mkdir()
    reserve = Reserve(disk / "reserve")
    reserve.demand_room()
    reserve.refill()
    assert reserve.missing_bytes == 0
    assert len(caplog.messages) == 1
    store = Store(disk / "hyper.db", reserve)
    store.insert(Spec(image="i"), a_record())
    fill(disk)
    with pytest.raises(DiskFull):
        store.audit("user", "remove", a_record(), "y" * 200_000, "done", {})
    store.close()
    reserve.close()


def test_images_and_volumes_are_removed_from_a_full_disk(disk: Path) -> None:
    reserve = Reserve(disk / "reserve")
    images = ImageIndex(disk / "hyper.db", disk / "images", reserve)
    volumes = VolumeIndex(disk / "hyper.db", reserve)
    config = ImageConfig()
    images.put(Image(DIGEST, (), 1.0, 1.0, 1, images.file(DIGEST), config), {f"sha256:{n}": n for n in range(2000)})
    images.tag("busybox:latest", DIGEST)
    volumes.put_volume(Volume("data", 1.0, 1 << 20))
    fill(disk)
    images.untag("busybox:latest")
    images.doom(DIGEST)
    assert images.doomed() == (DIGEST,)
    images.remove(DIGEST)
    volumes.remove_volume("data")
    assert reserve.missing_bytes > 0
    assert images.all() == ()
    assert images.blobs(DIGEST) == {}
    assert volumes.volumes() == []
    volumes.close()
    images.close()
    reserve.close()


async def test_nothing_that_takes_room_is_begun_while_there_is_none(disk: Path) -> None:
    reserve = Reserve(disk / "reserve")
    volumes = Volumes(disk, 64 << 20, list, reserve=reserve)
    await volumes.create("data")
    fill(disk)
    with pytest.raises(DiskFull, match="0 MiB free"):
        await volumes.create("more")
    with pytest.raises(DiskFull, match="0 MiB free"):
        await volumes.take_snapshot("data")
    assert reserve.missing_bytes == 0
    await volumes.remove("data")
    volumes.close()
    reserve.close()


def test_a_record_that_has_no_room_is_left_as_it_was(disk: Path) -> None:
    records.write(disk, a_record())
    fill(disk)
    with pytest.raises(OSError, match="No space"):
        records.write(disk, dataclasses.replace(a_record(), image="x" * 10_000))
    assert records.read(disk) == a_record()
