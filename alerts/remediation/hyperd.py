"""The controller's client of hyperd: its REST API over the unix socket (`docs/reference/api.md`).

Makes one attempt a call: when to try again is for those who call to know. A call that changes something carries the
id of the intent that it belongs to as its `request_id`: hyperd carries that out once, however often it is asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation.policy import Container, Revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

READ_TIMEOUT_S = 10.0
REDEPLOY_TIMEOUT_S = 180.0
"""A cold boot without KVM on a busy host takes seconds; this is the end of patience, not an expectation."""
CHANGE_TIMEOUT_S = 300.0
"""A change answers when the new container is ready, has been looked at, and the old one has drained."""
PULL_TIMEOUT_S = 600.0
BUILD_TIMEOUT_S = 2 * 3600.0
ACTOR = "remediation"
MAX_EVENTS = 1000

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_T = TypeVar("_T")


class Rollout(BaseModel):
    """How a change of image or a rollback ended, or how far it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    state: str
    detail: str = ""
    request_id: str | None = None


class Event(BaseModel):
    """What happened to a container."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seq: int
    time_ns: int
    action: str
    id: str
    attributes: dict[str, str]

    @property
    def time_s(self) -> float:
        """Seconds since 1970."""
        return self.time_ns / 1e9


class Evidence(BaseModel):
    """Where evidence was saved to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str


class Build(BaseModel):
    """What an image was built from; `bases` are digests by name, of none where an older hyperd built it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bases: dict[str, str] = Field(default_factory=dict)
    archive_digest: str | None = None
    args: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    target: str | None = None

    def is_of_the_same(self, other: Build) -> bool:
        """Whether both are builds of one thing, on whatever bases and at whatever time."""
        return self.model_copy(update={"bases": {}}) == other.model_copy(update={"bases": {}})


class Image(BaseModel):
    """An image of the host; `build` if it was built there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    references: list[str] = Field(default_factory=list)
    build: Build | None = None

    @property
    def name(self) -> str:
        """What a container is to be changed to."""
        return self.references[0] if self.references else self.digest


class Package(BaseModel):
    """The source package of one that is installed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str
    source_version: str


class Packages(BaseModel):
    """What an image has installed; None is what hyperd cannot say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    distribution: str | None = None
    version: str | None = None
    packages: list[Package] | None = None


_CONTAINERS = TypeAdapter(list[Container])
_REVISIONS = TypeAdapter(list[Revision])
_ROLLOUTS = TypeAdapter(list[Rollout])


class Hyperd:
    """Asks hyperd, and asks it to act.

    Every method raises HyperdAway (no answer, a 5xx, or an answer of another form; with `sent` what was asked for may
    have been done nevertheless) or HyperdRefused (4xx; 404 if there is no such container).
    """

    def __init__(self, socket: Path, *, redeploy_timeout_s: float = REDEPLOY_TIMEOUT_S) -> None:
        self._socket = socket
        self._redeploy_timeout_s = redeploy_timeout_s
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://hyperd", timeout=READ_TIMEOUT_S
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def container(self, ref: str) -> Container:
        """The container named by `ref`."""
        return _read(Container.model_validate_json, await self._call("GET", f"/v1/containers/{ref}"), "container")

    async def containers(self) -> list[Container]:
        """All containers."""
        return _read(_CONTAINERS.validate_json, await self._call("GET", "/v1/containers?all=true"), "list of them")

    async def history(self, ref: str) -> list[Revision]:
        """What the container's name has stood for, newest first."""
        return _read(_REVISIONS.validate_json, await self._call("GET", f"/v1/containers/{ref}/history"), "history")

    async def rollouts(self, ref: str) -> list[Rollout]:
        """Changes of image of the container's name, newest first."""
        return _read(_ROLLOUTS.validate_json, await self._call("GET", f"/v1/containers/{ref}/rollouts"), "rollouts")

    async def events(self, container_id: str, since: float, until: float, actions: Sequence[str]) -> list[Event]:
        """Past events of a container; times are seconds since 1970."""
        query = httpx.QueryParams(
            {"container": container_id, "since": f"{since:.3f}", "until": f"{until:.3f}", "event": list(actions)}
        )
        content = await self._call("GET", f"/v1/events?{query}")
        return [_read(Event.model_validate_json, line, "event") for line in content.splitlines()[:MAX_EVENTS]]

    async def follow(self, actions: Sequence[str]) -> AsyncIterator[Event]:
        """Events of containers as they happen, without an end but that of the connection."""
        query = httpx.QueryParams({"type": "container", "event": list(actions)})
        timeout = httpx.Timeout(READ_TIMEOUT_S, read=None)
        try:
            async with self._client.stream("GET", f"/v1/events?{query}", timeout=timeout) as answer:
                if answer.status_code != 200:
                    raise HyperdRefused(f"hyperd answered {answer.status_code}", status=answer.status_code)
                async for line in answer.aiter_lines():
                    yield _read(Event.model_validate_json, line.encode(), "event")
        except httpx.HTTPError as err:
            raise HyperdAway(f"no events from hyperd: {err or type(err).__name__}", sent=False) from err

    async def restart(self, container_id: str) -> Container:
        """Stop and start a container with its files. Not named by a request: its epoch tells whether it was done."""
        path = f"/v1/containers/{container_id}/restart"
        content = await self._call("POST", path, {}, self._redeploy_timeout_s)
        return _read(Container.model_validate_json, content, "container")

    async def redeploy(self, container_id: str, reason: str, request_id: str) -> Container:
        """Redeploy a container and return it as it is then; a 4xx may come after the redeploy has begun."""
        body = _because(reason, request_id)
        content = await self._call(
            "POST", f"/v1/containers/{container_id}/redeploy", body, self._redeploy_timeout_s
        )  # fmt: skip
        return _read(Container.model_validate_json, content, "container")

    async def rollback(self, ref: str, reason: str, request_id: str) -> Rollout:
        """Go back to the last known good revision of another digest; 409 with `no_known_good` if there is none."""
        body = {"to_digest": None, **_because(reason, request_id)}
        content = await self._call("POST", f"/v1/containers/{ref}/rollback", body, CHANGE_TIMEOUT_S)
        return _read(Rollout.model_validate_json, content, "rollout")

    async def change(
        self,
        ref: str,
        image: str,
        reason: str,
        request_id: str,
        *,
        expected_digest: str | None,
        canary_s: float,
        watch_s: float,
    ) -> Rollout:
        """Change a container's image; answers when the rollout has ended, which is after `watch_s`.

        409 with `digest_moved` if the image has another digest than expected; with None it may be any.
        """
        body = {
            "image": image, "expected_digest": expected_digest, "canary_s": canary_s, "watch_s": watch_s,
            **_because(reason, request_id),
        }  # fmt: skip
        timeout_s = CHANGE_TIMEOUT_S + canary_s + watch_s
        content = await self._call("POST", f"/v1/containers/{ref}/change", body, timeout_s)
        return _read(Rollout.model_validate_json, content, "rollout")

    async def quarantine(self, container_id: str, reason: str, request_id: str) -> Container:
        """Take its ports away, stop it where it stands, keep it."""
        path = f"/v1/containers/{container_id}/quarantine"
        content = await self._call("POST", path, _because(reason, request_id), self._redeploy_timeout_s)
        return _read(Container.model_validate_json, content, "container")

    async def evidence(self, container_id: str, reason: str, request_id: str, samples: str | None) -> Evidence:
        """Save what is to be had of a container, and beside it its last samples."""
        path = f"/v1/containers/{container_id}/evidence"
        body = {"samples": samples, **_because(reason, request_id)}
        content = await self._call("POST", path, body, READ_TIMEOUT_S)
        return _read(Evidence.model_validate_json, content, "evidence")

    async def pull(self, image: str) -> str:
        """Pull an image; the digest that it has then."""
        content = await self._call("POST", "/v1/images/pull", {"reference": image}, PULL_TIMEOUT_S)
        return _built_or_pulled(content, f"pull {image}").digest

    async def rebuild(self, digest: str, *, no_cache: bool) -> Image:
        """Build an image again from what it was built from; its names stay with it.

        Done twice it gives the same image, if nothing is new; not so with `no_cache`.
        """
        body = {"reference": digest, "no_cache": no_cache, "unnamed": True}
        content = await self._call("POST", "/v1/images/rebuild", body, BUILD_TIMEOUT_S)
        return _built_or_pulled(content, f"build {digest} again")

    async def image(self, reference: str) -> Image | None:
        """An image of the host, if it is here."""
        try:
            content = await self._call("GET", f"/v1/images/{reference}")
        except HyperdRefused as err:
            if err.status == 404:
                return None
            raise
        return _read(Image.model_validate_json, content, "image")

    async def packages(self, digest: str) -> Packages:
        """What an image has installed."""
        content = await self._call("GET", f"/v1/packages/{digest}")
        return _read(Packages.model_validate_json, content, "list of packages")

    async def tag(self, digest: str, name: str) -> None:
        """Let an image have a name, which another one may have had."""
        await self._call("POST", "/v1/images/tag", {"source": digest, "target": name})

    async def remove(self, digest: str) -> None:
        """Remove an image that has no name, once no container has it."""
        await self._call("DELETE", f"/v1/images/{digest}")

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = READ_TIMEOUT_S
    ) -> bytes:
        try:
            answer = await self._client.request(method, path, json=body, timeout=timeout_s)
        except _NOT_SENT as err:
            raise HyperdAway(
                f"no connection to hyperd at {self._socket}: {err or type(err).__name__}", sent=False
            ) from err
        except httpx.HTTPError as err:
            raise HyperdAway(f"no answer from hyperd: {err or type(err).__name__}", sent=True) from err
        if answer.status_code >= 500:
            raise HyperdAway(f"hyperd answered {answer.status_code}: {_error(answer, 'message')}", sent=True)
        if answer.status_code >= 300:
            message = f"hyperd answered {answer.status_code}: {_error(answer, 'message')}"
            raise HyperdRefused(message, status=answer.status_code, code=_error(answer, "code"))
        return answer.content


def _built_or_pulled(content: bytes, what: str) -> Image:
    """The image at the end of what hyperd tells of a pull or a build."""
    try:
        last = json.loads(content.splitlines()[-1])
        if "error" in last:
            raise HyperdRefused(f"hyperd cannot {what}: {str(last['error']['message'])[:500]}", status=422)
        return Image.model_validate(last["image"])
    except (ValueError, LookupError, TypeError) as err:
        raise HyperdAway(f"hyperd was to {what}, and its answer is none", sent=True) from err


def _because(reason: str, request_id: str) -> dict[str, str]:
    return {"actor": ACTOR, "reason": reason, "request_id": request_id}


def _read(parse: Callable[[bytes], _T], content: bytes, what: str) -> _T:
    try:
        return parse(content)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HyperdAway(f"hyperd's answer is no {what}: {where}: {first['msg']}", sent=True) from err


def _error(answer: httpx.Response, member: str) -> str:
    """A member of an error answer, or the beginning of whatever came instead."""
    try:
        return str(answer.json()["error"][member])[:500]
    except (ValueError, TypeError, KeyError):
        return answer.text[:200]
