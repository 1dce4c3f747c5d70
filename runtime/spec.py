"""What a container is asked to be: the body of `POST /v1/containers`, kept as it was given."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"
NAME_LENGTH = 128
MIN_MEMORY_BYTES = 16 * 1024**2
MAX_MEMORY_BYTES = 1 << 40
MAX_CPUS = 16
MAX_HOST_DIRECTORIES = 32

KEPT = "kept"
"""The context in which a specification is validated that was taken before, perhaps by an older hyperd."""

# With a bound it must be UTF-8 as well: without one pydantic takes half a character (a lone surrogate) of a request.
Text = Annotated[str, Field(max_length=65536)]

# The sizes of the talk's cloud: cores, memory in MB; each with a disk of 10 GB.
SIZES: Mapping[str, tuple[int, int]] = {
    "S1": (1, 64),
    "S2": (1, 128),
    "S3": (1, 256),
    "S4": (1, 512),
    "M1": (2, 1024),
    "M2": (2, 2048),
    "M3": (2, 4096),
    "L1": (4, 4096),
    "L2": (4, 8192),
    "L3": (8, 16384),
}
SIZE_DISK_BYTES = 10 * 1024**3
_TMPFS_OPTION = re.compile(
    r"(rw|ro|(no)?(exec|suid|atime|diratime)|nodev|relatime|sync|size=[0-9]+[kmgKMG%]?|nr_inodes=[0-9]+[kmgKMG]?"
    r"|mode=[0-7]{3,4}|uid=[0-9]+|gid=[0-9]+)"
)


class PortSpec(BaseModel):
    """One port to publish; with `host_port_last` on the first port from `host_port` on that is free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host_ip: str = "0.0.0.0"  # noqa: S104 -- Docker's habit: all addresses of the host unless one is named
    host_port: int = Field(0, ge=0, le=65535)
    # Only of a request: a container that is there has its port.
    host_port_last: int | None = Field(None, ge=1, le=65535, exclude=True)
    container_port: int = Field(ge=1, le=65535)
    protocol: Literal["tcp", "udp"] = "tcp"

    @field_validator("host_ip")
    @classmethod
    def _ipv4(cls, value: str) -> str:
        return str(ipaddress.IPv4Address(value))

    @model_validator(mode="after")
    def _range_goes_forward(self) -> Self:
        if self.host_port_last is not None and not 0 < self.host_port <= self.host_port_last:
            raise ValueError(f"host_port_last {self.host_port_last} is not above host_port {self.host_port}")
        return self


class RestartSpec(BaseModel):
    """When a container whose process has ended is started again (`runtime.restarts`); 0 retries: no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    max_retries: int = Field(0, ge=0, le=10**6)

    @model_validator(mode="after")
    def _only_failures_are_counted(self) -> Self:
        if self.max_retries and self.policy != "on-failure":
            raise ValueError(f"max_retries goes with on-failure alone, not with {self.policy}")
        return self


class HealthSpec(BaseModel):
    """How to find out whether a container is well; what is null is the image's, then Docker's default.

    `test` is as in an image: `["CMD", program, …]`, `["CMD-SHELL", line]`, or `["NONE"]` for no check.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: tuple[Text, ...] | None = Field(None, max_length=4096)
    interval_s: float | None = Field(None, ge=0.001, le=86400)
    timeout_s: float | None = Field(None, ge=0.001, le=86400)
    start_period_s: float | None = Field(None, ge=0, le=86400)
    retries: int | None = Field(None, ge=1, le=10**6)

    @field_validator("test")
    @classmethod
    def _known_form(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return value
        if value == ("CMD-SHELL", ""):  # `--health-cmd ""` is none in Docker
            return None
        kind, *words = value or ("",)
        right = {"NONE": not words, "CMD": bool(words), "CMD-SHELL": len(words) == 1}.get(kind, False)
        if not right or any("\0" in word for word in words):
            raise ValueError('write ["CMD", program, …], ["CMD-SHELL", line] or ["NONE"]')
        return value


class TmpfsSpec(BaseModel):
    """A file system in memory to mount; `options` are those of mount(8), with commas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(max_length=1024)
    options: str = Field("", max_length=512)

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value or ".." in value.split("/") or not value.strip("/"):
            raise ValueError(f"{value[:80]!r} is not an absolute path below /")
        return value

    @field_validator("options")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        for option in value.split(",") if value else ():
            if option == "dev" and info.context == KEPT:
                continue  # was taken once: such a container cannot start, but hyperd must come up with it
            if not _TMPFS_OPTION.fullmatch(option):
                raise ValueError(
                    f"there is no tmpfs option {option[:40]!r}; use size=64m, mode=1777, exec, ro and such"
                )
        return value


class VolumeSpec(BaseModel):
    """A volume, or a directory or file of the host, at a path of the container.

    `source` is a volume's name, null for one of its own, or an absolute path of the host. A new volume gets what the
    image has at `target`, unless `nocopy`. A path of the host that is not there is made as a directory if `create`.
    `generated` is no choice of the caller's: whether the name was made for this container, null if that was not noted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = Field(None, max_length=4096)
    target: str = Field(max_length=1024)
    read_only: bool = False
    nocopy: bool = False
    create: bool = True
    generated: bool | None = None

    @property
    def of_host(self) -> bool:
        """Whether the source is a path of the host."""
        return self.source is not None and self.source.startswith("/")

    @field_validator("source")
    @classmethod
    def _a_name_or_a_path(cls, value: str | None) -> str | None:
        if value is None or re.match(NAME_PATTERN, value):
            return value
        if "/" not in value:
            raise ValueError(f"{value[:80]!r} is no volume name: letters, digits, '_', '.' and '-'")
        if not value.startswith("/") or "\0" in value:
            raise ValueError(f"{value[:80]!r} is no absolute path of the host, and no volume name")
        return "/" + posixpath.normpath(value).lstrip("/")

    @model_validator(mode="after")
    def _nothing_is_copied_to_the_host(self) -> Self:
        if self.of_host and self.nocopy:
            raise ValueError("nocopy goes with volumes alone: nothing is ever copied into a host directory")
        return self

    @field_validator("target")
    @classmethod
    def _in_the_container(cls, value: str) -> str:
        parts = [part for part in value.split("/") if part not in ("", ".")]
        outside = not value.startswith("/") or "\0" in value or ".." in parts
        if outside or not parts or parts[0] in ("proc", "sys", "dev"):
            raise ValueError(f"{value[:80]!r} is not an absolute path below / and outside /proc, /sys and /dev")
        return "/" + "/".join(parts)


class Spec(BaseModel):
    """A container to create; `docs/reference/api.md` says what each member means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(min_length=1, max_length=512)
    name: str | None = Field(None, pattern=NAME_PATTERN)
    args: tuple[Text, ...] | None = Field(None, max_length=4096)
    entrypoint: tuple[Text, ...] | None = Field(None, max_length=4096)
    env: tuple[Text, ...] = Field((), max_length=4096)
    cwd: Text | None = None
    user: str | None = Field(None, max_length=256)
    tty: bool = False
    stdin: bool = False
    init: bool = False
    terminal_size: tuple[Annotated[int, Field(ge=1, le=65535)], Annotated[int, Field(ge=1, le=65535)]] | None = None
    labels: dict[Text, Text] = Field(default_factory=dict)
    tenant: str = Field("default", pattern=NAME_PATTERN)
    project: str | None = Field(None, pattern=NAME_PATTERN)
    hostname: str | None = Field(None, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62})$")
    ports: tuple[PortSpec, ...] = Field((), max_length=1024)
    memory_bytes: int | None = Field(None, ge=MIN_MEMORY_BYTES, le=MAX_MEMORY_BYTES)
    cpus: float | None = Field(None, gt=0, le=MAX_CPUS)
    auto_remove: bool = False
    removed_by: Literal["daemon", "client"] = "daemon"
    stop_signal: str | None = Field(None, max_length=16)
    stop_timeout_s: float | None = Field(None, ge=0, le=86400)
    restart: RestartSpec = RestartSpec()
    size: Literal["S1", "S2", "S3", "S4", "M1", "M2", "M3", "L1", "L2", "L3"] | None = None
    read_only: bool = False
    tmpfs: tuple[TmpfsSpec, ...] = Field((), max_length=32)
    health: HealthSpec | None = None
    volumes: tuple[VolumeSpec, ...] = Field((), max_length=2 + MAX_HOST_DIRECTORIES)

    @property
    def removes_itself(self) -> bool:
        """Whether the daemon removes it when it ends; a client that shows its output does that after the last of it."""
        return self.auto_remove and self.removed_by == "daemon"

    @property
    def disks(self) -> tuple[VolumeSpec, ...]:
        """The volumes, in the order of the guest's devices."""
        return tuple(mount for mount in self.volumes if not mount.of_host)

    @property
    def host_directories(self) -> tuple[VolumeSpec, ...]:
        """Directories and files of the host."""
        return tuple(mount for mount in self.volumes if mount.of_host)

    @field_validator("volumes")
    @classmethod
    def _places_differ(cls, value: tuple[VolumeSpec, ...]) -> tuple[VolumeSpec, ...]:
        targets = [mount.target for mount in value]
        twice = next((target for target in targets if targets.count(target) > 1), None)
        if twice:
            raise ValueError(f"two volumes at {twice}: give each a place of its own")
        if sum(mount.of_host for mount in value) > MAX_HOST_DIRECTORIES:
            raise ValueError(f"more than {MAX_HOST_DIRECTORIES} host directories: name one that has them all")
        return tuple(sorted(value, key=lambda mount: mount.target.count("/")))

    @model_validator(mode="after")
    def _removed_or_restarted(self) -> Self:
        if self.auto_remove and self.restart.policy != "no":
            raise ValueError("auto_remove (--rm) and restart (--restart) exclude each other: leave one of them out")
        return self

    @field_validator("env")
    @classmethod
    def _assignments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.match(r"[^=\0]+(=|$)", entry):
                raise ValueError(f"{entry[:80]!r} is neither NAME=VALUE nor a NAME to take away")
        return value

    @field_validator("args", "entrypoint")
    @classmethod
    def _no_nul(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and any("\0" in word for word in value):
            raise ValueError("a word holds a NUL character")
        return value


class ExecSpec(BaseModel):
    """A command to run in a container that runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    args: tuple[Text, ...] = Field(min_length=1, max_length=4096)
    env: tuple[Text, ...] = Field((), max_length=4096)
    cwd: Text | None = None
    user: str | None = Field(None, max_length=256)
    tty: bool = False
    stdin: bool = False
    rows: int = Field(24, ge=1, le=65535)
    cols: int = Field(80, ge=1, le=65535)
