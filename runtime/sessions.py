"""Commands that are run in a container beside its own process."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from runtime.errors import Conflict

if TYPE_CHECKING:
    from runtime.life import Container
    from runtime.spec import ExecSpec


async def begin(container: Container, spec: ExecSpec) -> int:
    """Start a command; its streams are on `container.streams` under the number returned.

    Raises:
        Conflict: the container does not run, or is paused.
        DiskFull: QEMU has stopped it.
        CommandNotFound, CommandNotExecutable, GuestFailed: the command was not started.
    """
    name = container.record.name
    if container.state == "paused":
        raise Conflict(f"the container {name} is paused: let it go on first (hyper unpause {name})", field="container")
    if container.state != "running" or container.agent is None or container.streams is None:
        raise Conflict(f"the container {name} is not running: start it first (hyper start {name})", field="container")
    container.demand_going()
    session = secrets.randbelow(2**31 - 1) + 1
    streams = container.streams
    await streams.open(session)
    try:
        await container.agent.call("hyper-exec", session=session, **spec.model_dump(mode="json"))
    except BaseException:
        streams.forget(session)
        raise
    return session
