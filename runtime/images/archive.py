"""Read an archive of images, as docker, podman, skopeo, buildah and this runtime write them, into verified blobs.

A program of its own, for the same reasons as `layers.py`: an archive is a stranger's. It is read by its index, never
unpacked by its names. Of an OCI archive every blob must have its digest; an archive of Docker's older form has no
digests for layers, so that a manifest is made for it here, always the same for the same content.

Usage: archive.py ARCHIVE DIRECTORY MAX-BYTES. Writes blobs as DIRECTORY/<hex>, and prints `{"images": [{"manifest",
"names"}]}` or `{"error"}`.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import posixpath
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from runtime.errors import RuntimeFault
from runtime.images import manifest
from runtime.images.layers import GZIP_MAGIC, READ_BYTES, ZSTD, ZSTD_MAGIC, Entry, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS_LIMIT = 20_000
IMAGES_LIMIT = 200
JSON_LIMIT_BYTES = 8 << 20
OCI = "application/vnd.oci.image"


def plain(archive: Path, directory: Path, limit_bytes: int) -> Path:
    """The archive without its compression: itself, or a file in the directory.

    Raises:
        Refused: it is too large.
    """
    with archive.open("rb", buffering=0) as raw:  # zstd goes on where the descriptor is
        magic = raw.read(6)
        raw.seek(0)
        if magic[:2] == GZIP_MAGIC:
            return _unpack(cast("IO[bytes]", gzip.GzipFile(fileobj=raw)), directory, limit_bytes)
        if magic[:3] == b"BZh":
            return _unpack(cast("IO[bytes]", bz2.BZ2File(raw)), directory, limit_bytes)
        if magic == b"\xfd7zXZ\0":
            return _unpack(cast("IO[bytes]", lzma.LZMAFile(raw)), directory, limit_bytes)
        if magic[:4] == ZSTD_MAGIC:
            with subprocess.Popen(ZSTD, stdin=raw, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None  # noqa: S101 -- for the type checker: it was asked for as a pipe
                try:
                    made = _unpack(process.stdout, directory, limit_bytes)
                    if process.wait() != 0:
                        raise Refused("it is not a whole zstd file")
                finally:
                    process.kill()
            return made
    return archive


def _unpack(source: IO[bytes], directory: Path, limit_bytes: int) -> Path:
    target = directory / "archive.tar"
    written = 0
    with target.open("wb") as out:
        while chunk := source.read(READ_BYTES):
            written += len(chunk)
            if written > limit_bytes:
                raise Refused(f"it unpacks to more than {limit_bytes} bytes")
            out.write(chunk)
    return target


class Archive:
    """An uncompressed archive, by the names in it. `directory` is where blobs are written."""

    def __init__(self, tar: tarfile.TarFile, directory: Path) -> None:
        self._tar = tar
        self._directory = directory
        self._members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(tar):
            if number >= MEMBERS_LIMIT:
                raise Refused(f"it has more than {MEMBERS_LIMIT} members")
            self._members[_normal(member.name)] = member

    def images(self) -> list[dict[str, Any]]:
        """All images, their blobs written."""
        listing = self._json("manifest.json") if "manifest.json" in self._members else []
        if not isinstance(listing, list):
            raise Refused("manifest.json is not a list")
        if "index.json" in self._members and "oci-layout" in self._members:
            return self._oci(listing)
        if listing:
            return [self._docker(entry) for entry in listing[:IMAGES_LIMIT]]
        raise Refused("it has neither index.json nor manifest.json: it is no archive of images (docker save, OCI)")

    def _oci(self, listing: list[Any]) -> list[dict[str, Any]]:
        entries = self._json("index.json")["manifests"]
        tags = {f"sha256:{Path(one['Config']).name}": one.get("RepoTags") or [] for one in listing}
        found: dict[str, list[str]] = {}
        for entry in entries[:IMAGES_LIMIT]:
            digest = str(entry["digest"])
            content = self._small_blob(digest)
            parsed = manifest.parse(content, "the archive")
            if isinstance(parsed, manifest.Index):
                digest = parsed.choose("the archive")
                content = self._small_blob(digest)
                parsed = manifest.parse(content, "the archive")
            if isinstance(parsed, manifest.Index):
                raise Refused("an index names another index")
            self._write(content)
            for blob in (parsed.config, *parsed.layers):
                self._blob(f"blobs/sha256/{blob.digest.removeprefix('sha256:')}", blob.digest)
            names = found.setdefault(digest, [])
            names += [*_names(entry.get("annotations") or {}), *tags.get(parsed.config.digest, [])]
        return [{"manifest": digest, "names": sorted(set(names))} for digest, names in found.items()]

    def _docker(self, entry: dict[str, Any]) -> dict[str, Any]:
        config, config_size = self._blob(str(entry["Config"]), None)
        layers = []
        for name in entry["Layers"]:
            layer, size = self._blob(str(name), None)
            with (self._directory / layer.removeprefix("sha256:")).open("rb") as file:
                magic = file.read(4)
            kind = "+gzip" if magic[:2] == GZIP_MAGIC else "+zstd" if magic == ZSTD_MAGIC else ""
            layers.append({"mediaType": f"{OCI}.layer.v1.tar{kind}", "digest": layer, "size": size})
        made = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", "digest": config, "size": config_size},
            "layers": layers,
        }
        content = json.dumps(made, separators=(",", ":")).encode()
        return {"manifest": self._write(content), "names": sorted(set(map(str, entry.get("RepoTags") or [])))}

    def _write(self, content: bytes) -> str:
        digest = manifest.digest_of(content)
        (self._directory / digest.removeprefix("sha256:")).write_bytes(content)
        return digest

    def _blob(self, name: str, digest: str | None) -> tuple[str, int]:
        """Write a member as a blob; its digest and size in bytes."""
        staged = self._directory / "blob"
        hasher = hashlib.sha256()
        size = 0
        with staged.open("wb") as out:
            for chunk in self._content(name):
                hasher.update(chunk)
                size += len(chunk)
                out.write(chunk)
        actual = f"sha256:{hasher.hexdigest()}"
        if digest is not None and actual != digest:
            raise Refused(f"the blob {digest} has the digest {actual}: the archive is damaged")
        staged.rename(self._directory / hasher.hexdigest())
        return actual, size

    def _small_blob(self, digest: str) -> bytes:
        content = self._small(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        if manifest.digest_of(content) != digest:
            raise Refused(f"the manifest {digest} has the digest {manifest.digest_of(content)}: the archive is damaged")
        return content

    def _json(self, name: str) -> Any:
        return json.loads(self._small(name))

    def _small(self, name: str) -> bytes:
        content = bytearray()
        for chunk in self._content(name):
            content += chunk
            if len(content) > JSON_LIMIT_BYTES:
                raise Refused(f"{name} is larger than {JSON_LIMIT_BYTES} bytes")
        return bytes(content)

    def _content(self, name: str) -> Iterator[bytes]:
        member = self._members.get(_normal(name))
        if member is not None and (member.issym() or member.islnk()):
            # docker names a layer that several images have by a link; a link to a link is nothing it makes
            base = posixpath.dirname(_normal(name)) if member.issym() else ""
            member = self._members.get(_normal(posixpath.join(base, member.linkname)))
        if member is None:
            raise Refused(f"it has no {name[:200]}: it is not whole")
        if not member.isreg() or member.issparse():
            raise Refused(f"{name[:200]} is no plain file in it")
        file = self._tar.extractfile(member)
        while file is not None and (chunk := file.read(READ_BYTES)):
            yield chunk


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _names(annotations: dict[str, Any]) -> list[str]:
    """References in an index entry; a bare tag (what skopeo calls it in the layout) names no image."""
    full = annotations.get("io.containerd.image.name")
    if isinstance(full, str) and full:
        return [full]
    name = annotations.get("org.opencontainers.image.ref.name")
    return [name] if isinstance(name, str) and ("/" in name or ":" in name) else []


def main(archive: str, directory: str, max_bytes: str) -> None:
    """Read an archive."""
    try:
        opened = plain(Path(archive), Path(directory), int(max_bytes))
        with tarfile.open(opened, mode="r:", tarinfo=Entry) as tar:
            answer: dict[str, Any] = {"images": Archive(tar, Path(directory)).images()}
    except (Refused, RuntimeFault) as err:
        answer = {"error": str(err)}
    except OSError as err:
        answer = {"error": err.strerror or str(err), "errno": err.errno}
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as err:
        answer = {"error": f"it is not a whole archive: {err}"}
    except (KeyError, TypeError, AttributeError):
        answer = {"error": "its index is not what docker or OCI write"}
    except (MemoryError, RecursionError):
        answer = {"error": "its headers or its index do not fit in memory"}
    print(json.dumps(answer))  # noqa: T201 -- stdout is this program's answer


if __name__ == "__main__":
    main(*sys.argv[1:4])
