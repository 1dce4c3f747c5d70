"""The image store on the real skopeo, umoci, mkfs.erofs and registry."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from runtime.errors import BadLayer, Conflict, DiskFull, HostUnable, ImageUnknown, Upstream, WrongDigest, WrongPlatform
from runtime.images import ImageStore, Limits, Progress
from runtime.images.access import Access
from tests.contract.images.conftest import free_port, leftovers, processes_below
from tests.contract.images.layouts import busybox_root, entry, layer, write_index, write_layout
from tests.places import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.contract.images.conftest import TestRegistry

CONFIG = {
    "Env": ["PATH=/bin"],
    "Cmd": ["sh"],
    "Entrypoint": ["/bin/busybox"],
    "User": "1000:1000",
    "WorkingDir": "/etc",
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGQUIT",
    "Labels": {"team": "shop"},
}
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service, revision 2


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[list[Path]]:
    """Image files appended to it … are unmounted at the end."""
    points: list[Path] = []
    yield points
    for point in points:
        subprocess.run(["umount", point], check=True)


def chroot(root: Path, script: str) -> str:
    """What a shell script inside a root prints."""
    return subprocess.run(["chroot", root, "/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout


def mount(file: Path, at: Path, mounted: list[Path]) -> Path:
    at.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", file, at], check=True)
    mounted.append(at)
    return at


async def test_pull_gives_an_image_with_its_configuration(registry: TestRegistry, store: ImageStore) -> None:
    digest = registry.push("busybox:1", [layer(*busybox_root())], config=CONFIG)
    events: list[Progress] = []
    image = await store.pull(f"{registry.host}/busybox:1", progress=events.append)
    assert image.digest == digest
    assert image.references == (f"{registry.host}/busybox:1",)
    assert image.created_at == pytest.approx(1577934245.123456)
    assert image.size_bytes == image.file.stat().st_size
    assert json.loads((image.file.parent / "config.json").read_bytes())["config"] == CONFIG
    answer = image.to_dict()["config"]
    assert {key: answer[key] for key in CONFIG} == CONFIG
    assert events[0].status == "resolving"
    assert {"downloading", "downloaded", "checking", "unpacking", "writing", "done"} <= {one.status for one in events}
    downloads = [event for event in events if event.status == "downloading" and event.layer is None]
    assert downloads[-1].current == downloads[-1].total
    assert await store.list() == (image,)
    for name in (digest, digest[7:19], f"{registry.host}/busybox:1", f"{registry.host}/busybox@{digest}"):
        assert await store.resolve(name) == image


async def test_each_layer_tells_how_far_it_is(registry: TestRegistry, store: ImageStore) -> None:
    large = entry("large", data=os.urandom(8 << 20))
    registry.push("large:1", [layer(*busybox_root()), layer(large)], config=CONFIG)
    events: list[Progress] = []
    image = await store.pull(f"{registry.host}/large:1", progress=events.append)
    sizes = {one.digest: one.size_bytes for one in store.parts(image)[1].layers}
    told = [one for one in events if one.status == "downloading" and one.layer in sizes]
    assert told, "skopeo draws bars, and they are read"
    assert all(one.total == sizes[one.layer or ""] and (one.current or 0) <= one.total for one in told)
    assert [one.layer for one in events if one.status == "downloaded"], "and what has come is told of as before"


async def test_the_file_keeps_what_a_root_consists_of(
    registry: TestRegistry, store: ImageStore, tmp_path: Path, mounted: list[Path]
) -> None:
    lower = layer(
        *busybox_root(),
        entry("bin/su", data=b"x", mode=0o4755),
        entry("bin/su2", tarfile.LNKTYPE, linkname="bin/su"),
        entry("tmp", tarfile.DIRTYPE, mode=0o1777),
        entry("abs", tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("pipe", tarfile.FIFOTYPE),
        entry("owned", data=b"y", uid=1234, gid=4321),
        entry("ping", data=b"z", pax_headers={"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}),
        entry("big", data=b"a" * 5000),
        entry("gone", data=b"gone"),
        entry("dir", tarfile.DIRTYPE),
        entry("dir/gone", data=b"gone"),
    )
    upper = layer(entry(".wh.gone"), entry("dir/.wh..wh..opq"), entry("dir/new", data=b"new"))
    registry.push("root:1", [lower, upper])
    image = await store.pull(f"{registry.host}/root:1")
    root = mount(image.file, tmp_path / "mnt", mounted)
    su = (root / "bin/su").stat()
    assert stat.S_IMODE(su.st_mode) == 0o4755
    assert (su.st_nlink, su.st_ino) == (2, (root / "bin/su2").stat().st_ino)
    assert su.st_mtime == 1_000_000_000
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert os.readlink(root / "abs") == "/etc/passwd"  # noqa: PTH115 -- the text itself is what counts
    null = (root / "null").lstat()
    assert stat.S_ISCHR(null.st_mode)
    assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
    assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
    assert ((root / "owned").stat().st_uid, (root / "owned").stat().st_gid) == (1234, 4321)
    assert os.getxattr(root / "ping", "security.capability") == CAPABILITY
    assert (root / "big").read_bytes() == b"a" * 5000
    assert not (root / "gone").exists()
    assert [one.name for one in (root / "dir").iterdir()] == ["new"]
    assert chroot(root, "echo runs") == "runs\n"


async def test_the_same_image_gives_the_same_file(registry: TestRegistry, tmp_path: Path) -> None:
    registry.push("same:1", [layer(entry(".", tarfile.DIRTYPE), *busybox_root())])
    contents = []
    for name in ("one", "two"):
        store = ImageStore(tmp_path / name)
        contents.append((await store.pull(f"{registry.host}/same:1")).file.read_bytes())
        store.close()
    assert contents[0] == contents[1]


async def test_pulls_of_one_digest_at_once_do_the_work_once(registry: TestRegistry, store: ImageStore) -> None:
    registry.push("busy:1", [layer(*busybox_root(), entry("busy"))])
    registry.push("busy:2", [layer(*busybox_root(), entry("busy"))])
    events: list[Progress] = []
    names = [f"{registry.host}/busy:{1 + number % 2}" for number in range(6)]
    images = await asyncio.gather(*(store.pull(name, progress=events.append) for name in names))
    assert len({image.digest for image in images}) == 1
    assert [event.status for event in events].count("unpacking") == 1
    assert (await store.list())[0].references == (f"{registry.host}/busy:1", f"{registry.host}/busy:2")


async def test_a_cancelled_pull_leaves_the_other_to_do_it(
    registry: TestRegistry, store: ImageStore, data_dir: Path
) -> None:
    registry.push("cancel:1", [layer(*busybox_root(), entry("cancel"))])
    unpacking = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.status == "unpacking":
            unpacking.set()

    first = asyncio.create_task(store.pull(f"{registry.host}/cancel:1", progress=note))
    await unpacking.wait()
    second = asyncio.create_task(store.pull(f"{registry.host}/cancel:1"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    image = await second
    assert image.file.is_file()
    assert leftovers(data_dir) == []
    assert processes_below(data_dir) == []


async def test_a_tag_that_has_moved(registry: TestRegistry, store: ImageStore) -> None:
    name = f"{registry.host}/moved:1"
    registry.push("moved:1", [layer(*busybox_root(), entry("old"))])
    old = await store.pull(name)
    registry.push("moved:1", [layer(*busybox_root(), entry("new"))])
    new = await store.pull(name)
    assert (await store.resolve(name)).digest == new.digest != old.digest
    assert (await store.resolve(old.digest)).references == ()
    await store.untag(old.digest[7:19], set)
    assert not old.file.exists()
    assert [image.digest for image in await store.list()] == [new.digest]


async def test_an_index_gives_our_platform(registry: TestRegistry, store: ImageStore, tmp_path: Path) -> None:
    amd64 = write_layout(tmp_path / "layout", [layer(*busybox_root())], tag="amd64")
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    arm64 = write_layout(tmp_path / "layout", [layer(entry("arm"))], architecture="arm64", tag="arm64")
    ours, other = index["manifests"][0], json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"][0]
    for one, architecture in ((ours, "amd64"), (other, "arm64")):
        one.pop("annotations")
        one["platform"] = {"os": "linux", "architecture": architecture}
    index |= {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [other, ours]}
    digest = write_index(tmp_path / "layout", json.dumps(index).encode())
    registry.copy(f"oci:{tmp_path / 'layout'}:image", "multi:1", "--all")
    image = await store.pull(f"{registry.host}/multi:1")
    assert image.digest == amd64
    assert (await store.pull(f"{registry.host}/multi@{digest}")).digest == amd64
    assert (await store.resolve(f"{registry.host}/multi@{digest}")).digest == amd64
    with pytest.raises(WrongPlatform, match="linux/arm64"):
        await store.pull(f"{registry.host}/multi@{arm64}")


async def test_errors_of_the_registry(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    digest = registry.push("known:1", [layer(*busybox_root())])
    with pytest.raises(ImageUnknown, match=r"has no image .*known:nope; check the name and the tag"):
        await store.pull(f"{registry.host}/known:nope")
    with pytest.raises(ImageUnknown, match="check the name and the digest"):
        await store.pull(f"{registry.host}/known@sha256:{'0' * 64}")
    with pytest.raises(ImageUnknown, match="has no image"):
        await store.pull(f"{registry.host}/never")
    port = free_port()
    with pytest.raises(Upstream, match=f"127.0.0.1:{port} cannot be reached; nothing listens there") as caught:
        await store.pull(f"127.0.0.1:{port}/x")
    assert caught.type is Upstream
    with pytest.raises(Upstream, match=r"registry\.invalid cannot be reached"):
        await store.pull("registry.invalid/x:1")
    with pytest.raises(Upstream, match="speaks plain HTTP: put it into insecure_registries"):
        await store.pull(f"{registry.host}/known:1", access=Access(tls_verify=True))
    registry.push("arm:1", [layer(*busybox_root())], architecture="arm64")
    with pytest.raises(WrongPlatform, match="is for linux/arm64; this host needs linux/amd64"):
        await store.pull(f"{registry.host}/arm:1")
    with pytest.raises(ImageUnknown, match=f"hyper pull {registry.host}/known:1"):
        await store.resolve(f"{registry.host}/known:1")
    assert digest not in {image.digest for image in await store.list()}
    assert leftovers(data_dir) == []
    assert processes_below(data_dir) == []


async def test_content_of_another_digest_is_refused(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    content = layer(*busybox_root(), entry("tampered"))
    digest = registry.push("tampered:1", [content])
    manifest = registry.blob(digest)
    parts = json.loads(manifest.read_bytes())
    whole = manifest.read_bytes()
    blob = registry.blob(parts["layers"][0]["digest"])
    evil = bytearray(blob.read_bytes())
    evil[len(evil) // 2] ^= 0xFF
    blob.write_bytes(evil)
    with pytest.raises(WrongDigest):
        await store.pull(f"{registry.host}/tampered:1")
    config = registry.blob(parts["config"]["digest"])
    config.write_bytes(config.read_bytes().replace(b"linux", b"Linux"))
    with pytest.raises((WrongDigest, Upstream)):
        await store.pull(f"{registry.host}/tampered:1")
    manifest.write_bytes(whole + b" ")
    with pytest.raises((WrongDigest, Upstream)):
        await store.pull(f"{registry.host}/tampered@{digest}")
    assert leftovers(data_dir) == []
    assert await store.list() == ()


async def test_limits_against_bombs(registry: TestRegistry, tmp_path: Path) -> None:
    registry.push("bomb:1", [layer(entry("zeros", data=bytes(40 << 20)))])
    registry.push("bomb:2", [layer(*(entry(f"f{number}") for number in range(300)))])
    store = ImageStore(tmp_path / "data", limits=Limits(unpacked_bytes=16 << 20, entries=200))
    with pytest.raises(BadLayer, match="more than 16777216 bytes"):
        await store.pull(f"{registry.host}/bomb:1")
    with pytest.raises(BadLayer, match="more than 200 entries"):
        await store.pull(f"{registry.host}/bomb:2")
    store.close()
    assert leftovers(tmp_path / "data") == []


@pytest.fixture(params=["4m", "12m", "20m"])  # full while copying, while unpacking, while writing the image file
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", request.param) as path:
        yield path


async def test_a_full_disk(registry: TestRegistry, small: Path) -> None:
    registry.push("full:1", [layer(*busybox_root(), entry("random", data=os.urandom(6 << 20)))])
    store = ImageStore(small)
    with pytest.raises(DiskFull, match="free some space"):
        await store.pull(f"{registry.host}/full:1")
    assert leftovers(small) == []
    store.close()


async def test_a_missing_program(registry: TestRegistry, store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push("busybox:1", [layer(*busybox_root())])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostUnable, match="apt-get install"):
        await store.pull(f"{registry.host}/busybox:1")


async def test_untag_and_collect(registry: TestRegistry, store: ImageStore) -> None:
    one, two = f"{registry.host}/untag:1", f"{registry.host}/untag:2"
    for name in ("untag:1", "untag:2"):
        registry.push(name, [layer(*busybox_root(), entry("untag"))])
    image = await store.pull(one)
    await store.pull(two)
    with pytest.raises(Conflict, match="remove each by its name"):
        await store.untag(image.digest, set)
    await store.untag(one, set)
    with pytest.raises(ImageUnknown):
        await store.resolve(one)
    await store.untag(two, lambda: {image.digest})
    assert image.file.is_file()
    assert await store.collect(lambda: {image.digest}) == ()
    assert await store.collect(set) == (image.digest,)
    assert not image.file.parent.exists()
    assert await store.list() == ()
    with pytest.raises(ImageUnknown):
        await store.untag(two, set)


@pytest.mark.parametrize("status", ["downloading", "unpacking", "writing"])
async def test_kill_9_in_the_middle(registry: TestRegistry, data_dir: Path, status: str) -> None:
    registry.push("killed:1", [layer(*busybox_root(), entry("random", data=os.urandom(24 << 20)))])
    program = f"""
import asyncio, os, signal
from pathlib import Path
from runtime.images import ImageStore
def note(event):
    if event.status == {status!r}:
        asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), signal.SIGKILL)
asyncio.run(ImageStore(Path({str(data_dir)!r})).pull({registry.host + "/killed:1"!r}, progress=note))
"""
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env={**os.environ, "PYTHONPATH": "."})
    assert await done.wait() == -9
    deadline = time.monotonic() + 10
    while found := processes_below(data_dir):
        assert time.monotonic() < deadline, found
    assert leftovers(data_dir) != []
    store = ImageStore(data_dir)
    await store.sweep()
    assert leftovers(data_dir) == []
    image = await store.pull(f"{registry.host}/killed:1")
    await store.sweep()
    assert image.file.is_file()
    store.close()


@pytest.mark.parametrize("here", ["of an image", "of a pull that goes on", "no"])
async def test_a_manifest_that_has_a_size_wrong_takes_nobodys_layer_away(
    registry: TestRegistry, store: ImageStore, here: str
) -> None:
    digest = registry.push("whole:1", [layer(*busybox_root(), entry(here))])
    evil = json.loads(registry.blob(digest).read_bytes())
    whole, size = store.blobs.path(evil["layers"][0]["digest"]), evil["layers"][0]["size"]
    evil["layers"][0]["size"] += 1
    connection = http.client.HTTPConnection(registry.host)
    connection.request("PUT", "/v2/whole/manifests/evil", json.dumps(evil), {"Content-Type": evil["mediaType"]})
    assert connection.getresponse().status == 201
    connection.close()
    if here == "of an image":
        await store.pull(f"{registry.host}/whole:1")
    elif here == "of a pull that goes on":
        whole.write_bytes(registry.blob(f"sha256:{whole.name}").read_bytes())
    inode = whole.stat().st_ino if whole.exists() else None
    with store.blobs.pinned([] if here == "no" else [f"sha256:{whole.name}"]):
        with pytest.raises(BadLayer, match=f"does not match: its manifest says {size + 1} bytes, and it has {size}"):
            await store.pull(f"{registry.host}/whole:evil")
        assert (whole.stat().st_ino if whole.exists() else None) == inode
    assert len(await store.list()) == (here == "of an image")


async def test_sweep_forgets_an_image_without_its_file(registry: TestRegistry, store: ImageStore) -> None:
    registry.push("lost:1", [layer(*busybox_root(), entry("lost"))])
    image = await store.pull(f"{registry.host}/lost:1")
    image.file.unlink()
    await store.sweep()
    assert await store.list() == ()
    assert (await store.pull(f"{registry.host}/lost:1")).file.is_file()


@pytest.mark.parametrize("step", ["tag", "untag", "remove"])
async def test_a_crash_leaves_no_image_that_nothing_names(
    registry: TestRegistry, store: ImageStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whether it was just getting its first name, or losing its last one."""
    registry.push("named:1", [layer(*busybox_root(), entry("named"))])
    name = f"{registry.host}/named:1"
    if step != "tag":
        await store.pull(name)

    def crash(*_: object) -> None:
        raise KeyError("the daemon was killed")

    with monkeypatch.context() as patched:
        patched.setattr(store._index, step, crash)
        with pytest.raises(KeyError):
            await (store.pull(name) if step == "tag" else store.untag(name, set))
    await store.sweep()
    assert len(await store.list()) == 1
    assert len(await store.collect(set)) == 1, "which is what a daemon that comes back does"
    assert await store.list() == ()
    assert (await store.pull(name)).references == (name,)
    assert await store.collect(set) == ()


async def test_sweep_leaves_what_somebody_else_has_put_there(
    registry: TestRegistry, store: ImageStore, data_dir: Path
) -> None:
    registry.push("swept:1", [layer(*busybox_root(), entry("swept"))])
    image = await store.pull(f"{registry.host}/swept:1")
    digest = image.digest.removeprefix("sha256:")
    (data_dir / "images/lost+found").mkdir()
    (data_dir / "images/README").write_text("theirs")
    (data_dir / "blobs/sha256/README").write_text("theirs")
    os.utime(data_dir / "blobs/sha256/README", (0, 0))
    half = [data_dir / "blobs/sha256" / name for name in (f".{digest}.4711", f".trash-{digest}.0123")]
    for one in half:
        one.write_text("half")
    (data_dir / "images/.tmp-half").mkdir()
    await store.sweep()
    assert {path.name for path in (data_dir / "images").iterdir()} == {digest, "lost+found", "README"}
    assert (data_dir / "blobs/sha256/README").is_file()
    assert not any(one.exists() for one in half)
