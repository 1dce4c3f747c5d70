"""A new image of a container: its writable layer on top of the layers of its image."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import hashlib
import json
import shlex
import shutil
from typing import TYPE_CHECKING, Any

from runtime.errors import Conflict, InvalidInput
from runtime.images import manifest, reference
from runtime.images.store import say_nothing
from runtime.volumes import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from runtime.engine import Engine
    from runtime.images.image import Image
    from runtime.life import Container

_LAYER = "layer.tar"
_INSTRUCTIONS = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, WORKDIR, STOPSIGNAL"


async def commit(
    engine: Engine,
    container: Container,
    name: str | None,
    *,
    own: Mapping[str, Any],
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    pause: bool = True,
) -> Image:
    """Make an image with the configuration that the container has.

    `own` is that of it and its image together, in the names of OCI; `changes` are instructions of a Dockerfile that
    alter it.

    Raises:
        InvalidInput: the name is no reference, or an instruction is not one of those taken.
        Conflict: the image's own layers are not here; or as `files.guest`.
        DiskFull: no space. Nothing is left then.
    """
    names = [str(reference.parse(name))] if name else []
    store = engine.images
    image = await store.resolve(container.record.image_digest)
    content, _, raw_config = store.parts(image)
    config, document = json.loads(raw_config), json.loads(content)
    config["config"] = _changed(_merged(config.get("config") or {}, own), changes)
    async with store.temporary() as temporary:
        diff_id = await _write_layer(engine, container, temporary / _LAYER, store.limits.unpacked_bytes, still=pause)
        packed = temporary / f"{_LAYER}.gz"
        digest = await asyncio.to_thread(_pack, temporary / _LAYER, packed)
        now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        config["rootfs"]["diff_ids"].append(diff_id)
        config["created"] = now
        if author:
            config["author"] = author
        step = {"created": now, "created_by": f"hyper commit {container.record.name}", "comment": message}
        config.setdefault("history", []).append({**step, **({"author": author} if author else {})})
        is_docker = "docker" in str(document.get("mediaType", ""))
        kind = (
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
            if is_docker
            else "application/vnd.oci.image.layer.v1.tar+gzip"
        )
        document["layers"].append({"mediaType": kind, "digest": digest, "size": packed.stat().st_size})
        new_config = json.dumps(config, separators=(",", ":"), sort_keys=True).encode()
        document["config"] = {**document["config"], "digest": manifest.digest_of(new_config), "size": len(new_config)}
        document.pop("annotations", None)  # they say where the image that it was made from came from
        new_content = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        parts = manifest.parse(new_content, "the new image")
        if isinstance(parts, manifest.Index):
            raise Conflict("the image of the container is an index", field="container")
        with store.held(manifest.digest_of(new_content), parts):
            store.blobs.adopt(packed, digest)
            for blob in (new_config, new_content):
                await asyncio.to_thread(store.blobs.put, blob)
            return await store.install(temporary, new_content, new_config, names=names, progress=say_nothing)


async def _write_layer(engine: Engine, container: Container, target: Path, limit_bytes: int, *, still: bool) -> str:
    """Write the layer to a file; its digest."""
    digest, written = hashlib.sha256(), 0
    async with files.layer(engine, container, still=still) as pieces:
        with target.open("wb") as out:
            async for piece in pieces:
                written += len(piece)
                if written > limit_bytes:
                    raise InvalidInput(f"the container has changed more than {limit_bytes} bytes", field="container")
                digest.update(piece)
                out.write(piece)
    return f"sha256:{digest.hexdigest()}"


def _pack(source: Path, target: Path) -> str:
    with (
        source.open("rb") as plain,
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)
    source.unlink()
    with target.open("rb") as written:
        return f"sha256:{hashlib.file_digest(written, 'sha256').hexdigest()}"


def _merged(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The image's configuration with what the container has of it; what is empty there is not in it."""
    kept = {name: value for name, value in config.items() if name not in own}
    return kept | {name: value for name, value in own.items() if value}


def _changed(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The configuration with the instructions carried out."""
    config, given = dict(config), set()
    for text in changes:
        word, _, rest = text.strip().partition(" ")
        word, rest = word.upper(), rest.strip()
        if not rest:
            raise InvalidInput(f"--change {text[:80]!r} has no value", field="changes")
        given.add(word)
        if word in ("CMD", "ENTRYPOINT"):
            config[word.capitalize()] = _words(rest)
        elif word == "ENV":
            pairs = _pairs(text, rest)
            kept = [entry for entry in config.get("Env") or [] if entry.partition("=")[0] not in pairs]
            config["Env"] = [*kept, *(f"{name}={value}" for name, value in pairs.items())]
        elif word == "LABEL":
            config["Labels"] = {**(config.get("Labels") or {}), **_pairs(text, rest)}
        elif word == "EXPOSE":
            ports: dict[str, dict[str, str]] = {port if "/" in port else f"{port}/tcp": {} for port in rest.split()}
            config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **ports}
        elif word in ("USER", "WORKDIR", "STOPSIGNAL"):
            config[{"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}[word]] = rest
        else:
            raise InvalidInput(f"--change {text[:80]!r}: {word} is none of {_INSTRUCTIONS}", field="changes")
    if "ENTRYPOINT" in given and "CMD" not in given:  # it was for the one before
        config.pop("Cmd", None)
    return config


def _pairs(text: str, rest: str) -> dict[str, str]:
    """Names and values as a Dockerfile has them: `A=1 B="x y"`, or `A x y` for one."""
    try:
        words = shlex.split(rest)
    except ValueError as err:
        raise InvalidInput(f"--change {text[:80]!r}: a quotation does not end", field="changes") from err
    if "=" not in words[0] and len(words) > 1:
        words = [f"{words[0]}={' '.join(words[1:])}"]
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise InvalidInput(f"--change {text[:80]!r}: {word[:80]!r} is not NAME=VALUE", field="changes")
        found[name] = value
    return found


def _words(text: str) -> list[str]:
    if not text.startswith("["):
        return ["/bin/sh", "-c", text]
    try:
        words = json.loads(text)
    except ValueError as err:
        raise InvalidInput(
            f'{text[:80]!r} is not a list such as ["nginx", "-g", "daemon off;"]', field="changes"
        ) from err
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidInput(f"{text[:80]!r} is not a list of strings", field="changes")
    return words
