"""Host cgroups of the VMs: v1, v2 and hybrid hosts.

Every VM gets a group `hyper/<id>` in each hierarchy that there is. On a hybrid host that is the v1 controllers *and*
the v2 tree, because pressure (PSI) and `cgroup.kill` exist in v2 alone.
Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import HostUnable
from runtime.record import Cgroups

if TYPE_CHECKING:
    from collections.abc import Mapping

PARENT = "hyper"
V1_CONTROLLERS = frozenset({"cpu", "cpuacct", "memory", "blkio", "pids"})
V2_CONTROLLERS = ("cpu", "memory", "io", "pids")
CPU_PERIOD_US = 100_000
MAX_TASKS = 512  # threads of one VM: QEMU has one for each vCPU, some of its own, and at most 64 for its disks
NORMAL_WEIGHT = 100
LEAST_WEIGHT = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the hierarchies are mounted. `v1` maps a controller to its mount point; co-mounted ones share it."""

    v2: Path | None
    v1: Mapping[str, Path]

    @property
    def kind(self) -> str:
        """`v1`, `v2`, `hybrid` or `none`."""
        if self.v1:
            return "hybrid" if self.v2 else "v1"
        return "v2" if self.v2 else "none"


def detect(mountinfo: Path = Path("/proc/self/mountinfo")) -> Layout:
    """Read the mount table (proc(5), `mountinfo`: fields after the dash are type, source, super options)."""
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split(" ")[4])
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" and v2 is None:
            v2 = mount_point
        elif kind == "cgroup":
            for option in V1_CONTROLLERS.intersection(options.split(",")):
                v1.setdefault(option, mount_point)
    return Layout(v2, v1)


class HostCgroups:
    """Makes, fills and removes the groups of VMs."""

    def __init__(self, layout: Layout, parent: str = PARENT) -> None:
        self.layout = layout
        self._parent = parent

    def claim(self, stack: contextlib.ExitStack) -> None:
        """Hold our parent groups for as long as the process lives: one daemon to a name, as each sweeps what it has.

        Raises:
            HostUnable: another daemon has them.
        """
        for mount_point in {self.layout.v2, *self.layout.v1.values()} - {None}:
            parent = Path(str(mount_point)) / self._parent
            try:
                parent.mkdir(exist_ok=True)
                descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue  # `create` says what is wrong
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                raise HostUnable(
                    f"another hyperd has the control group {parent}: set another name (HYPER_CGROUP_PARENT)",
                    field="cgroup_parent",
                ) from err

    def create(self, container_id: str) -> Cgroups:
        """Make the container's groups in every hierarchy, with a bound on threads where the host has that controller.

        Raises:
            HostUnable: a hierarchy is mounted read-only or not ours to write.
        """
        try:
            v2 = None
            if self.layout.v2:
                parent = self.layout.v2 / self._parent
                parent.mkdir(exist_ok=True)
                _enable(self.layout.v2)
                _enable(parent)
                v2 = parent / container_id
                v2.mkdir(exist_ok=True)
            v1 = {}
            for controller, mount_point in self.layout.v1.items():
                directory = mount_point / self._parent / container_id
                directory.mkdir(parents=True, exist_ok=True)
                v1[controller] = str(directory)
        except OSError as err:
            raise HostUnable(
                f"cannot make the control group {err.filename}: {err.strerror}. "
                "Run hyperd as root, or delegate it a writable cgroup tree"
            ) from err
        for group in (str(v2) if v2 else None, v1.get("pids")):
            if group is not None:
                _write(Path(group) / "pids.max", str(MAX_TASKS))
        return Cgroups(str(v2) if v2 else None, v1)

    def limit(self, groups: Cgroups, *, memory_bytes: int, cpus: float | None) -> None:
        """Set the limits of the whole VM: guest RAM with the VMM's own need, and CPU time.

        Controllers that the host does not have are left alone: the guest's own limits hold in any case.
        """
        if groups.v2:
            _write(Path(groups.v2) / "memory.max", str(memory_bytes))
            if cpus is not None:
                _write(Path(groups.v2) / "cpu.max", f"{int(cpus * CPU_PERIOD_US)} {CPU_PERIOD_US}")
        if "memory" in groups.v1:
            _write(Path(groups.v1["memory"]) / "memory.limit_in_bytes", str(memory_bytes))
        if "cpu" in groups.v1 and cpus is not None:
            directory = Path(groups.v1["cpu"])
            _write(directory / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            _write(directory / "cpu.cfs_quota_us", str(int(cpus * CPU_PERIOD_US)))

    def weigh(self, groups: Cgroups, weight: int) -> None:
        """Set the share of CPU time under contention: 1 to 10000, NORMAL_WEIGHT is what a group starts with.

        v1 counts the same in shares of 1024 (cgroups(7), `cpu.shares`; cgroup-v2.rst, `cpu.weight`).
        """
        if groups.v2:
            _write(Path(groups.v2) / "cpu.weight", str(weight))
        if "cpu" in groups.v1:
            _write(Path(groups.v1["cpu"]) / "cpu.shares", str(max(2, weight * 1024 // NORMAL_WEIGHT)))

    def processes(self, groups: Cgroups) -> set[int]:
        """Pids that are in any of the groups."""
        found: set[int] = set()
        for directory in directories(groups):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
        return found

    def oom_kills(self, groups: Cgroups) -> int | None:
        """Processes of the VM that the kernel killed for its group's limit; None where nobody counts them.

        Source: `oom_kill` of v2's memory.events or v1's memory.oom_control (cgroup-v2.rst, memory.rst).
        """
        files = [Path(groups.v2) / "memory.events"] if groups.v2 else []
        files += [Path(groups.v1["memory"]) / "memory.oom_control"] if "memory" in groups.v1 else []
        for file in files:
            with contextlib.suppress(OSError, KeyError, ValueError):
                return int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])
        return None

    async def remove(self, groups: Cgroups, deadline_s: float = 5.0) -> None:
        """Remove the groups; the kernel takes a moment after the last process has ended.

        A group that stays busy past the deadline is left for the next sweep.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        for directory in directories(groups):
            while directory.exists():
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if loop.time() > end:
                        break
                    await asyncio.sleep(0.01)

    def existing(self) -> dict[str, Cgroups]:
        """Groups of ours that are there now, by container id."""
        found: dict[str, tuple[str | None, dict[str, str]]] = {}
        if self.layout.v2:
            for directory in _children(self.layout.v2 / self._parent):
                found[directory.name] = (str(directory), {})
        for controller, mount_point in self.layout.v1.items():
            for directory in _children(mount_point / self._parent):
                found.setdefault(directory.name, (None, {}))[1][controller] = str(directory)
        return {name: Cgroups(v2, v1) for name, (v2, v1) in found.items()}

    def remove_parent(self) -> None:
        """Remove the parent groups, as far as they are empty."""
        for mount_point in {self.layout.v2, *self.layout.v1.values()} - {None}:
            with contextlib.suppress(OSError):
                (Path(str(mount_point)) / self._parent).rmdir()


def _children(parent: Path) -> list[Path]:
    try:
        return [child for child in parent.iterdir() if child.is_dir()]
    except OSError:
        return []


def directories(groups: Cgroups) -> tuple[Path, ...]:
    """Every directory of the groups, once each."""
    paths = {*groups.v1.values(), *([groups.v2] if groups.v2 else [])}
    return tuple(Path(path) for path in sorted(paths))


def _enable(directory: Path) -> None:
    """Enable for the children every controller of ours that the directory has; one that is refused is not had."""
    available = (directory / "cgroup.controllers").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in available:
            with contextlib.suppress(OSError):
                (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _write(path: Path, value: str) -> None:
    if path.exists():
        try:
            path.write_text(value)
        except OSError as err:
            raise HostUnable(f"cannot write {value} to {path}: {err.strerror}") from err
