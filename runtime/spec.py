"""What a container is asked to be: the body of `POST /v1/containers`, kept as it was given."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

NAME_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$"
MIN_MEMORY_BYTES = 16 * 1024**2
MAX_MEMORY_BYTES = 1 << 40

Text = Annotated[str, Field(max_length=65536)]


class PortSpec(BaseModel):
    """One port to publish."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host_ip: str = "0.0.0.0"  # noqa: S104 -- Docker's habit: all addresses of the host unless one is named
    host_port: int = Field(0, ge=0, le=65535)
    container_port: int = Field(ge=1, le=65535)
    protocol: Literal["tcp", "udp"] = "tcp"

    @field_validator("host_ip")
    @classmethod
    def _ipv4(cls, value: str) -> str:
        return str(ipaddress.IPv4Address(value))


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
    labels: dict[str, Text] = Field(default_factory=dict)
    tenant: str = Field("default", pattern=NAME_PATTERN)
    project: str | None = Field(None, pattern=NAME_PATTERN)
    hostname: str | None = Field(None, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62})$")
    ports: tuple[PortSpec, ...] = Field((), max_length=1024)
    memory_bytes: int | None = Field(None, ge=MIN_MEMORY_BYTES, le=MAX_MEMORY_BYTES)
    cpus: float | None = Field(None, gt=0, le=16)
    auto_remove: bool = False
    stop_signal: str | None = Field(None, max_length=16)
    stop_timeout_s: float | None = Field(None, ge=0, le=86400)

    @field_validator("env")
    @classmethod
    def _assignments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.match(r"[^=\0]+=", entry):
                raise ValueError(f"{entry[:80]!r} is not NAME=VALUE")
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
