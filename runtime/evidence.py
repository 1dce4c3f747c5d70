"""What a container was like at one moment, saved for whoever looks for the cause later.

`<data_dir>/evidence/<name>-<UTC time>-<id>/`, root's alone; the oldest go when there are too many, or too large ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from runtime import view, workload
from runtime.errors import DiskFull, RuntimeFault
from runtime.logs import STDERR, STDOUT, Decoder
from runtime.vm import monitor

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engine import Engine
    from runtime.life import Container

log = logging.getLogger(__name__)

MAX_DIRECTORIES = 50
MAX_BYTES = 512 * 1024**2
MAX_LOG_BYTES = 1024**2
MAX_EVENTS = 1000
MAX_SAMPLES_CHARS = 4 * 1024**2
LATELY_S = 30.0
_QMP_TIMEOUT_S = 2.0
_LAST_LINES = 5
_LAST_LINES_BYTES = 8192
_COMMANDS = ("query-status", "query-blockstats")


async def save(
    engine: Engine, container: Container, reason: str, actor: str, samples: str | None = None
) -> dict[str, Any]:
    """Save what is to be had of a container, whatever state it is in; QEMU is asked for two seconds at most.

    Args:
        engine: Knows the image and the events.
        container: It may have ended.
        reason: Why it is saved, for people.
        actor: Who wants it.
        samples: What somebody measured of it, as they wrote it; it is kept as `samples.prom`, unread.

    Raises:
        DiskFull: it cannot be written; nothing of it is left.
    """
    now = time.time()
    image = await engine.images.resolve(container.record.image_digest)
    shown = view.container(container, workload.arguments(container.spec, image))
    events = [event.to_dict() for event in engine.store.events_of(container.id, MAX_EVENTS)]
    about = {"time": now, "reason": reason, "actor": actor, "container": container.record.name, "id": container.id}
    texts = {
        "about.json": _json(about),
        "inspect.json": _json(shown),
        "events.json": _json(events),
        "qmp.json": _json(await _qmp(container)),
    }
    if samples is not None:
        texts["samples.prom"] = samples
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}.{time.time_ns() // 1000 % 10**6:06d}Z"
    parent = engine.config.data_dir / "evidence"
    directory = parent / f"{container.record.name}-{stamp}-{container.id[:8]}"
    files = {"log.txt": container.log_path, "console.txt": container.data_directory / "console.log"}
    try:
        await asyncio.to_thread(_write, directory, texts, files)
    except OSError as err:
        shutil.rmtree(directory, ignore_errors=True)
        raise DiskFull(f"the evidence cannot be written to {directory}: {err.strerror}") from err
    await asyncio.to_thread(_forget_oldest, parent, directory)
    return {"path": str(directory), "files": sorted([*texts, *files])}


async def keep(engine: Engine, container: Container, why: str) -> str | None:
    """Save what a container was like before it is thrown away, and never stand in the way of that.

    Returns the directory; None if it never ran, if it was saved a moment ago, or if it cannot be saved.
    """
    if not container.record.lifecycle.epoch or _saved_lately(engine, container):
        return None
    try:
        return str((await save(engine, container, why, "hyperd"))["path"])
    except Exception as err:  # noqa: BLE001 -- what is broken goes, whatever hinders the saving
        log.warning("nothing is kept of %s as it was: %s", container.record.name, err)
        return None


def _saved_lately(engine: Engine, container: Container) -> bool:
    """Whether somebody has just saved it: who asks for a rollback often does so first."""
    directories = (engine.config.data_dir / "evidence").glob(f"*-{container.id[:8]}")
    return any(time.time() - path.stat().st_mtime < LATELY_S for path in directories)


def last_lines(path: Path) -> str:
    """The last few lines that a container wrote."""
    text = _output(_tail(path, _LAST_LINES_BYTES)).decode(errors="replace")
    return "\n".join(text.splitlines()[-_LAST_LINES:])


async def _qmp(container: Container) -> dict[str, Any]:
    """What QEMU answers, by command; or why it does not."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(_QMP_TIMEOUT_S), monitor.opened(container.directory) as qmp:
            for command in _COMMANDS:
                found[command] = await qmp.execute(command)
    except TimeoutError:
        found["error"] = f"no answer within {_QMP_TIMEOUT_S:g} s"
    except RuntimeFault as err:
        found["error"] = err.message if container.live else f"there is no VM: it is {container.state}"
    return found


def _write(directory: Path, texts: dict[str, str], files: dict[str, Path]) -> None:
    directory.mkdir(mode=0o700, parents=True)
    directory.parent.chmod(0o700)
    contents = {name: text.encode() for name, text in texts.items()}
    for name, path in files.items():
        tail = _tail(path, MAX_LOG_BYTES)
        contents[name] = _output(tail) if name == "log.txt" else tail
    for name, content in contents.items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def _output(records: bytes) -> bytes:
    """What was written to stdout and stderr, as `hyper logs` prints it."""
    return b"".join(one.payload for one in Decoder().feed(records) if one.kind in (STDOUT, STDERR))


def _tail(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit_bytes))
            return file.read(limit_bytes)
    except OSError:
        return b""


def _forget_oldest(parent: Path, newest: Path) -> None:
    found = sorted(
        (path.stat().st_mtime, path, sum(one.stat().st_size for one in path.iterdir()))
        for path in parent.iterdir()
        if path.is_dir() and path != newest
    )
    total = sum(size for _, _, size in found) + sum(one.stat().st_size for one in newest.iterdir())
    for index, (_, path, size) in enumerate(found):
        if len(found) - index < MAX_DIRECTORIES and total <= MAX_BYTES:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= size


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
