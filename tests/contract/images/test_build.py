"""Builds by the real buildah, on a real registry."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from runtime.errors import Conflict, InvalidInput, Upstream
from runtime.images import containerfile
from runtime.images.access import Access
from runtime.images.containerfile import Builder, Options
from tests.contract.images.conftest import free_port, leftovers, processes_below
from tests.contract.images.layouts import busybox_root, entry, layer

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.images import Image, ImageStore, Progress
    from tests.contract.images.conftest import TestRegistry


HISTORY = [
    {"created": "2020-01-02T03:04:05Z", "created_by": "by hand"}
]  # without it buildah cannot count the layers, nor use its cache


async def built(
    store: ImageStore, text: str, options: Options, files: dict[str, bytes] | None = None
) -> tuple[Image, list[Progress]]:
    events: list[Progress] = []
    async with store.temporary() as temporary:
        with tarfile.open(temporary / "archive", mode="w") as tar:
            members = {"Containerfile": text.encode()}
            members |= {f"context/{name}": content for name, content in (files or {}).items()}
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.mode = 0o755
                tar.addfile(info, io.BytesIO(content))
        image = await Builder(store).build(temporary / "archive", temporary, options, Access(), events.append)
    return image, events


async def test_a_build_from_a_registry_and_one_from_its_result(
    registry: TestRegistry, store: ImageStore, data_dir: Path
) -> None:
    base = registry.push("base:1", [layer(*busybox_root(), entry("tmp", tarfile.DIRTYPE))], history=HISTORY)
    text = f"""
FROM {registry.host}/base:1
ARG GREETING=nothing
RUN ["/bin/busybox", "sh", "-c", "echo $GREETING > /greeting"]
COPY data/hello /hello
ENV A=b
USER 1000:1000
HEALTHCHECK --interval=5s CMD true
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/busybox", "cat"]
CMD ["/hello"]
"""
    options = Options(tags=["app:1", "app:2"], args={"GREETING": "hi"}, labels={"made": "here"})
    image, events = await built(store, text, options, {"data/hello": b"hello", "unused": b""})
    assert image.references == ("docker.io/library/app:1", "docker.io/library/app:2")
    assert (image.config.user, image.config.env[-1]) == ("1000:1000", "A=b")
    assert image.config.entrypoint == ("/bin/busybox", "cat")
    assert image.config.healthcheck is not None
    assert image.config.healthcheck["Interval"] == 5 * 10**9
    assert image.config.stop_signal == "SIGINT"
    assert image.config.labels["made"] == "here"
    assert image.build is not None
    assert image.build["containerfile"] == text
    assert image.build["args"] == {"GREETING": "hi"}
    assert image.build["context_digest"].startswith("sha256:")
    printed = "\n".join(event.text or "" for event in events)
    assert "COPY data/hello /hello" in printed
    assert (await store.resolve("app:2")).digest == image.digest != base
    again, events = await built(store, text, options, {"data/hello": b"hello", "unused": b""})
    assert "Using cache" in "\n".join(event.text or "" for event in events)
    assert again.build is not None
    assert again.build["context_digest"] == image.build["context_digest"]
    assert again.digest == image.digest
    # The result is an image of this host alone; one is built from it all the same.
    second, _ = await built(store, "FROM app:1\nLABEL more=yes\n", Options(tags=["more"]))
    assert second.config.labels == {**image.config.labels, "more": "yes"}
    assert second.shared_bytes > 0
    assert json.loads(store.parts(second)[0])["layers"][0] == json.loads(store.parts(image)[0])["layers"][0]
    text = "ARG BASE=nosuch\nARG TAG=1\nFROM ${BASE}:${TAG}\nLABEL more=yes\n"
    chosen, _ = await built(store, text, Options(args={"BASE": "app"}))
    assert chosen.build is not None
    assert chosen.build["bases"] == {"app:1": image.digest}
    assert leftovers(data_dir) == []
    assert await Builder(store).prune() > 0
    assert (await store.resolve("more")).digest == second.digest


async def rebuilt(store: ImageStore, name: str, *, unnamed: bool = False) -> Image:
    async with store.temporary() as temporary:
        image = await store.resolve(name)
        return await Builder(store).rebuild(image, temporary, Access(), lambda _: None, unnamed=unnamed)


async def test_an_image_is_built_again_from_what_was_kept(
    registry: TestRegistry, store: ImageStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = registry.push("moving:1", [layer(*busybox_root(), entry("tmp", tarfile.DIRTYPE))], history=HISTORY)
    text = f"FROM {registry.host}/moving:1\nARG GREETING\nLABEL greeting=$GREETING\nCOPY hello /hello\n"
    options = Options(tags=["again:1", "again:2"], args={"GREETING": "hi"})
    first, _ = await built(store, text, options, {"hello": b"hello"})
    assert first.build is not None
    assert first.build["bases"] == {f"{registry.host}/moving:1": base}
    assert (await rebuilt(store, "again:1")).digest == first.digest
    moved = registry.push("moving:1", [layer(*busybox_root(), entry("mended", data=b"yes"))], history=HISTORY)
    second = await rebuilt(store, "again:1")
    assert second.digest != first.digest
    assert second.build is not None
    assert second.build["bases"] == {f"{registry.host}/moving:1": moved}
    assert second.references == first.references
    assert second.config.labels["greeting"] == "hi"
    # A base that was pulled to this host is fetched again for a rebuild, as its tag may have moved.
    await store.pull(f"{registry.host}/moving:1")
    third = registry.push("moving:1", [layer(*busybox_root(), entry("mended", data=b"more"))], history=HISTORY)
    again = await rebuilt(store, "again:1", unnamed=True)
    assert (again.references, (await store.resolve("again:1")).digest) == ((), second.digest)
    assert again.build is not None
    assert again.build["bases"] == {f"{registry.host}/moving:1": third}
    # What was kept goes with the images that were built from it.
    kept = store.blobs.path(again.build["archive_digest"])
    assert kept.is_file()
    for name in ("again:1", "again:2", first.digest, again.digest):
        await store.untag(name, lambda: ())
    assert not kept.exists()
    with pytest.raises(Conflict, match="was not built on this host"):
        await rebuilt(store, f"{registry.host}/moving:1")
    monkeypatch.setattr(containerfile, "KEPT_CONTEXT_LIMIT_BYTES", 1000)
    large, _ = await built(store, text, Options(tags=["large"]), {"hello": b"hello", "more": bytes(2000)})
    assert large.build is not None
    assert large.build["archive_digest"] is None
    with pytest.raises(Conflict, match="are not kept"):
        await rebuilt(store, "large")
    assert leftovers(data_dir) == []


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ('FROM {base}\nRUN ["/bin/busybox", "false"]\n', InvalidInput, "the build failed: .*exit status 1"),
        ("FROM {base}\nNOSUCH thing\n", InvalidInput, "the build failed: .*NOSUCH"),
        ("FROM {base}\nCOPY missing /\n", InvalidInput, "the build failed: .*missing"),
        ("FROM 127.0.0.1:{port}/x\n", Upstream, "which is built from, cannot be fetched"),
        ("FROM {host}/never\n", Upstream, "which is built from, cannot be fetched"),
    ],
)
async def test_builds_that_fail(
    registry: TestRegistry, store: ImageStore, data_dir: Path, text: str, kind: type[Exception], message: str
) -> None:
    registry.push("base:1", [layer(*busybox_root(), entry("tmp", tarfile.DIRTYPE))], history=HISTORY)
    whole = text.format(base=f"{registry.host}/base:1", port=free_port(), host=registry.host)
    with pytest.raises(kind, match=message) as caught:
        await built(store, whole, Options(tags=["x"]))
    print(caught.value)
    assert "\n" not in str(caught.value)
    assert await store.list() == ()
    assert leftovers(data_dir) == []
    assert processes_below(data_dir) == []


async def test_a_wrong_tag(store: ImageStore) -> None:
    with pytest.raises(InvalidInput, match="capital letters") as caught:
        await built(store, "FROM scratch\n", Options(tags=["Bad"]))
    assert caught.value.field == "tags"
