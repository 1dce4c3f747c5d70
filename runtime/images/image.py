"""What an image is to the rest of the runtime, and what a pull tells of its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Status = Literal[
    "resolving",
    "waiting",
    "downloading",
    "downloaded",
    "uploading",
    "reading",
    "building",
    "checking",
    "unpacking",
    "writing",
    "done",
]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of the OCI image configuration that says how to run it (image-spec, `config.md`)."""

    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    healthcheck: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """In the names of the OCI configuration, as the API has it."""
        return {
            "Env": list(self.env),
            "Cmd": list(self.cmd),
            "Entrypoint": list(self.entrypoint),
            "User": self.user,
            "WorkingDir": self.working_dir,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "StopSignal": self.stop_signal,
            "Labels": dict(self.labels),
            "Healthcheck": None if self.healthcheck is None else dict(self.healthcheck),
        }


@dataclass(frozen=True, slots=True)
class Image:
    """One image on this host.

    `digest` is that of its platform's manifest; `created_at` is None if the image does not say. `size_bytes` is that of
    the image file, `blobs_bytes` that of manifest, configuration and layers as the registry has them, of which other
    images have `shared_bytes` as well. `build` is what it was built from, if it was built here.
    """

    digest: str
    references: tuple[str, ...]
    created_at: float | None
    pulled_at: float
    size_bytes: int
    file: Path
    config: ImageConfig
    blobs_bytes: int = 0
    shared_bytes: int = 0
    build: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """One of its references; its digest if it has none."""
        return (*self.references, self.digest)[0]

    def to_dict(self) -> dict[str, Any]:
        """As the API has it (`docs/reference/api.md`, "An image")."""
        return {
            "digest": self.digest,
            "references": list(self.references),
            "created_at": self.created_at,
            "pulled_at": self.pulled_at,
            "size_bytes": self.size_bytes,
            "blobs_bytes": self.blobs_bytes,
            "shared_bytes": self.shared_bytes,
            "unique_bytes": self.size_bytes + self.blobs_bytes - self.shared_bytes,
            "file": str(self.file),
            "build": None if self.build is None else dict(self.build),
            "config": self.config.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a pull, a push, a load or a build.

    `current` and `total` are bytes of the whole image, or of `layer` (a digest) where one is named. `text` is what a
    build prints.
    """

    status: Status
    layer: str | None = None
    current: int | None = None
    total: int | None = None
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a line of the API's answer."""
        told = {"status": self.status, "layer": self.layer, "current": self.current, "total": self.total}
        return told if self.text is None else {**told, "text": self.text}
