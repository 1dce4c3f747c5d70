"""Images: `/v1/images`, `/v1/history`, `/v1/usage/images`, `/v1/registry`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError

from runtime.api import invalid, progress
from runtime.api.answer import Route
from runtime.api.body import Body
from runtime.api.streaming import Streaming
from runtime.errors import InvalidInput, RuntimeFault
from runtime.events import of_image
from runtime.images import access, export, load, manifest, push, reference
from runtime.images.access import Access
from runtime.images.containerfile import CONTEXT_LIMIT_BYTES, Builder, Options
from runtime.images.packages import Packages
from runtime.spec import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engine import Engine
    from runtime.images.image import Progress
    from runtime.images.shelf import Removed

TAR = "application/x-tar"
SEARCH_LIMIT = 100


class RegistryBody(Body):
    """How a registry is reached.

    `tls_verify` null: verify, except for registries known to have no TLS. `cert_dir`: a directory with its CA.
    """

    tls_verify: bool | None = None
    cert_dir: str | None = Field(None, max_length=4096)


class ReferenceBody(RegistryBody):
    """What to pull or push."""

    reference: str = Field(min_length=1, max_length=1024)


class TagBody(Body):
    """`target` is to name what `source` names."""

    source: str = Field(min_length=1, max_length=1024)
    target: str = Field(min_length=1, max_length=1024)


class SaveBody(Body):
    """Images to save."""

    references: list[Text] = Field(min_length=1, max_length=100)
    format: Literal["docker-archive", "oci-archive"] = "docker-archive"


class PruneBody(Body):
    """`all`: also images that have a name."""

    all: bool = False


class SearchBody(RegistryBody):
    """What to search for."""

    term: str = Field(min_length=1, max_length=255)
    limit: int = Field(25, ge=1, le=SEARCH_LIMIT)


class LoginBody(RegistryBody):
    """The registry whose credentials in the header are to be tried."""

    registry: str = Field(min_length=1, max_length=255)


class BuildBody(RegistryBody):
    """What to build, and how."""

    tags: list[Text] = Field(default_factory=list, max_length=20)
    args: dict[Text, Text] = Field(default_factory=dict)
    labels: dict[Text, Text] = Field(default_factory=dict)
    target: str | None = Field(None, max_length=128, pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    no_cache: bool = False


class RebuildBody(ReferenceBody):
    """Which image to build again; `no_cache`: run every step again; `unnamed`: its names stay with it."""

    no_cache: bool = False
    unnamed: bool = False


class ImagesApi:
    """Over the engine's image store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images = engine.images
        self._builder = Builder(engine.images)
        self._packages = Packages()

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", route_class=Route)
        router.get("/images")(self.images)
        router.get("/usage/images")(self.usage)
        router.get("/history/{reference:path}")(self.history)
        router.get("/packages/{reference:path}")(self.packages)
        router.post("/images/pull")(self.pull)
        router.post("/images/push")(self.push)
        router.post("/images/tag")(self.tag)
        router.post("/images/save")(self.save)
        router.post("/images/load")(self.load)
        router.post("/images/prune")(self.prune)
        router.post("/images/build")(self.build)
        router.post("/images/rebuild")(self.rebuild)
        router.post("/registry/search")(self.search)
        router.post("/registry/login", status_code=204)(self.login)
        router.delete("/images/{reference:path}")(self.untag)
        router.get("/images/{reference:path}")(self.image)
        return router

    async def images(self) -> list[dict[str, Any]]:
        """All images."""
        return [image.to_dict() for image in await self._images.list()]

    async def usage(self) -> dict[str, int]:
        """What they take on the disk."""
        found = await self._images.usage(self._engine.images_in_use())
        return {**found, "build_cache_bytes": await asyncio.to_thread(self._builder.size_bytes)}

    async def image(self, reference: str) -> dict[str, Any]:
        """One image, with the digests that its layers unpack to, as far as its configuration is here and has them."""
        image = await self._images.resolve(reference)
        try:
            _, _, raw_config = await asyncio.to_thread(self._images.parts, image)
            layers = manifest.parse_diff_ids(raw_config, reference)
        except RuntimeFault:
            layers = ()
        return {**image.to_dict(), "layers": list(layers)}

    async def history(self, reference: str) -> list[dict[str, Any]]:
        """The steps that made an image, the last first."""
        image = await self._images.resolve(reference)
        _, parts, raw_config = await asyncio.to_thread(self._images.parts, image)
        return [step.to_dict() for step in manifest.parse_history(raw_config, parts.layers, reference)]

    async def packages(self, reference: str) -> dict[str, Any]:
        """The packages that an image has installed."""
        image = await self._images.resolve(reference)
        return {"digest": image.digest, **(await self._packages.of(image)).to_dict()}

    async def pull(self, body: ReferenceBody, request: Request) -> Streaming:
        """Pull an image, telling of the progress."""
        reached = access_of(body, request)

        async def pull(tell: Callable[[Progress], None]) -> dict[str, Any]:
            # Counted, as a registry that is out of reach is seen by nobody else until something new is needed.
            with self._engine.counts.operation("pull"):
                image = await self._images.pull(body.reference, access=reached, progress=tell)
            self._engine.events.tell(of_image("pull", body.reference, image.digest))
            return {"image": image.to_dict()}

        return progress.answer(f"the pull of {body.reference}", pull)

    async def push(self, body: ReferenceBody, request: Request) -> Streaming:
        """Push an image, telling of the progress."""
        reached = access_of(body, request)

        async def send(tell: Callable[[Progress], None]) -> dict[str, Any]:
            image = await push.push(self._images, body.reference, access=reached, progress=tell)
            self._engine.events.tell(of_image("push", body.reference, image.digest))
            return {"image": image.to_dict()}

        return progress.answer(f"the push of {body.reference}", send)

    async def tag(self, body: TagBody) -> dict[str, Any]:
        """Give an image one more name."""
        image = await self._images.tag(body.source, body.target)
        self._engine.events.tell(of_image("tag", body.target, image.digest))
        return image.to_dict()

    async def save(self, body: SaveBody) -> Streaming:
        """Images as an archive."""
        made = export.Export(self._images, body.format)
        await made.prepare(body.references)
        for name in body.references:
            self._engine.events.tell(of_image("save", name))
        return Streaming(made.stream(), media_type=TAR)

    async def load(self, request: Request) -> Streaming:
        """Take in the images of an archive, which is the body."""
        async with AsyncExitStack() as stack:
            temporary = await stack.enter_async_context(self._images.temporary())
            file = temporary / "archive"
            await load.spool(request.stream(), file, self._images.limits.unpacked_bytes, "archive")

            async def take(tell: Callable[[Progress], None]) -> dict[str, Any]:
                loaded = await load.load(self._images, file, temporary, progress=tell)
                for image in loaded:
                    self._engine.events.tell(of_image("load", image.name, image.digest))
                return {"images": [image.to_dict() for image in loaded]}

            return progress.answer("the load of an archive", take, stack.pop_all())

    async def build(self, request: Request, options: Annotated[str, Query(max_length=32 << 10)] = "{}") -> Streaming:
        """Build an image of the archive that is the body; `options` is a `BuildBody` in JSON."""
        try:
            body = BuildBody.model_validate_json(options)
        except ValidationError as err:
            raise invalid.fault(err.errors(), request.url.path) from err
        reached = access_of(body, request)
        chosen = Options(body.tags, body.args, body.labels, body.target, body.no_cache)
        async with AsyncExitStack() as stack:
            temporary = await stack.enter_async_context(self._images.temporary())
            file = temporary / "archive"
            await load.spool(request.stream(), file, CONTEXT_LIMIT_BYTES, "context")

            async def make(tell: Callable[[Progress], None]) -> dict[str, Any]:
                image = await self._builder.build(file, temporary, chosen, reached, tell)
                self._engine.events.tell(of_image("build", (*body.tags, image.digest)[0], image.digest))
                return {"image": image.to_dict()}

            return progress.answer("the build", make, stack.pop_all())

    async def rebuild(self, body: RebuildBody, request: Request) -> Streaming:
        """Build an image of this host again from what it was built from, on what its bases are by now."""
        reached = access_of(body, request)
        async with AsyncExitStack() as stack:
            temporary = await stack.enter_async_context(self._images.temporary())
            before = await self._images.resolve(body.reference)

            async def make(tell: Callable[[Progress], None]) -> dict[str, Any]:
                image = await self._builder.rebuild(
                    before, temporary, reached, tell, no_cache=body.no_cache, unnamed=body.unnamed
                )
                changed = image.digest != before.digest
                if changed:
                    self._engine.events.tell(of_image("build", image.name, image.digest))
                return {"image": image.to_dict(), "changed": changed}

            return progress.answer(f"the rebuild of {body.reference}", make, stack.pop_all())

    async def prune(self, body: PruneBody) -> dict[str, Any]:
        """Remove images that no container uses, and what builds have kept if all are to go."""
        pruned = await self._images.prune(self._engine.images_in_use, everything=body.all)
        removed = {**self._told(pruned), "failed": list(pruned.failed)}
        if body.all:
            removed["freed_bytes"] += await self._builder.prune()
        return removed

    async def untag(self, reference: str, *, force: bool = False) -> dict[str, Any]:
        """Take a name from an image."""
        return self._told(await self._images.untag(reference, self._engine.images_in_use, force=force))

    def _told(self, removed: Removed) -> dict[str, Any]:
        """Tell of what was removed."""
        for name in removed.untagged:
            self._engine.events.tell(of_image("untag", name))
        for digest in removed.deleted:
            self._engine.events.tell(of_image("delete", digest, digest))
        return removed.to_dict()

    async def search(self, body: SearchBody, request: Request) -> list[dict[str, Any]]:
        """Repositories by a part of their name."""
        from runtime.images import distribution  # here: few need it, and its HTTP client takes long to import

        reached = access_of(body, request)
        registry = body.term.partition("/")[0]
        verify = self._verify(registry, reached) if "/" in body.term else True
        return await distribution.search(body.term, body.limit, reached, tls_verify=verify)

    async def login(self, body: LoginBody, request: Request) -> None:
        """Try credentials. They are not kept."""
        from runtime.images import distribution  # here: few need it, and its HTTP client takes long to import

        reached = access_of(body, request)
        login = reached.logins.get(body.registry)
        if login is None:
            raise InvalidInput(f"it has no credentials for {body.registry}", field=access.HEADER)
        verify = self._verify(body.registry, reached)
        await distribution.check_login(body.registry, login, reached, tls_verify=verify)

    def _verify(self, registry: str, reached: Access) -> bool:
        wanted = reference.parse(f"{registry}/x")
        if wanted.registry != registry:
            raise InvalidInput(f"{registry!r} is not a registry; write host or host:port", field="registry")
        return self._images.tls_verify(wanted, reached)


def access_of(body: RegistryBody, request: Request) -> Access:
    """How a request wants registries to be reached.

    Raises:
        InvalidInput: the header of credentials, or the directory of certificates, is wrong.
    """
    cert_dir = Path(body.cert_dir) if body.cert_dir else None
    if cert_dir is not None and not (cert_dir.is_absolute() and cert_dir.is_dir()):
        raise InvalidInput(f"{body.cert_dir} is not a directory, given from the root", field="cert_dir")
    return Access(body.tls_verify, cert_dir, access.parse_header(request.headers.get(access.HEADER)))
