"""Volumes and snapshots; what takes room, and removing what nothing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from runtime import disks
from runtime.api import effective
from runtime.api.answer import Route
from runtime.api.body import Body
from runtime.api.images import PruneBody as PruneImages
from runtime.api.streaming import Streaming
from runtime.errors import Conflict, NotFound, RuntimeFault
from runtime.spec import NAME_PATTERN, Text
from runtime.volumes import commit, files

if TYPE_CHECKING:
    from runtime.api.images import ImagesApi
    from runtime.engine import Engine
    from runtime.volumes import Volume

MAX_SIZE_BYTES = 1 << 40  # what the guest's driver sees of every drive (runtime.vm.machine)


class VolumeBody(Body):
    """A volume to make; null: a name of its own, the usual size, empty."""

    name: str | None = Field(None, pattern=NAME_PATTERN)
    size_bytes: int | None = Field(None, ge=disks.MIN_BYTES, le=MAX_SIZE_BYTES)
    labels: dict[Text, Text] = Field(default_factory=dict, max_length=256)
    snapshot: str | None = Field(None, pattern=NAME_PATTERN)


class SnapshotBody(Body):
    """A snapshot to take; null: a name of its own."""

    volume: str = Field(pattern=NAME_PATTERN)
    name: str | None = Field(None, pattern=NAME_PATTERN)


class PruneBody(Body):
    """`all`: volumes with a name too."""

    all: bool = False


class SystemPruneBody(Body):
    """What goes besides containers that have ended: images, and anonymous volumes that no container has."""

    images: Literal["none", "dangling", "all"] = "dangling"
    volumes: bool = False


class CommitBody(Body):
    """The new image's name (null: none), and what is to be in its configuration."""

    reference: str | None = Field(None, min_length=1, max_length=512)
    author: str = Field("", max_length=1024)
    message: str = Field("", max_length=4096)
    changes: list[Text] = Field(default_factory=list, max_length=256)
    pause: bool = True


class VolumesApi:
    """Over the engine's volumes."""

    def __init__(self, engine: Engine, images: ImagesApi) -> None:
        self._engine = engine
        self._images = images

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", route_class=Route)
        router.get("/volumes")(self.volumes)
        router.post("/volumes", status_code=201)(self.create)
        router.post("/volumes/prune")(self.prune)
        router.get("/volumes/{name}")(self.volume)
        router.delete("/volumes/{name}", status_code=204)(self.remove)
        router.get("/snapshots")(self.snapshots)
        router.post("/snapshots", status_code=201)(self.take)
        router.get("/snapshots/{name}")(self.snapshot)
        router.delete("/snapshots/{name}", status_code=204)(self.remove_snapshot)
        router.get("/containers/{ref}/archive")(self.get_archive)
        router.put("/containers/{ref}/archive", status_code=204)(self.put_archive)
        router.get("/containers/{ref}/changes")(self.changes)
        router.post("/containers/{ref}/commit", status_code=201)(self.commit)
        router.get("/system/df")(self.usage)
        router.post("/system/prune")(self.prune_system)
        return router

    async def volumes(self) -> list[dict[str, Any]]:
        """All volumes."""
        return [self._view(one) for one in self._engine.volumes.all()]

    async def create(self, body: VolumeBody) -> dict[str, Any]:
        """Make one; one that exists is returned."""
        made = await self._engine.volumes.create(
            body.name,
            size_bytes=body.size_bytes,
            labels=body.labels,
            snapshot=body.snapshot,
            anonymous=body.name is None,
        )
        return self._view(made)

    async def volume(self, name: str) -> dict[str, Any]:
        """One volume."""
        return self._view(self._engine.volumes.get(name))

    async def remove(self, name: str) -> None:
        """Remove one."""
        await self._engine.volumes.remove(name)

    async def prune(self, body: PruneBody | None = None) -> dict[str, Any]:
        """Remove those that no container has."""
        pruned = await self._engine.volumes.prune(everything=bool(body and body.all))
        return {"removed": pruned.removed, "freed_bytes": pruned.freed_bytes, "failed": pruned.failed}

    async def snapshots(self) -> list[dict[str, Any]]:
        """All snapshots."""
        volumes = self._engine.volumes
        return [{**one.to_dict(), "used_bytes": volumes.snapshot_bytes(one.name)} for one in volumes.snapshots()]

    async def take(self, body: SnapshotBody) -> dict[str, Any]:
        """Take one."""
        return (await self._engine.volumes.take_snapshot(body.volume, body.name)).to_dict()

    async def snapshot(self, name: str) -> dict[str, Any]:
        """One snapshot."""
        volumes = self._engine.volumes
        return {**volumes.snapshot(name).to_dict(), "used_bytes": volumes.snapshot_bytes(name)}

    async def remove_snapshot(self, name: str) -> None:
        """Remove one."""
        await self._engine.volumes.remove_snapshot(name)

    async def get_archive(self, ref: str, path: str) -> Streaming:
        """A file or directory of a container, as tar."""
        pieces = await files.get(self._engine, self._engine.lives.find(ref), path)
        return Streaming(pieces, media_type="application/x-tar")

    async def put_archive(self, ref: str, path: str, request: Request) -> None:
        """Unpack the body, a tar archive, in a directory of a container."""
        await files.put(self._engine, self._engine.lives.find(ref), path, request.stream())

    async def changes(self, ref: str) -> list[dict[str, str]]:
        """What a container's files have beside its image's."""
        return await files.changes(self._engine, self._engine.lives.find(ref))

    async def commit(self, ref: str, body: CommitBody | None = None) -> dict[str, Any]:
        """A new image of a container."""
        body = body or CommitBody()
        one = self._engine.lives.find(ref)
        base = await self._engine.images.resolve(one.record.image_digest)
        image = await commit.commit(
            self._engine,
            one,
            body.reference,
            own=effective.config(one.spec, base.config, one.record.labels),
            author=body.author,
            message=body.message,
            changes=body.changes,
            pause=body.pause,
        )
        return image.to_dict()

    async def usage(self) -> dict[str, Any]:
        """What takes room, by kind: how many, how many in use, bytes, bytes that could be freed."""
        engine = self._engine
        containers = engine.lives.all()
        images = await engine.images.list()
        used = {one.record.image_digest for one in containers}
        layers = {one.id: disks.used_bytes(one.data_directory / "writable.ext4") for one in containers}
        volumes = {one.name: engine.volumes.used_bytes(one.name) for one in engine.volumes.all()}
        in_use = {mount.source for one in containers for mount in one.spec.volumes}
        snapshots = [engine.volumes.snapshot_bytes(one.name) for one in engine.volumes.snapshots()]
        return {
            "images": _row({one.digest: one.size_bytes for one in images}, used),
            "containers": _row(layers, {one.id for one in containers if one.live}),
            "volumes": _row(volumes, {name for name in in_use if name}),
            "snapshots": {
                "count": len(snapshots), "active": 0, "bytes": sum(snapshots), "reclaimable_bytes": sum(snapshots)
            },
        }  # fmt: skip

    async def prune_system(self, body: SystemPruneBody | None = None) -> dict[str, Any]:
        """Remove containers that have ended, then what they were the last to need; `failed` is what stays, with why."""
        body = body or SystemPruneBody()
        removed, freed = [], 0
        failed: list[str] = []
        for one in self._engine.lives.all():
            if one.over and not one.lock.locked():
                size = disks.used_bytes(one.data_directory / "writable.ext4")
                try:
                    await self._engine.remove(one.id)
                except (Conflict, NotFound):
                    continue  # it was started or removed meanwhile
                except RuntimeFault as err:
                    failed.append(f"{one.record.name}: {err.message}")
                    continue
                removed.append(one.id)
                freed += size
        volumes: list[str] = []
        if body.volumes:
            pruned = await self._engine.volumes.prune(everything=False)
            volumes, freed = pruned.removed, freed + pruned.freed_bytes
            failed += pruned.failed
        images: dict[str, Any] = {"untagged": [], "deleted": []}
        if body.images != "none":
            images = await self._images.prune(PruneImages(all=body.images == "all"))
            freed += images.pop("freed_bytes")
            failed += images.pop("failed")
        return {
            "containers": removed, "volumes": volumes, "images": images, "freed_bytes": freed, "failed": failed
        }  # fmt: skip

    def _view(self, one: Volume) -> dict[str, Any]:
        volumes = self._engine.volumes
        users = [{"id": user.id, "name": user.record.name, "live": user.live} for user in volumes.users(one.name)]
        return {
            **one.to_dict(),
            "used_bytes": volumes.used_bytes(one.name),
            "file": str(volumes.file(one.name)),
            "containers": users,
        }


def _row(sizes: dict[str, int], active: set[str]) -> dict[str, int]:
    return {
        "count": len(sizes),
        "active": len(sizes.keys() & active),
        "bytes": sum(sizes.values()),
        "reclaimable_bytes": sum(size for name, size in sizes.items() if name not in active),
    }
