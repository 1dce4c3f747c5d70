"""Manifests, indexes and configurations as a registry gives them: bytes in, checked values out.

Formats: OCI image-spec 1.0 and Docker image manifest v2 schema 2. Everything here is the word of a stranger: sizes
are bounded, and what does not have its digest is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runtime.errors import Upstream, WrongDigest, WrongPlatform
from runtime.images.image import ImageConfig

PLATFORM_OS = "linux"
PLATFORM_ARCHITECTURE = "amd64"

MANIFEST_LIMIT_BYTES = 4 << 20
CONFIG_LIMIT_BYTES = 8 << 20
LAYERS_LIMIT = 500

INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: its digest, and its size in the registry (compressed)."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One platform's image."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """The manifests of several platforms: (os/architecture[/variant], digest)."""

    manifests: tuple[tuple[str, str], ...]

    def choose(self, what: str) -> str:
        """The digest for our platform.

        Raises:
            WrongPlatform: there is none; the message lists those there are.
        """
        for platform, digest in self.manifests:
            if platform.split("/")[:2] == [PLATFORM_OS, PLATFORM_ARCHITECTURE]:
                return digest
        there = (
            ", ".join(sorted({platform for platform, _ in self.manifests if "unknown" not in platform})) or "nothing"
        )
        raise WrongPlatform(
            f"{what} is for {there}; this host needs {PLATFORM_OS}/{PLATFORM_ARCHITECTURE}: choose another tag",
            field="image",
        )


def digest_of(content: bytes) -> str:
    """The digest of content, as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def verify(content: bytes, digest: str, what: str) -> None:
    """Check content against its digest.

    Raises:
        WrongDigest: it has another; both are named.
    """
    actual = digest_of(content)
    if actual != digest:
        raise WrongDigest(f"{what}: the registry answered with content of digest {actual}, not {digest}", field="image")


def parse(content: bytes, what: str) -> Manifest | Index:
    """Read a manifest or an index.

    Raises:
        Upstream: it is neither.
    """
    raw = _object(content, what)
    try:
        if raw.get("schemaVersion") != 2:
            raise Upstream(f"{what}: manifests of schema {raw.get('schemaVersion')!r} are too old to be supported")
        if raw.get("mediaType") in INDEX_TYPES or "manifests" in raw:
            return Index(tuple((_platform(item.get("platform") or {}), _digest(item)) for item in raw["manifests"]))
        layers = tuple(_descriptor(item) for item in raw["layers"])
        manifest = Manifest(_descriptor(raw["config"]), layers)
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        raise Upstream(f"{what}: the manifest is not one: {err}") from err
    if len(layers) > LAYERS_LIMIT:
        raise Upstream(f"{what}: {len(layers)} layers; at most {LAYERS_LIMIT} are taken")
    if not layers:
        raise Upstream(f"{what} has no layers: it is no container image")
    return manifest


def parse_config(content: bytes, what: str) -> tuple[ImageConfig, float | None]:
    """Read a configuration: how to run the image, and when it was made (seconds since 1970, None if it does not say).

    Raises:
        Upstream: it is not a configuration.
        WrongPlatform: it is for another one; the message names it.
    """
    raw = _object(content, what)
    platform = _platform(raw)
    if platform.split("/")[:2] != [PLATFORM_OS, PLATFORM_ARCHITECTURE]:
        raise WrongPlatform(
            f"{what} is for {platform}; this host needs {PLATFORM_OS}/{PLATFORM_ARCHITECTURE}: choose another tag",
            field="image",
        )
    part = raw.get("config") or {}
    try:
        for member, value in part.items():
            _check_whole(member, value)
        config = ImageConfig(
            env=_strings(part, "Env"),
            cmd=_strings(part, "Cmd"),
            entrypoint=_strings(part, "Entrypoint"),
            user=_string(part, "User"),
            working_dir=_string(part, "WorkingDir"),
            exposed_ports=tuple(part.get("ExposedPorts") or {}),
            stop_signal=_string(part, "StopSignal"),
            labels={str(key): str(value) for key, value in (part.get("Labels") or {}).items()},
            healthcheck=_healthcheck(part),
        )
    except (TypeError, AttributeError, ValueError, RecursionError) as err:
        raise Upstream(f"{what}: the image's configuration is wrong: {err}") from err
    return config, parse_time(raw.get("created"))


@dataclass(frozen=True, slots=True)
class Step:
    """One line of an image's history; `size_bytes` is that of its layer in the registry, 0 if it made none."""

    created_at: float | None
    created_by: str
    comment: str
    size_bytes: int
    layer: str | None

    def to_dict(self) -> dict[str, Any]:
        """As the API has it."""
        return {
            "created_at": self.created_at,
            "created_by": self.created_by,
            "comment": self.comment,
            "size_bytes": self.size_bytes,
            "layer": self.layer,
        }


def parse_diff_ids(content: bytes, what: str) -> tuple[str, ...]:
    """The digests that the layers unpack to, as the configuration has them.

    Raises:
        Upstream: it has none.
    """
    rootfs = _object(content, what).get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in found):
        raise Upstream(f"{what}: the image's configuration has no list of digests rootfs.diff_ids")
    return tuple(found)


def parse_history(content: bytes, layers: tuple[Descriptor, ...], what: str) -> tuple[Step, ...]:
    """The steps that made an image, the last first; layers that the history does not tell of are steps as well."""
    left = list(layers)
    steps = []
    history = _object(content, what).get("history")
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, dict):
            continue
        layer = left.pop(0) if left and not entry.get("empty_layer") else None
        steps.append(
            Step(
                parse_time(entry.get("created")),
                str(entry.get("created_by") or ""),
                str(entry.get("comment") or ""),
                layer.size_bytes if layer else 0,
                layer.digest if layer else None,
            )
        )
    steps += [Step(None, "", "", layer.size_bytes, layer.digest) for layer in left]
    return tuple(reversed(steps))


def parse_time(text: object) -> float | None:
    """RFC 3339 with any number of decimals, as Go writes it; None if it is not a time."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(re.sub(r"\.(\d{6})\d+", r".\1", text)).timestamp()
    except (ValueError, OverflowError):
        return None


def _object(content: bytes, what: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise Upstream(f"{what}: the registry's answer is not JSON: {err}") from err
    if not isinstance(raw, dict):
        raise Upstream(f"{what}: the registry's answer is not a JSON object")
    return raw


def _check_whole(member: str, value: object) -> None:
    """Refuse half a character (a lone surrogate): JSON can say one, and UTF-8 cannot, of which answers are made."""
    try:
        json.dumps([member, value], ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"{member[:80]!r} has half a character (a lone surrogate)") from err


def _platform(raw: dict[str, Any]) -> str:
    parts = [str(raw.get("os") or PLATFORM_OS), str(raw.get("architecture") or "unknown")]
    if raw.get("variant"):
        parts.append(str(raw["variant"]))
    return "/".join(parts)


def _digest(raw: dict[str, Any]) -> str:
    if not isinstance(raw["digest"], str) or not _DIGEST.fullmatch(raw["digest"]):
        raise ValueError(f"the digest {raw['digest']!r:.100} is not sha256 and 64 digits")
    return raw["digest"]


def _descriptor(raw: dict[str, Any]) -> Descriptor:
    if not isinstance(raw["size"], int) or raw["size"] < 0:
        raise ValueError(f"the size {raw['size']!r:.100} is not a number of bytes")
    return Descriptor(_digest(raw), raw["size"])


def _string(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key) or ""
    if not isinstance(value, str):
        raise TypeError(f"{key} is not a string")
    return value


def _strings(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{key} is not a list of strings")
    return tuple(value)


def _healthcheck(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The check as it stands, for what is wrong in it is left out later; but flat, as it is shown with the image."""
    value = raw.get("Healthcheck") or None
    if value is None:
        return None
    if not isinstance(value, dict) or any(isinstance(one, dict) for one in value.values()):
        raise TypeError("Healthcheck is not an object of texts and numbers")
    for member in value:
        if isinstance(value[member], list):
            _strings(value, member)
    return value
