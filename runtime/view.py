"""A container as the API shows it (`docs/reference/api.md`, "A container")."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.images.image import Image
    from runtime.life import Container
    from runtime.record import Lifecycle

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def container(one: Container, command: list[str]) -> dict[str, Any]:
    """The whole of it, with `command` as its command line."""
    record = one.record
    lifecycle = asdict(record.lifecycle)
    return {
        "id": record.id,
        "name": record.name,
        "image": record.image,
        "image_digest": record.image_digest,
        "revision": record.revision,
        "quarantine": asdict(record.quarantine) if record.quarantine else None,
        "args": command,
        "status": status(record.lifecycle, time.time(), halted=one.halted_at is not None),
        "halted": {"since": one.halted_at, "reason": "disk full"} if one.halted_at is not None else None,
        "restart": one.spec.restart.model_dump(),
        **lifecycle,
        "labels": dict(record.labels),
        "tenant": record.tenant,
        "project": record.project,
        "limits": asdict(record.limits),
        "network": asdict(record.network) if record.network else None,
        "vm": asdict(record.vm) if record.vm else None,
        "cgroups": asdict(record.cgroups),
        "start_phases": dict(record.start_phases),
        "spec": one.spec.model_dump(mode="json"),
        "auto_remove": one.spec.auto_remove,
        "failing_streak": one.failing_streak,
        "checks": [asdict(check) for check in one.checks],
    }


def sizes(one: Container, image: Image) -> dict[str, int]:
    """Bytes on the host's disks: of the writable layer, and with the image's file, which it shares."""
    try:
        own = (one.data_directory / "writable.ext4").stat().st_blocks * 512
    except FileNotFoundError:
        own = 0
    return {"size_bytes": own, "size_root_bytes": own + image.size_bytes}


def status(lifecycle: Lifecycle, now: float, *, halted: bool = False) -> str:
    """The state in Docker's words: `Up 3 minutes`, `Exited (3) 2 hours ago`. `halted`: by QEMU, for want of room."""
    state = lifecycle.state
    if state in {"running", "paused", "stopping"} and lifecycle.started_at:
        words = f"Up {duration(now - lifecycle.started_at)}"
        if lifecycle.health != "none":
            words += " (health: starting)" if lifecycle.health == "starting" else f" ({lifecycle.health})"
        if halted and state == "running":
            return f"{words} (stopped: disk full)"
        return words + {"paused": " (Paused)", "stopping": " (Stopping)"}.get(state, "")
    if state == "exited" and lifecycle.finished_at:
        if lifecycle.retry_at is not None:
            return f"Restarting ({lifecycle.exit_code}) {duration(now - lifecycle.finished_at)} ago"
        return f"Exited ({lifecycle.exit_code}) {duration(now - lifecycle.finished_at)} ago"
    return state.capitalize()


def duration(seconds: float) -> str:
    """A length of time as Docker says it: the largest unit that fits."""
    if seconds < 1:
        return "Less than a second"
    if seconds < _MINUTE_S:
        return _plural(int(seconds), "second")
    if seconds < 2 * _MINUTE_S:
        return "About a minute"
    if seconds < _HOUR_S:
        return _plural(int(seconds // _MINUTE_S), "minute")
    if seconds < 2 * _HOUR_S:
        return "About an hour"
    if seconds < 2 * _DAY_S:
        return _plural(int(seconds // _HOUR_S), "hour")
    return _plural(int(seconds // _DAY_S), "day")


def _plural(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")
