"""A container's files, from outside: in and out as tar, what it has changed, and an image of that.

The guest does it, whether the container runs or not: a stopped one gets a VM that runs nothing of it. Nothing of a
guest's file system is ever mounted on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING

from runtime.errors import CommandNotFound, Conflict, DiskFull, GuestFailed, InvalidInput, NotFound
from runtime.vm.streams import STDERR, Exit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence

    from runtime.engine import Engine
    from runtime.life import Container
    from runtime.vm.agent import Agent
    from runtime.vm.streams import Streams

KINDS = {"A": "added", "C": "changed", "D": "deleted"}
COMMIT_HOLD_S = 600
_FREEZE_TIMEOUT_S = 60.0
_ERROR_BYTES = 2000
_CHANGES_BYTES = 16 << 20
_MAX_CHANGES = 100_000  # a guest may send paths of one byte: what they become takes two hundred times as much
_SILENCE_S = 60.0
# What the agent makes so that it can mount there; empty files and directories, none of the container's own.
_STUBS = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys", "dev")


@contextlib.asynccontextmanager
async def guest(engine: Engine, container: Container, path: str | None = None) -> AsyncIterator[tuple[Agent, Streams]]:
    """The guest that has the container's files: its own, or one started for this.

    `path` is what is asked for: volumes are not attached to a container that does not run.

    Raises:
        Conflict: it is paused, starting or stopping; or the path is in a volume and it does not run.
        DiskFull: QEMU has stopped it.
    """
    name = container.record.name
    if container.state == "running" and container.agent is not None and container.streams is not None:
        container.demand_going()
        try:
            yield container.agent, container.streams
        except GuestFailed:
            container.demand_going()  # that is why
            raise
        return
    if container.live:
        raise Conflict(f"the container {name} is {container.state}: its files cannot be had now", field="container")
    if path is not None:
        for mount in container.spec.volumes:
            if f"{path.rstrip('/')}/".startswith(f"{mount.target}/"):
                if mount.of_host:
                    there = f"{mount.source}{path.rstrip('/').removeprefix(mount.target)}"
                    raise Conflict(
                        f"{path} is {there} on this host, and {name} does not run: take that, or start it first",
                        field="path",
                    )
                raise Conflict(f"{path} is in a volume, and {name} does not run: start it first", field="path")
    async with container.lock:
        if container.live:
            raise Conflict(f"the container {name} has just been started: try again", field="container")
        image = await engine.images.resolve(container.record.image_digest)
        async with engine.starter.idle(container, image) as reached:
            yield reached


async def get(engine: Engine, container: Container, path: str) -> AsyncIterator[bytes]:
    """A file or directory as a tar archive, its own name as the first. Raises before it returns if there is none.

    Raises:
        NotFound: there is no such file.
        InvalidInput: the path is not absolute.
        Conflict: as `guest`. The iterator raises GuestFailed where the archive breaks off.
    """
    _absolute(path)
    stack = contextlib.AsyncExitStack()
    try:
        agent, streams = await stack.enter_async_context(guest(engine, container, path))
        session = await stack.enter_async_context(_session(agent, streams, "get", path))
    except BaseException:
        await stack.aclose()
        raise

    async def pieces() -> AsyncIterator[bytes]:
        async with stack, contextlib.aclosing(_output(streams, session)) as output:
            async for piece in output:
                yield piece

    return pieces()


async def put(engine: Engine, container: Container, path: str, archive: AsyncIterable[bytes]) -> None:
    """Unpack a tar archive in a directory of the container.

    Raises:
        NotFound: there is no such directory.
        InvalidInput: the archive is not right, leaves the directory, or does not fit; what went before it is there.
        Conflict: as `guest`.
    """
    _absolute(path)
    async with (
        guest(engine, container, path) as (agent, streams),
        _session(agent, streams, "put", path) as session,
    ):
        async for chunk in archive:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await streams.write(session, chunk)
            except TimeoutError as err:
                raise GuestFailed(f"the guest took nothing for {_SILENCE_S:g} s") from err
            except GuestFailed:  # it has ended: its output says why
                break
        streams.end_input(session)
        try:
            async for _ in _output(streams, session):
                pass
        except GuestFailed as err:
            raise InvalidInput(f"{path}: {err.message}", field="path") from err


async def changes(engine: Engine, container: Container) -> list[dict[str, str]]:
    """What the container's files have beside its image's, by path.

    Raises:
        Conflict, GuestFailed: as `guest`; or there are too many.
    """
    data = bytearray()
    async with (
        guest(engine, container) as (agent, streams),
        _session(agent, streams, "changes", "/", exclude=stubs(container)) as session,
    ):
        async for piece in _output(streams, session):
            data += piece
            if len(data) > _CHANGES_BYTES:
                raise GuestFailed(f"the changes take more than {_CHANGES_BYTES} bytes to list")
    if data.count(0) > _MAX_CHANGES:
        raise GuestFailed(f"there are more than {_MAX_CHANGES} changes to list")
    found = []
    for entry in bytes(data).decode(errors="replace").split("\0")[:-1]:
        if entry[:1] not in KINDS:
            raise GuestFailed("the guest told changes of a kind that there is not")
        found.append({"kind": KINDS[entry[0]], "path": entry[1:]})
    return sorted(found, key=lambda one: one["path"])


@contextlib.asynccontextmanager
async def layer(engine: Engine, container: Container, *, still: bool) -> AsyncIterator[AsyncIterator[bytes]]:
    """The container's writable layer as an OCI layer (tar); `still`: nothing is written while it is read.

    Raises:
        Conflict, GuestFailed: as `guest`; at the end, if it was not held still long enough.
    """
    async with guest(engine, container) as (agent, streams):
        frozen = still and container.live
        device = container.record.guest.writable_device
        if frozen:
            await agent.call("hyper-freeze", _FREEZE_TIMEOUT_S, device=device, hold_s=COMMIT_HOLD_S)
        try:
            async with (
                _session(agent, streams, "layer", "/", exclude=stubs(container)) as session,
                contextlib.aclosing(_output(streams, session)) as output,
            ):
                yield output
        except BaseException:
            if frozen:
                with contextlib.suppress(GuestFailed, DiskFull):
                    container.demand_going()  # one that stands still thaws by itself, some time after
                    await agent.call("hyper-thaw")
            raise
        if frozen:
            await agent.call("hyper-thaw")


def stubs(container: Container) -> list[str]:
    """Paths at which something is mounted, without their leading slash."""
    spec = container.spec
    places = [mount.target for mount in spec.volumes] + [one.path for one in spec.tmpfs]
    return [*_STUBS, *(place.strip("/") for place in places)]


def _absolute(path: str) -> None:
    if not path.startswith("/") or "\0" in path or len(path) > 4000:
        raise InvalidInput(f"{path[:80]!r} is not an absolute path", field="path")


@contextlib.asynccontextmanager
async def _session(
    agent: Agent, streams: Streams, kind: str, path: str, exclude: Sequence[str] = ()
) -> AsyncIterator[int]:
    """A process of the guest that archives. However it is left: one that has not ended gets no more input, and ends."""
    session = secrets.randbelow(2**31 - 1) + 1
    await streams.open(session)
    try:
        try:
            await agent.call("hyper-archive", session=session, kind=kind, path=path, exclude=list(exclude))
        except CommandNotFound as err:
            raise NotFound(f"in the container: {err.message}", field="path") from err
        yield session
    finally:
        streams.drop(session)


async def _output(streams: Streams, session: int) -> AsyncGenerator[bytes]:
    """What a session writes to stdout; at its end GuestFailed, if it ended with an error, with what it said.

    Also if it says nothing for a minute: whoever waits may hold the container's lock.
    """
    said = b""
    async with contextlib.aclosing(streams.batches(session)) as batches:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    batch = await anext(batches)
            except StopAsyncIteration:
                return
            except TimeoutError as err:
                raise GuestFailed(f"the guest sent nothing for {_SILENCE_S:g} s") from err
            for event in batch:
                if isinstance(event, Exit):
                    if event.exit_code != 0:
                        raise GuestFailed(said.decode(errors="replace").strip() or "the guest broke off")
                elif event.stream == STDERR:
                    said = (said + event.data)[-_ERROR_BYTES:]
                else:
                    yield event.data
