"""Archives: ours read by skopeo, those of skopeo and of docker's older form read by us, and hostile ones refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import BadLayer, DiskFull, ImageUnknown, InvalidInput, WrongPlatform
from runtime.images import ImageStore, Limits
from runtime.images.export import Export
from runtime.images.load import load, spool
from tests.contract.images.conftest import leftovers
from tests.contract.images.layouts import PACK, busybox_root, entry, layer, write_layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runtime.images import Image
    from tests.contract.images.conftest import TestRegistry


async def saved(store: ImageStore, *names: str, kind: Any = "docker-archive") -> bytes:
    made = Export(store, kind)
    await made.prepare(names)
    return b"".join([piece async for piece in made.stream()])


async def loaded(store: ImageStore, content: bytes) -> list[Image]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    async with store.temporary() as temporary:
        await spool(pieces(), temporary / "archive", store.limits.unpacked_bytes, "archive")
        return await load(store, temporary / "archive", temporary)


def run(*argv: str) -> bytes:
    return subprocess.run(argv, check=True, capture_output=True).stdout


def tar(**members: bytes | tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return out.getvalue()


@pytest.fixture
def other(tmp_path: Path) -> Any:
    store = ImageStore(tmp_path / "other")
    yield store
    store.close()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
async def test_a_digest_survives_save_and_load(
    registry: TestRegistry, store: ImageStore, other: ImageStore, kind: str, tmp_path: Path
) -> None:
    base = layer(*busybox_root())
    names = [f"{registry.host}/save:{number}" for number in (1, 2)]
    for number in (1, 2):
        registry.push(f"save:{number}", [base, layer(entry(f"save{number}"))])
    images = [await store.pull(name) for name in names]
    content = await saved(store, *names, kind=kind)
    assert content == await saved(store, *names, kind=kind)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = archive.getnames()
    assert len(found) == len(set(found))
    assert len([name for name in found if name.startswith("blobs/")]) == 2 * 3 + 1  # the base is there once
    taken = await loaded(other, content)
    assert [(image.digest, image.references) for image in taken] == [
        (image.digest, (name,)) for image, name in zip(images, names, strict=True)
    ]
    assert [image.file.read_bytes() for image in taken] == [image.file.read_bytes() for image in images]
    file = tmp_path / "archive.tar"
    file.write_bytes(content)
    source = f"{kind}:{file}" + (f":{names[0]}" if kind == "docker-archive" else ":1")
    assert json.loads(run("skopeo", "inspect", "--config", source))["architecture"] == "amd64"
    run("skopeo", "--insecure-policy", "copy", source, f"dir:{tmp_path / 'copy'}")
    assert leftovers(tmp_path / "other") == []


@pytest.mark.parametrize("compress", ["plain", "gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
async def test_what_skopeo_has_written(
    store: ImageStore, other: ImageStore, tmp_path: Path, kind: str, compress: str
) -> None:
    digest = write_layout(tmp_path / "layout", [layer(*busybox_root()), layer(entry("two"))], config={"Cmd": ["sh"]})
    target = tmp_path / "archive"
    name = "example.com/from/skopeo:3"
    run("skopeo", "--insecure-policy", "copy", f"oci:{tmp_path / 'layout'}:image", f"{kind}:{target}:{name}")
    packers = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": PACK["zstd"]}
    content = packers[compress](target.read_bytes())
    (image,) = await loaded(store, content)
    assert image.references == (name,)
    assert image.config.cmd == ("sh",)
    assert (image.digest == digest) == (kind == "oci-archive")  # a docker-archive has no manifest
    assert (await loaded(other, content))[0].digest == image.digest  # but ours is always the same


async def test_docker_s_older_form_with_links(store: ImageStore, tmp_path: Path) -> None:
    first, second = layer(*busybox_root()), layer(entry("second"))
    diff_ids = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in (first, second, second)]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Healthcheck": {"Test": ["CMD", "true"]}},
         "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()  # fmt: skip
    link = tarfile.TarInfo("c/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../b/layer.tar"
    listing = [
        {"Config": "conf.json", "RepoTags": ["old:1", "old:2"], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}
    ]
    members = {"a/layer.tar": first, "b/layer.tar": second, "c/layer.tar": link, "conf.json": config}
    (image,) = await loaded(store, tar(**members, **{"manifest.json": json.dumps(listing).encode()}))
    assert image.references == ("docker.io/library/old:1", "docker.io/library/old:2")
    assert image.config.healthcheck == {"Test": ["CMD", "true"]}
    assert hashlib.sha256(store.parts(image)[2]).hexdigest() == hashlib.sha256(config).hexdigest()


def hostile(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    digest = write_layout(tmp_path / "layout", [layer(*busybox_root())])
    blobs = {f"blobs/sha256/{path.name}": path.read_bytes() for path in (tmp_path / "layout/blobs/sha256").iterdir()}
    whole = {**blobs, "oci-layout": b"{}", "index.json": (tmp_path / "layout/index.json").read_bytes()}
    manifest = f"blobs/sha256/{digest[7:]}"
    config = next(name for name, content in blobs.items() if b"rootfs" in content)
    outside = tarfile.TarInfo(config)
    outside.type, outside.linkname = tarfile.SYMTYPE, "/etc/shadow"
    upwards = {"Config": "../../../../etc/shadow", "RepoTags": None, "Layers": []}
    evil_name = json.loads(whole["index.json"])
    evil_name["manifests"][0]["annotations"] = {"io.containerd.image.name": "Bad Name:1"}
    device = tarfile.TarInfo(config)
    device.type = tarfile.CHRTYPE
    return {
        "empty-tar": (tar(), "neither index.json nor manifest.json"),
        "no-tar": (b"hello" * 1000, "not a whole archive"),
        "cut": (tar(**whole)[:5000], "not a whole archive|not whole"),
        "cut-gzip": (gzip.compress(tar(**whole))[:-2000], "not a whole archive"),
        "blob-missing": (tar(**{k: v for k, v in whole.items() if k != config}), "not whole"),
        "blob-other": (tar(**{**whole, config: whole[config] + b" "}), "the archive is damaged"),
        "manifest-other": (tar(**{**whole, manifest: whole[manifest] + b" "}), "the archive is damaged"),
        "link-outside": (tar(**{**whole, config: outside}), "not whole"),
        "device": (tar(**{**whole, config: device}), "no plain file"),
        "name-upwards": (tar(**{"manifest.json": json.dumps([upwards]).encode()}), "not whole"),
        "index-list": (tar(**{**whole, "index.json": b"[1]"}), "index is not what"),
        "index-no-json": (tar(**{**whole, "index.json": b"{"}), "not a whole archive"),
        "name-bad": (tar(**{**whole, "index.json": json.dumps(evil_name).encode()}), "not an image reference"),
        "deep-json": (tar(**{**whole, "index.json": b"[" * 200_000}), "fit in memory|not a whole archive"),
        "many": (tar(**{f"f{number}": b"" for number in range(20_001)}), "more than 20000 members"),
        "bomb": (gzip.compress(bytes(70 << 20)), "unpacks to more than"),
    }


NAMES = (
    "empty-tar", "no-tar", "cut", "cut-gzip", "blob-missing", "blob-other", "manifest-other", "link-outside", "device",
    "name-upwards", "index-list", "index-no-json", "name-bad", "deep-json", "many", "bomb",
)  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
async def test_hostile_archives(tmp_path: Path, kind: str) -> None:
    cases = hostile(tmp_path)
    assert set(cases) == set(NAMES)
    content, message = cases[kind]
    store = ImageStore(tmp_path / "data", limits=Limits(unpacked_bytes=64 << 20))
    with pytest.raises(BadLayer, match=message) as caught:
        await loaded(store, content)
    assert "\n" not in str(caught.value)
    assert await store.list() == ()
    assert leftovers(tmp_path / "data") == []
    assert list((tmp_path / "data/blobs/sha256").iterdir()) == []
    store.close()


async def test_what_cannot_be_loaded_or_saved(store: ImageStore, tmp_path: Path) -> None:
    write_layout(tmp_path / "arm", [layer(*busybox_root())], architecture="arm64")
    members = {
        str(path.relative_to(tmp_path / "arm")): path.read_bytes()
        for path in (tmp_path / "arm").rglob("*") if path.is_file()
    }  # fmt: skip
    with pytest.raises(WrongPlatform, match="linux/arm64"):
        await loaded(store, tar(**members))
    assert list(store.blobs.path("x").parent.iterdir()) == []
    with pytest.raises(InvalidInput, match="the archive is empty"):
        await loaded(store, b"")
    small = ImageStore(tmp_path / "small", limits=Limits(unpacked_bytes=1000))
    with pytest.raises(InvalidInput, match="larger than 1000 bytes"):
        await loaded(small, bytes(300_000))
    small.close()
    with pytest.raises(ImageUnknown):
        await saved(store, "never:1")


async def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small))
    try:
        store = ImageStore(small)
        with pytest.raises(DiskFull, match="free some space"):
            await loaded(store, bytes(8 << 20))
        assert leftovers(small) == []
        store.close()
    finally:
        run("umount", str(small))
