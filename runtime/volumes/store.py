"""The volumes of this host: making, attaching, copying and removing them.

A volume is here when its row is in the database and its file is in place. It is made in a directory that begins with
`.new-`, gets its row, and then its name; to be removed it gets a name that begins with `.gone-`, and then loses its
row. So what a crash leaves tells what it is, and `sweep` ends what was begun. A directory without a row is none of it:
the database was lost, or is an older copy. It stays, and `create` takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime import disks
from runtime.errors import Conflict, GuestFailed, InvalidInput, NameInUse, NotFound, RuntimeFault
from runtime.reserve import NONE, Reserve
from runtime.vm import launch, machine
from runtime.volumes import copying, host_directories
from runtime.volumes.index import Snapshot, Volume, VolumeIndex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from runtime.life import Container
    from runtime.spec import Spec, VolumeSpec
    from runtime.vm import sharing

log = logging.getLogger(__name__)

FILE = "volume.ext4"
_NEW, _GONE = ".new-", ".gone-"  # beginnings of directories that are being made, or removed
FREEZE_TIMEOUT_S = 60
_ATTACHED_STATES = frozenset({"running", "paused", "stopping"})


@dataclass(frozen=True, slots=True)
class Pruned:
    """The names of the volumes that went, the bytes that became free, and what stays against our will, with why."""

    removed: list[str]
    freed_bytes: int
    failed: list[str]


class Volumes:
    """One per data directory. `containers` gives all containers of this host.

    `keep_out` are directories that no container gets as a host directory, beside the data directory.
    """

    def __init__(
        self,
        data_dir: Path,
        default_size_bytes: int,
        containers: Callable[[], Iterable[Container]],
        keep_out: tuple[Path, ...] = (),
        reserve: Reserve = NONE,
    ) -> None:
        self._reserve = reserve
        self._directory = data_dir / "volumes"
        self._snapshots = data_dir / "snapshots"
        self._default_size_bytes = default_size_bytes
        self._containers = containers
        self._keep_out = (data_dir, *keep_out)
        self._attached: set[str] = set()
        self._busy: set[str] = set()
        try:
            for directory in (self._directory, self._snapshots):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise copying.fault(err, f"cannot make {self._directory}") from err
        self._index = VolumeIndex(data_dir / "hyper.db", reserve)

    def close(self) -> None:
        """Close the database."""
        self._index.close()

    def sweep(self) -> None:
        """End what a crash has cut off; call it before the first use."""
        for parent, names, forget in (
            (self._directory, {one.name for one in self._index.volumes()}, self._index.remove_volume),
            (self._snapshots, {one.name for one in self._index.snapshots()}, self._index.remove_snapshot),
        ):
            for name in names:
                if (parent / name).exists():
                    continue
                if (made := parent / f"{_NEW}{name}").exists():
                    made.rename(parent / name)
                elif (parent / f"{_GONE}{name}").exists():
                    forget(name)
            for path in parent.iterdir():
                if path.name.startswith((_NEW, _GONE)):
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name not in names and _is_ours(path):
                    log.warning(
                        "%s is not in the database, and stays: to have it again, %srun 'hyper volume create %s'",
                        path,
                        "" if parent == self._directory else f"move it to {self._directory}/ and ",
                        path.name,
                    )

    # --- volumes

    def all(self) -> list[Volume]:
        """All volumes by name."""
        return self._index.volumes()

    def get(self, name: str) -> Volume:
        """One volume.

        Raises:
            NotFound: there is none of this name.
        """
        for one in self._index.volumes():
            if one.name == name:
                return one
        raise NotFound(f"there is no volume {name!r}: 'hyper volume ls' lists them all", field="volume")

    def file(self, name: str) -> Path:
        """Where a volume's file is."""
        return self._directory / name / FILE

    async def create(
        self,
        name: str | None = None,
        *,
        size_bytes: int | None = None,
        labels: Mapping[str, str] | None = None,
        snapshot: str | None = None,
        anonymous: bool = False,
    ) -> Volume:
        """Make an empty volume, or one with a snapshot's content. One that exists is taken as it is, as Docker does.

        So is one of which only the database has lost its row.

        Raises:
            NotFound: there is no such snapshot.
            NameInUse: it exists, and another size or a snapshot's content was asked for.
            InvalidInput: a snapshot's content has its own size.
            DiskFull, HostUnable: nothing is left of it then.
        """
        name = name or secrets.token_hex(32)
        origin = self.snapshot(snapshot) if snapshot else None
        if origin and size_bytes not in (None, origin.size_bytes):
            raise InvalidInput(
                f"a volume of a snapshot has its size, {origin.size_bytes}: leave out --size", field="size"
            )
        async with self._hold(f"volume {name}"):
            existing = self._existing(name, labels or {}, anonymous=anonymous)
            if existing:
                if origin or size_bytes not in (None, existing.size_bytes):
                    raise NameInUse(
                        f"there is a volume {name} of {existing.size_bytes} bytes: choose another name", field="name"
                    )
                return existing
            size = origin.size_bytes if origin else size_bytes or self._default_size_bytes
            filled = bool(origin and origin.filled)
            one = Volume(name, time.time(), size, labels or {}, anonymous, filled, origin.name if origin else None)
            kept = lambda: self._index.put_volume(one), lambda: self._index.remove_volume(name)
            async with self._new(self._directory / name, *kept) as directory:
                if origin:
                    source = self._snapshots / origin.name / FILE
                    await _finished(asyncio.to_thread(copying.copy, source, directory / FILE))
                else:
                    await disks.make_ext4(directory / FILE, size, f"the volume {name}")
        return one

    def _existing(self, name: str, labels: Mapping[str, str], *, anonymous: bool) -> Volume | None:
        with contextlib.suppress(NotFound):
            return self.get(name)
        if not _is_ours(self._directory / name):
            return None
        found = self.file(name).stat()
        one = Volume(name, found.st_mtime, found.st_size, labels, anonymous, filled=True)
        self._index.put_volume(one)
        log.warning("the volume %s was not in the database, and is again, with what it holds", name)
        return one

    async def remove(self, name: str, but: Container | None = None) -> None:
        """Remove a volume; `but` is a container that has it and goes.

        Raises:
            NotFound: there is none.
            Conflict: a container has it, whether it runs or not.
        """
        self.get(name)
        async with self._hold(f"volume {name}"):
            users = [one for one in self.users(name) if one is not but]
            if users:
                names = ", ".join(one.record.name for one in users)
                raise Conflict(f"the volume {name} is in use by {names}: remove that first (hyper rm)", field="volume")
            await self._erase(self._directory / name, self._index.remove_volume)

    async def prune(self, *, everything: bool) -> Pruned:
        """Remove volumes that no container has: the anonymous, or all."""
        removed, freed, failed = [], 0, []
        for one in self._index.volumes():
            if (everything or one.anonymous) and not self.users(one.name):
                size = self.used_bytes(one.name)
                try:
                    await self.remove(one.name)
                except (Conflict, NotFound):
                    continue  # a container has it now, or it is gone
                except RuntimeFault as err:
                    failed.append(f"{one.name}: {err.message}")
                    continue
                removed.append(one.name)
                freed += size
        return Pruned(removed, freed, failed)

    def users(self, name: str) -> list[Container]:
        """The containers that have a volume."""
        return [one for one in self._containers() if any(mount.source == name for mount in one.spec.disks)]

    def used_bytes(self, name: str) -> int:
        """What a volume takes on the disk."""
        return disks.used_bytes(self.file(name))

    # --- of containers

    def resolve(self, spec: Spec) -> tuple[Spec, frozenset[str]]:
        """The spec with a name for each volume that has none, and those names; it says of each whether it is such.

        Raises:
            InvalidInput: more volumes than a VM has disks for, or a host directory that no container gets.
        """
        anonymous = set()
        mounts = []
        for mount in spec.volumes:
            if mount.source is None:
                anonymous.add(name := secrets.token_hex(32))
                mounts.append(mount.model_copy(update={"source": name, "generated": True}))
            else:
                mounts.append(mount.model_copy(update={"generated": False}))
        spec = spec.model_copy(update={"volumes": tuple(mounts)})
        disk_count = len(spec.disks)
        if len({mount.source for mount in spec.disks}) < disk_count:
            raise InvalidInput("a volume is named twice: a disk has one place in a container", field="volumes")
        limit = len(machine.VOLUME_DEVICES)
        if disk_count > limit:
            raise InvalidInput(f"{disk_count} volumes: a VM has disks for {limit}; put more into one", field="volumes")
        for mount in spec.host_directories:
            host_directories.check(mount.source or "", self._keep_out)
        return spec, frozenset(anonymous)

    async def ensure(self, spec: Spec, anonymous: frozenset[str]) -> None:
        """Make the volumes that a new container names and that do not exist.

        Raises:
            Conflict, DiskFull, HostUnable: those that were made stay; a named one is of use, others go with `forget`.
        """
        for mount in spec.disks:
            await self.create(mount.source, anonymous=mount.source in anonymous)

    async def forget(self, owner: Container) -> None:
        """Remove the volumes that were made for a container that is being removed, but those that another one has too.

        One that the user has named stays, also if it was made without a name.
        """
        anonymous = {one.name: one for one in self._index.volumes() if one.anonymous}
        for mount in owner.spec.disks:
            one = anonymous.get(mount.source or "")
            if one is not None and _made_for(mount, one, owner):
                with contextlib.suppress(Conflict, NotFound):
                    await self.remove(one.name, owner)

    def attach(self, container: Container) -> tuple[launch.Volume, ...]:
        """Claim a container's volumes for the VM that it is getting, in the order of the guest's devices.

        Raises:
            NotFound: one is gone.
            Conflict: another VM has one, and one of the two writes; or it must be written to first.
        """
        found = []
        for mount in container.spec.disks:
            one = self.get(mount.source or "")
            if f"volume {one.name}" in self._busy:
                raise Conflict(f"the volume {one.name} is being copied or removed: try again", field="volume")
            read_only = mount.read_only and one.filled
            for other in self._containers():
                theirs = self._mount_of(other, one.name) if other is not container else None
                if theirs is not None and not (read_only and theirs.read_only):
                    raise Conflict(
                        f"the volume {one.name} is in use by {other.record.name}: a volume is a disk, which one VM at a"
                        " time may write to; stop that container, or mount it :ro in both",
                        field="volume",
                    )
            if read_only and disks.needs_recovery(self.file(one.name)):
                raise Conflict(
                    f"the volume {one.name} was not unmounted (its VM was killed): mount it once without :ro, which"
                    " repairs it",
                    field="volume",
                )
            found.append(launch.Volume(self.file(one.name), read_only))
        self._attached.add(container.id)
        return tuple(found)

    def open_host_directories(self, container: Container) -> list[sharing.Share]:
        """Open a container's host directories, for the caller to close; one that is not there is made, as by Docker.

        Blocks: call it in a thread.

        Raises:
            InvalidInput, HostUnable: as `host_directories.open_share`; none is open then.
        """
        return host_directories.open_shares(container.spec, self._keep_out)

    def attached(self, container: Container) -> None:
        """The VM has come up with its volumes: they hold their first content."""
        for mount in container.spec.disks:
            self._index.set_filled(mount.source or "")

    def _mount_of(self, other: Container, name: str) -> VolumeSpec | None:
        """How another container's VM has a volume, if it has it."""
        claimed = other.state in _ATTACHED_STATES or (other.live and other.id in self._attached)
        mounts = [mount for mount in other.spec.disks if mount.source == name]
        return mounts[0] if claimed and mounts else None

    # --- snapshots

    def snapshots(self) -> list[Snapshot]:
        """All snapshots by name."""
        return self._index.snapshots()

    def snapshot(self, name: str) -> Snapshot:
        """One snapshot.

        Raises:
            NotFound: there is none of this name.
        """
        for one in self._index.snapshots():
            if one.name == name:
                return one
        raise NotFound(f"there is no snapshot {name!r}: 'hyper snapshot ls' lists them all", field="snapshot")

    def snapshot_bytes(self, name: str) -> int:
        """What a snapshot takes on the disk, if it shares nothing."""
        return disks.used_bytes(self._snapshots / name / FILE)

    async def take_snapshot(self, volume: str, name: str | None = None) -> Snapshot:
        """Copy a volume as it is at one moment; one that a VM writes to is held still for that.

        Raises:
            NotFound: there is no such volume.
            NameInUse: there is a snapshot of this name.
            Conflict: its VM is just starting or stopping.
            GuestFailed: the guest did not hold it still long enough.
            DiskFull, HostUnable: the copy failed. Nothing is left of it in any case.
        """
        one = self.get(volume)
        name = name or f"{volume[:90]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        if (self._snapshots / name).exists() or any(name == known.name for known in self._index.snapshots()):
            raise NameInUse(f"there is a snapshot {name}: choose another name, or remove it", field="name")
        async with self._hold(f"snapshot {name}"), self._hold(f"volume {volume}"):
            writer = next((c for c in self.users(volume) if (m := self._mount_of(c, volume)) and not m.read_only), None)
            snapshot = Snapshot(name, volume, time.time(), one.size_bytes, one.filled)
            kept = lambda: self._index.put_snapshot(snapshot), lambda: self._index.remove_snapshot(name)
            made = self._new(self._snapshots / name, *kept)
            async with made as directory, self._still(writer, volume):
                await _finished(asyncio.to_thread(copying.copy, self.file(volume), directory / FILE))
        return snapshot

    async def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; volumes made from it are copies and stay."""
        self.snapshot(name)
        async with self._hold(f"snapshot {name}"):
            await self._erase(self._snapshots / name, self._index.remove_snapshot)

    @contextlib.asynccontextmanager
    async def _still(self, writer: Container | None, volume: str) -> AsyncIterator[None]:
        if writer is None:
            yield
            return
        async with writer.lock:
            if writer.state != "running" or writer.agent is None:
                if writer.live:
                    raise Conflict(
                        f"{writer.record.name} has it, which is {writer.state}: its guest cannot hold it still now",
                        field="volume",
                    )
                yield
                return
            writer.demand_going()
            index = [mount.source for mount in writer.spec.disks].index(volume)
            device = machine.VOLUME_DEVICES[index]
            try:
                await writer.agent.call("hyper-freeze", FREEZE_TIMEOUT_S, device=device, hold_s=FREEZE_TIMEOUT_S)
            except GuestFailed:
                writer.demand_going()  # that is why
                raise
            try:
                yield
            except BaseException:
                with contextlib.suppress(Exception):
                    await asyncio.shield(writer.agent.call("hyper-thaw"))
                raise
            await writer.agent.call("hyper-thaw")  # an error here says that it thawed too early: the copy is no good

    @contextlib.asynccontextmanager
    async def _hold(self, what: str) -> AsyncIterator[None]:
        """Keep others from what is being made, copied or removed."""
        with self._held(what):
            yield

    @contextlib.contextmanager
    def _held(self, what: str) -> Iterator[None]:
        if what in self._busy:
            raise Conflict(f"the {what} is being made, copied or removed: try again", field=what.partition(" ")[0])
        self._busy.add(what)
        try:
            yield
        finally:
            self._busy.discard(what)

    @contextlib.asynccontextmanager
    async def _new(self, final: Path, keep: Callable[[], None], forget: Callable[[], None]) -> AsyncIterator[Path]:
        """A directory that comes to its place, with its row, if the body does not fail, and else is removed."""
        self._reserve.demand_room()
        work = final.with_name(f"{_NEW}{final.name}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(mode=0o700)
            yield work
            keep()
            try:
                work.rename(final)
            except BaseException:
                forget()
                raise
        except BaseException as err:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(err, OSError):
                raise copying.fault(err, f"cannot make {final}") from err
            raise

    async def _erase(self, directory: Path, forget: Callable[[str], None]) -> None:
        """Remove a directory and its row: by a name first that tells what it is, should the daemon be killed."""
        gone = directory.with_name(f"{_GONE}{directory.name}")
        remove = functools.partial(shutil.rmtree, gone, ignore_errors=True)
        await _finished(asyncio.to_thread(remove))
        with contextlib.suppress(FileNotFoundError):
            directory.rename(gone)
        try:
            forget(directory.name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                gone.rename(directory)
            raise
        await _finished(asyncio.to_thread(remove))


def _made_for(mount: VolumeSpec, volume: Volume, owner: Container) -> bool:
    """Whether a volume got its name for this container.

    Older versions did not note that: what was there before the container, the user has named.
    """
    if mount.generated is None:
        return volume.created_at >= owner.record.lifecycle.created_at
    return mount.generated


def _is_ours(path: Path) -> bool:
    """Whether a directory is a volume or a snapshot, and not what somebody else has put there."""
    try:
        return {one.name for one in path.iterdir()} == {FILE}
    except OSError:
        return False  # a file, above all


async def _finished(work: Awaitable[None]) -> None:
    """Wait for a thread's work also when cancelled: what it writes to must not be removed before."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
