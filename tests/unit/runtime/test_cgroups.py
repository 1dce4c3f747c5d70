"""Layouts of control groups: v1, v2, hybrid, from tables of mounts; and the real ones of this host."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from runtime.cgroups import HostCgroups, Layout, detect, directories
from runtime.errors import HostUnable

if TYPE_CHECKING:
    from pathlib import Path

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/systemd rw shared:7 - cgroup cgroup rw,xattr,name=systemd\n"
)
UNIFIED = "34 30 0:30 / /sys/fs/cgroup/unified rw shared:8 - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("table", "kind", "v2", "controllers"),
    [
        (V2, "v2", "/sys/fs/cgroup", set()),
        (V1, "v1", None, {"cpu", "cpuacct", "memory"}),
        (V1 + UNIFIED, "hybrid", "/sys/fs/cgroup/unified", {"cpu", "cpuacct", "memory"}),
        ("", "none", None, set()),
    ],
)
def test_layouts(tmp_path: Path, table: str, kind: str, v2: str | None, controllers: set[str]) -> None:
    (tmp_path / "mountinfo").write_text(table)
    layout = detect(tmp_path / "mountinfo")
    assert layout.kind == kind
    assert (str(layout.v2) if layout.v2 else None) == v2
    assert set(layout.v1) == controllers


def v2_tree(root: Path) -> HostCgroups:
    for directory in (root, root / "hyper"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpu memory pids\n")
        (directory / "cgroup.subtree_control").write_text("")
    return HostCgroups(Layout(root, {}))


def test_v2_limits(tmp_path: Path) -> None:
    groups = v2_tree(tmp_path)
    made = groups.create("one")
    assert directories(made) == (tmp_path / "hyper" / "one",)
    for name in ("memory.max", "cpu.max", "pids.max"):
        (tmp_path / "hyper" / "one" / name).write_text("max")
    assert groups.create("one") == made
    assert (tmp_path / "hyper" / "one" / "pids.max").read_text() == "512"
    groups.limit(made, memory_bytes=1 << 28, cpus=1.5)
    assert (tmp_path / "hyper" / "one" / "memory.max").read_text() == str(1 << 28)
    assert (tmp_path / "hyper" / "one" / "cpu.max").read_text() == "150000 100000"


def test_v1_limits_and_what_is_missing_is_left_alone(tmp_path: Path) -> None:
    groups = HostCgroups(Layout(None, {"cpu": tmp_path / "cpu"}))
    made = groups.create("one")
    directory = tmp_path / "cpu" / "hyper" / "one"
    for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        (directory / name).write_text("-1")
    groups.limit(made, memory_bytes=1 << 28, cpus=0.5)
    assert (directory / "cpu.cfs_quota_us").read_text() == "50000"
    assert groups.existing() == {"one": made}


def test_a_tree_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostUnable, match="control group"):
        HostCgroups(Layout(None, {"cpu": tmp_path / "file"})).create("one")


def test_two_daemons_do_not_sweep_each_others_groups(tmp_path: Path) -> None:
    name = f"hyper-unit-{tmp_path.name}"
    first, second = HostCgroups(detect(), name), HostCgroups(detect(), name)
    with contextlib.ExitStack() as lives:
        first.claim(lives)
        with contextlib.ExitStack() as refused, pytest.raises(HostUnable, match="HYPER_CGROUP_PARENT"):
            second.claim(refused)
    with contextlib.ExitStack() as lives:
        second.claim(lives)
    first.remove_parent()


async def test_real_groups_hold_a_process_and_go(tmp_path: Path) -> None:
    groups = HostCgroups(detect(), f"hyper-unit-{tmp_path.name}")
    made = groups.create("one")
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        for directory in directories(made):
            (directory / "cgroup.procs").write_text(str(sleeper.pid))
        assert groups.processes(made) == {sleeper.pid}
    finally:
        sleeper.kill()
        await sleeper.wait()
    await groups.remove(made)
    groups.remove_parent()
    assert groups.existing() == {}
