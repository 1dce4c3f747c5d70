"""What the store keeps, shares, lets go of, and can go on from."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import os
import random
import tarfile
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import BadLayer, Conflict, ImageUnknown, InvalidInput, RuntimeFault, Upstream, WrongDigest
from runtime.images import ImageStore, manifest
from tests.contract.images.conftest import leftovers
from tests.contract.images.layouts import busybox_root, entry, layer
from tests.places import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.contract.images.conftest import TestRegistry

NOISE = random.Random(7).randbytes(300_000)


def blobs(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "blobs/sha256").iterdir()}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("form", ["oci", "v2s2"])
async def test_every_compression_and_both_forms(
    registry: TestRegistry, store: ImageStore, compression: str, form: str
) -> None:
    if (compression, form) == ("zstd", "v2s2"):
        form = "oci"  # Docker's form knows no zstd
    lower = layer(*busybox_root(), entry("a", data=b"1"), entry("h", data=b"linked", mode=0o4711, uid=7))
    upper = layer(entry(".wh.a"), entry("across", tarfile.LNKTYPE, linkname="h"), entry(f"{compression}-{form}"))
    name = f"kinds/{compression}-{form}:1"
    registry.push(name, [lower, upper], compression=compression)
    if form == "v2s2":
        registry.copy(f"docker://{registry.host}/{name}", f"{name}2", "--src-tls-verify=false", "-f", "v2s2")
        name += "2"
    image = await store.pull(f"{registry.host}/{name}")
    content, parts, _ = store.parts(image)
    assert manifest.digest_of(content) == image.digest
    assert image.blobs_bytes == len(content) + parts.config.size_bytes + sum(one.size_bytes for one in parts.layers)
    assert image.file.stat().st_size == image.size_bytes > 1_000_000


async def test_blobs_are_shared_and_go_with_their_last_image(
    registry: TestRegistry, store: ImageStore, data_dir: Path
) -> None:
    base = layer(*busybox_root(), entry("noise", data=NOISE))
    digests = [registry.push(f"share:{one}", [base, layer(entry(f"share{one}"))]) for one in (1, 2)]
    images = [await store.pull(f"{registry.host}/share:{one}") for one in (1, 2)]
    first, second = await store.resolve(digests[0]), await store.resolve(digests[1])
    shared = json.loads(store.parts(first)[0])["layers"][0]["size"]
    assert first.shared_bytes == second.shared_bytes == shared
    assert len(blobs(data_dir)) == 2 * 3 + 1
    usage = await store.usage({first.digest})
    assert (usage["images"], usage["active"]) == (2, 1)
    assert usage["files_bytes"] == sum(image.size_bytes for image in images)
    assert usage["blobs_bytes"] == first.blobs_bytes + second.blobs_bytes - shared
    assert usage["reclaimable_bytes"] == second.size_bytes + second.blobs_bytes - shared
    removed = await store.untag(f"{registry.host}/share:1", set)
    assert removed.untagged == (f"{registry.host}/share:1",)
    assert removed.deleted == (first.digest,)
    assert removed.freed_bytes == first.size_bytes + first.blobs_bytes - shared
    assert len(blobs(data_dir)) == 4
    assert (await store.resolve(second.digest)).shared_bytes == 0
    await store.untag(second.digest, set)
    assert blobs(data_dir) == set()


async def test_tag_untag_and_force(registry: TestRegistry, store: ImageStore) -> None:
    registry.push("tags:1", [layer(*busybox_root(), entry("tags"))])
    image = await store.pull(f"{registry.host}/tags:1")
    assert "docker.io/library/mine:latest" in (await store.tag(f"{registry.host}/tags:1", "mine")).references
    assert (await store.resolve("mine")).digest == image.digest
    with pytest.raises(InvalidInput, match="has a digest"):
        await store.tag("mine", f"mine@{image.digest}")
    with pytest.raises(InvalidInput, match="capital letters"):
        await store.tag("mine", "Mine")
    with pytest.raises(ImageUnknown):
        await store.tag("nothing", "mine")
    with pytest.raises(Conflict, match="all with --force"):
        await store.untag(image.digest[:20], set)
    removed = await store.untag(image.digest[:20], set, force=True)
    assert removed.deleted == (image.digest,)
    assert len(removed.untagged) == 2
    assert await store.list() == ()


async def test_prune(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    for number in (1, 2):
        registry.push("prune:1", [layer(*busybox_root(), entry(f"prune{number}"))])
        await store.pull(f"{registry.host}/prune:1")
    registry.push("prune:used", [layer(*busybox_root(), entry("used"))])
    used = await store.pull(f"{registry.host}/prune:used")
    (dangling,) = [image for image in await store.list() if not image.references]
    assert (await store.prune(lambda: {dangling.digest})).deleted == ()
    removed = await store.prune(set)
    assert removed.deleted == (dangling.digest,)
    assert removed.freed_bytes > dangling.size_bytes
    removed = await store.prune(lambda: {used.digest}, everything=True)
    assert removed.untagged == (f"{registry.host}/prune:1",)
    assert [image.digest for image in await store.list()] == [used.digest]
    assert len(blobs(data_dir)) == 3


async def test_history(registry: TestRegistry, store: ImageStore) -> None:
    history = [
        {"created": "2020-01-02T03:04:05Z", "created_by": "ADD root", "comment": "first"},
        {"created_by": "ENV A=b", "empty_layer": True},
        {"created_by": "COPY"},
    ]
    registry.push("history:1", [layer(*busybox_root()), layer(entry("h"))], history=history)
    image = await store.pull(f"{registry.host}/history:1")
    _, parts, raw_config = store.parts(image)
    steps = manifest.parse_history(raw_config, parts.layers, "x")
    assert [step.created_by for step in steps] == ["COPY", "ENV A=b", "ADD root"]
    assert [step.size_bytes for step in steps] == [parts.layers[1].size_bytes, 0, parts.layers[0].size_bytes]
    assert steps[2].created_at == 1577934245.0


async def test_a_stored_blob_that_was_damaged(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    registry.push("damage:1", [layer(*busybox_root(), entry("damage", data=NOISE))])
    image = await store.pull(f"{registry.host}/damage:1")
    _, parts, _ = store.parts(image)
    await store.untag(f"{registry.host}/damage:1", set)
    path = store.blobs.path(parts.layers[0].digest)
    path.write_bytes(b"short")  # as after a power failure
    assert (await store.pull(f"{registry.host}/damage:1")).digest == image.digest
    await store.untag(f"{registry.host}/damage:1", set)
    path.write_bytes(bytes(parts.layers[0].size_bytes))
    with pytest.raises(WrongDigest, match="is damaged"):
        await store.pull(f"{registry.host}/damage:1")
    assert (await store.pull(f"{registry.host}/damage:1")).digest == image.digest
    assert leftovers(data_dir) == []


async def test_wrong_diff_ids(registry: TestRegistry, store: ImageStore, tmp_path: Path, data_dir: Path) -> None:
    registry.push("diffs:1", [layer(*busybox_root()), layer(entry("x"))])
    image = await store.pull(f"{registry.host}/diffs:1")
    content, _, raw_config = store.parts(image)
    config = json.loads(raw_config)
    config["rootfs"]["diff_ids"].pop()
    evil = json.dumps(config).encode()
    document = json.loads(content)
    document["config"] |= {"digest": manifest.digest_of(evil), "size": len(evil)}
    evil_manifest = json.dumps(document).encode()
    async with store.temporary() as temporary:
        with pytest.raises(BadLayer, match="2 layers and 1 diff_ids"):
            await store.install(temporary, evil_manifest, evil, names=(), progress=lambda _: None)
    assert leftovers(data_dir) == []


class Dying(http.server.BaseHTTPRequestHandler):
    """A registry that breaks off in the second layer as long as `dies` is set; counts what it is asked for."""

    dies: threading.Event
    asked: Counter[str]
    contents: dict[str, bytes]
    document: bytes

    def do_GET(self) -> None:
        last = self.path.rpartition("/")[2]
        if self.path == "/v2/":
            self._answer(b"{}", "application/json")
        elif "/manifests/" in self.path:
            self._answer(self.document, "application/vnd.oci.image.manifest.v1+json")
        else:
            content = self.contents[last]
            if self.command == "GET":
                self.asked[last] += 1
            if self.dies.is_set() and last == list(self.contents)[1]:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self._answer(content, "application/octet-stream")

    do_HEAD = do_GET  # noqa: N815 -- the name that http.server looks for

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def dying() -> Iterator[tuple[str, Any]]:
    layers = [layer(*busybox_root()), layer(entry("big", data=NOISE))]
    contents = {manifest.digest_of(one): one for one in layers}
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": list(contents)}}
    ).encode()
    kind = "application/vnd.oci.image"
    document = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", "digest": manifest.digest_of(config), "size": len(config)},
        "layers": [
            {"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": len(content)}
            for digest, content in contents.items()
        ],
    }
    contents[manifest.digest_of(config)] = config
    members = {
        "dies": threading.Event(), "asked": Counter(), "contents": contents, "document": json.dumps(document).encode(),
    }  # fmt: skip
    handler = type("Bound", (Dying,), members)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with serving(server):
        yield f"127.0.0.1:{server.server_address[1]}", handler


async def test_a_pull_goes_on_with_the_layers_it_had(dying: tuple[str, Any], store: ImageStore, data_dir: Path) -> None:
    host, handler = dying
    first, second, _ = handler.contents
    handler.dies.set()
    with pytest.raises((Upstream, WrongDigest)):
        await store.pull(f"{host}/dies:1")
    assert leftovers(data_dir) == []
    assert store.blobs.has(first)
    assert not store.blobs.has(second)
    await store.sweep()  # a restart of the daemon keeps them as well
    asked = handler.asked[first]
    handler.dies.clear()
    image = await store.pull(f"{host}/dies:1")
    assert image.file.is_file()
    assert handler.asked[first] == asked == 1
    await store.untag(f"{host}/dies:1", set)
    assert blobs(data_dir) == set()


async def test_layers_of_no_image_go_after_a_day(dying: tuple[str, Any], store: ImageStore, data_dir: Path) -> None:
    host, handler = dying
    handler.dies.set()
    with pytest.raises((Upstream, WrongDigest)):
        await store.pull(f"{host}/dies:1")
    assert (await store.usage(set()))["unused_blobs_bytes"] > 0
    assert (await store.prune(set)).freed_bytes == 0
    path = store.blobs.path(next(iter(handler.contents)))
    yesterday = time.time() - 90_000
    os.utime(path, (yesterday, yesterday))
    assert (await store.prune(set)).freed_bytes > 0
    assert blobs(data_dir) == set()


async def test_pulls_while_everything_is_pruned(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    base = layer(*busybox_root(), entry("storm", data=NOISE))
    names = [f"storm:{number}" for number in range(4)]
    for name in names:
        registry.push(name, [base, layer(entry(name.replace(":", "")))])
    stop = asyncio.Event()
    used: set[str] = set()

    async def prune() -> int:
        rounds = 0
        while not stop.is_set():
            await store.prune(lambda: used, everything=True)
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    async def use(name: str) -> None:
        for _ in range(3):
            image = await store.pull(f"{registry.host}/{name}")
            try:
                found = await store.resolve(image.digest)
            except ImageUnknown:
                continue  # it was pruned before we could use it, and whole
            used.add(found.digest)  # as a container does, with no other task between the two
            assert found.file.is_file()
            store.parts(found)
            await asyncio.sleep(0.05)
            assert found.file.is_file()
            assert hashlib.sha256(store.parts(found)[0]).hexdigest() == found.digest[7:]
            used.discard(found.digest)

    pruning = asyncio.create_task(prune())
    try:
        await asyncio.gather(*(use(name) for name in names))
    finally:
        stop.set()
        rounds = await pruning
    print(f"pruned {rounds} times during 12 pulls")
    await store.prune(set, everything=True)
    assert await store.list() == ()
    assert blobs(data_dir) == set()
    assert leftovers(data_dir) == []


async def test_an_image_that_is_being_removed_is_not_given(registry: TestRegistry, store: ImageStore) -> None:
    registry.push("leaving:1", [layer(*busybox_root(), entry("leaving"))])
    image = await store.pull(f"{registry.host}/leaving:1")
    removing = asyncio.create_task(store.prune(set, everything=True))
    given = 0
    while not removing.done():
        try:
            found = await store.resolve(image.digest)
        except RuntimeFault:
            break
        assert found.file.is_file()  # with no other task between
        given += 1
        await asyncio.sleep(0)
    await removing
    assert not image.file.exists()
