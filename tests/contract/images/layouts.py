"""Make small OCI layouts by hand, honest and evil ones, for the tests of the image store."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")  # busybox-static
PACK = {
    "gzip": lambda content: gzip.compress(content, 6, mtime=0),
    "zstd": lambda content: subprocess.run(["zstd", "-c"], input=content, capture_output=True, check=True).stdout,
    "none": lambda content: content,
}


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **members: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One tar entry; `members` are set on the TarInfo (mode, linkname, devmajor, pax_headers, …)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.mtime = 1_000_000_000
    info.size = len(data)
    for key, value in members.items():
        setattr(info, key, value)
    return info, data


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of just these entries, in this order, names unchecked."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_layout(
    directory: Path,
    layers: list[bytes],
    *,
    architecture: str = "amd64",
    config: dict[str, Any] | None = None,
    tag: str = "image",
    raw_layers: bool = False,
    history: list[dict[str, Any]] | None = None,
    compression: str = "gzip",
) -> str:
    """Write an OCI layout with one image, return its manifest's digest.

    `raw_layers`: the layers are compressed (or broken) already, and stored as they are.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    descriptors = []
    for content in layers:
        stored = content if raw_layers else PACK[compression](content)
        kind = "" if compression == "none" else f"+{compression}"
        descriptors.append({"mediaType": f"application/vnd.oci.image.layer.v1.tar{kind}", **put(stored)})
    image_config = {
        "created": "2020-01-02T03:04:05.123456789Z",
        "architecture": architecture,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]},
        **({} if history is None else {"history": history}),
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(json.dumps(image_config).encode())},
        "layers": descriptors,
    }
    described = put(json.dumps(manifest).encode())
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": manifest["mediaType"],
                **described,
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        ],
    }
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(described["digest"])


def write_index(directory: Path, content: bytes) -> str:
    """Let the tag `image` of a layout name an index, given as JSON; return its digest."""
    digest = hashlib.sha256(content).hexdigest()
    (directory / "blobs/sha256" / digest).write_bytes(content)
    described = {
        "mediaType": json.loads(content)["mediaType"],
        "digest": f"sha256:{digest}",
        "size": len(content),
        "annotations": {"org.opencontainers.image.ref.name": "image"},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    return f"sha256:{digest}"


def busybox_root() -> list[tuple[tarfile.TarInfo, bytes]]:
    """A root that runs: busybox, a shell, the usual directories."""
    return [
        entry("bin", tarfile.DIRTYPE),
        entry("bin/busybox", data=BUSYBOX.read_bytes(), mode=0o755),
        entry("bin/sh", tarfile.SYMTYPE, linkname="busybox"),
        entry("etc", tarfile.DIRTYPE),
        entry("etc/passwd", data=b"root:x:0:0::/:/bin/sh\n"),
    ]
