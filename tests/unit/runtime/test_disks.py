"""Writable layers: file systems of their own, though all of a size are copies of the first."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from runtime import command, disks
from runtime.errors import DiskFull

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 64 << 20
MOUNT = "discard,no_prefetch_block_bitmaps"


async def test_a_copy_is_a_whole_sparse_file_system(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        await disks.make_writable(path, SIZE)
        assert path.stat().st_size == SIZE
        assert path.stat().st_mode & 0o777 == 0o600
        assert disks.used_bytes(path) < SIZE / 16
        assert not disks.needs_recovery(path)
        checked = await command.run(["e2fsck", "-f", "-n", str(path)], timeout_s=30)
        assert checked.returncode == 0, checked.stdout
    assert first.read_bytes() == second.read_bytes()
    listed = await command.run(["debugfs", "-R", "ls -l /", str(second)], timeout_s=30)
    names = {line.split()[-1]: line.split()[1:5] for line in listed.stdout.decode().splitlines() if line.strip()}
    assert names["upper"] == names["work"] == ["40755", "(2)", "0", "0"]
    assert sorted(tmp_path.iterdir()) == [first, second]


async def test_sizes_are_kept_apart_and_few(tmp_path: Path) -> None:
    for megabytes in range(16, 16 + 12):
        await disks.make_writable(tmp_path / "one", megabytes << 20)
        assert (tmp_path / "one").stat().st_size == megabytes << 20
    assert len(disks._blanks) <= disks._KEPT


async def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await disks.make_writable(tmp_path / "first", SIZE)

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in (full, lambda descriptor, data, offset: len(data) // 2):
        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(DiskFull, match=r"writable layer .*/second: No space left on device"):
            await disks.make_writable(tmp_path / "second", SIZE)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "first"]


async def test_flushes_are_only_left_out_where_nothing_has_to_be_replayed(tmp_path: Path) -> None:
    one = tmp_path / "one"
    await disks.make_writable(one, SIZE)
    assert disks.mount_options(one) == {"options": f"{MOUNT},nobarrier", "remount": "barrier"}
    assert disks.mount_options(one, keep=False) == {"options": f"{MOUNT},nobarrier", "remount": ""}
    for mounted, keep, remount in (
        ("nobarrier", True, "barrier"),
        ("nobarrier", False, ""),
        ("barrier", True, ""),
        ("barrier", False, "nobarrier"),
    ):
        assert disks.mount_options(one, keep=keep, mounted=mounted)["remount"] == remount
    await command.run(["debugfs", "-w", "-R", "feature needs_recovery", str(one)], timeout_s=30)
    for keep in (True, False):
        assert disks.mount_options(one, keep=keep) == {"options": MOUNT, "remount": ""}
    assert disks.mount_options(one, mounted="barrier")["remount"] == "", "an unfinished journal is its own"
