"""The record of a container in the state directory: `containers/<id>/container.json`, schema 1.

This file is the contract between whoever launches a VM and the collector; `docs/reference/state-directory.md`
describes it. A record is immutable: the runtime writes a new one over the old one, atomically.

Raises:
    RecordError: the file is not a record, or its schema is not known.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")

SCHEMA = 1
FILE_NAME = "container.json"
MAX_RECORD_BYTES = 1 << 20

State = Literal["created", "starting", "running", "paused", "stopping", "exited", "dead", "removing"]
Desired = Literal["running", "stopped"]
Health = Literal["none", "starting", "healthy", "unhealthy"]
StartPath = Literal["cold", "template", "pool"]

STATES: tuple[State, ...] = get_args(State)
LIVE_STATES: frozenset[State] = frozenset({"starting", "running", "paused", "stopping"})

PULL = "pull"
HEALTHY = "healthy"
PHASES_BESIDE: frozenset[str] = frozenset({PULL, "listen", HEALTHY})
"""Phases that are no part of how long the start itself took: before it, or from the end of `exec` on."""


class RecordError(ValueError):
    """A `container.json` that is not a record of a schema this program knows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the container may use. `cpu_quota` is in CPUs (1.5 = one and a half), None = all its vCPUs."""

    memory_bytes: int
    vcpus: int
    cpu_quota: float | None = None
    disk_bytes: int = 10 * 1024**3


@dataclass(frozen=True, slots=True)
class Vm:
    """The QEMU process; valid only while field 22 of `/proc/<pid>/stat` equals `pid_start_ticks`."""

    pid: int
    pid_start_ticks: int
    ram_bytes: int
    vcpus: int
    accel: Literal["tcg", "kvm"]
    machine: str
    uid: int
    kernel: str
    start_path: StartPath
    start_path_reason: str | None = None
    image_ready: bool = False  # it was mounted in the VM before the container was known
    cpu_quota: float | None = None  # what the guest itself was given at its start; the host's may be lower by now


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Absolute directories of the VM's host cgroups; `v1` maps a controller's name to its directory."""

    v2: str | None = None
    v1: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """One published port."""

    host_ip: str
    host_port: int
    container_port: int
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True, slots=True)
class Network:
    """The VM's tap and address."""

    tap: str
    bridge: str
    address: str
    mac: str
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Sockets:
    """Names of the statistics sockets, relative to the record's directory."""

    qmp_stats: str = "qmp-stats.sock"
    agent_stats: str = "agent-stats.sock"


@dataclass(frozen=True, slots=True)
class Guest:
    """Where things are inside the guest."""

    cgroup: str = "/sys/fs/cgroup/container"
    interface: str = "eth0"
    writable_device: str | None = "vdb"
    image_device: str = "vda"


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """State, and how it came about. Times are seconds since 1970.

    `epoch` grows by one at every start; `restarts` counts the starts after the first. `retries` counts those that the
    restart policy has made since a user last started it; `retry_at` is when it makes the next one, after
    `retry_delay_s`. `log_start` is where its log had its end, in bytes, when it was last started. `stop_epoch` is the
    epoch in which it got a signal that is to stop it: nothing follows the end of that one, whenever it comes.
    """

    state: State
    desired: Desired
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    error: str | None = None
    restarts: int = 0
    epoch: int = 0
    health: Health = "none"
    retries: int = 0
    retry_delay_s: float = 0.0
    log_start: int = 0
    retry_at: float | None = None
    stop_epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Since when, why and by whom a container is kept from working. `ports` are those that were unpublished."""

    since: float
    reason: str
    actor: str
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One container, as the state directory tells it.

    `start_phases` maps a phase of the last start to seconds. Those of `PHASES_BESIDE` are not always there: `pull` if
    the image was pulled for it, and only at the first start; `healthy` once a health check has succeeded.

    `oom_kills` are processes that were killed for want of memory, of all starts that have ended, by what ran out:
    `container`, `guest`, `host`. A layer that nobody has counted is not there.

    `revision` is that of its name: it grows by one at each change of what the name stands for.
    """

    id: str
    name: str
    image: str
    image_digest: str
    limits: Limits
    lifecycle: Lifecycle
    tenant: str = "default"
    project: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    vm: Vm | None = None
    cgroups: Cgroups = field(default_factory=Cgroups)
    network: Network | None = None
    sockets: Sockets = field(default_factory=Sockets)
    guest: Guest = field(default_factory=Guest)
    start_phases: Mapping[str, float] = field(default_factory=dict)
    oom_kills: Mapping[str, int] = field(default_factory=dict)
    revision: int = 0
    quarantine: Quarantine | None = None

    def to_json(self) -> str:
        """The record as one JSON text, with its schema number."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a record; members it does not know are ignored.

        Raises:
            RecordError: not JSON, not of schema 1, or a member is missing or of the wrong shape.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise RecordError(f"not JSON: {err}") from err
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise RecordError(f"schema {SCHEMA} expected")
        try:
            network, quarantine = raw.get("network"), raw.get("quarantine")
            if network is not None:
                network = _build(Network, {**network, "ports": _ports(network)})
            if quarantine is not None:
                quarantine = _build(Quarantine, {**quarantine, "ports": _ports(quarantine)})
            vm = raw.get("vm")
            record = _build(
                cls,
                {
                    **raw,
                    "limits": _build(Limits, raw["limits"]),
                    "lifecycle": _build(Lifecycle, raw["lifecycle"]),
                    "vm": None if vm is None else _build(Vm, vm),
                    "cgroups": _build(Cgroups, raw.get("cgroups") or {}),
                    "network": network,
                    "quarantine": quarantine,
                    "sockets": _build(Sockets, raw.get("sockets") or {}),
                    "guest": _build(Guest, raw.get("guest") or {}),
                },
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise RecordError(f"not a container record: {err}") from err
        if record.lifecycle.state not in STATES:
            raise RecordError(f"unknown state {record.lifecycle.state!r}")
        return record


def _build(kind: type[T], raw: Mapping[str, Any]) -> T:
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # every caller passes a dataclass
    return kind(**{key: value for key, value in raw.items() if key in names})


def _ports(raw: Mapping[str, Any]) -> tuple[Port, ...]:
    return tuple(_build(Port, port) for port in raw.get("ports", ()))


def write(directory: Path, record: Record) -> None:
    """Replace the record in `directory` atomically; a reader sees the old one or the new one.

    Raises:
        OSError: the directory is gone or the disk is full; the old record is then still whole.
    """
    temporary = directory / f".{FILE_NAME}.{os.getpid()}"
    try:
        temporary.write_text(record.to_json())
        temporary.replace(directory / FILE_NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read(directory: Path) -> Record:
    """The record in `directory`.

    Raises:
        FileNotFoundError: there is none (yet, or any more).
        RecordError: it is not one.
    """
    with (directory / FILE_NAME).open("rb") as file:
        text = file.read(MAX_RECORD_BYTES + 1)
    if len(text) > MAX_RECORD_BYTES:
        raise RecordError(f"larger than {MAX_RECORD_BYTES} bytes")
    return Record.from_json(text)
