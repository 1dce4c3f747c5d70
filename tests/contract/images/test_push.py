"""Push and login, on a real registry with TLS and a password, by the real skopeo."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.errors import Conflict, ImageUnknown, InvalidInput, RuntimeFault, Upstream
from runtime.images import ImageStore, Progress, distribution
from runtime.images.access import Access, Login
from runtime.images.push import push
from tests.contract.images.conftest import free_port, leftovers
from tests.contract.images.layouts import busybox_root, entry, layer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.images.conftest import TestRegistry


def raw(host: str, name: str) -> bytes:
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/{name}"], check=True, capture_output=True
    )
    return done.stdout


@pytest.mark.parametrize(("form", "compression"), [("oci", "gzip"), ("oci", "none"), ("oci", "zstd"), ("v2s2", "gzip")])
async def test_a_digest_survives_pull_and_push(
    registry: TestRegistry, store: ImageStore, data_dir: Path, form: str, compression: str
) -> None:
    content = layer(*busybox_root(), entry(f"in-{form}-{compression}", data=b"x" * 5000))
    registry.push("push/from:1", [content], compression=compression, config={"Healthcheck": {"Test": ["CMD", "x"]}})
    if form == "v2s2":
        registry.copy(f"docker://{registry.host}/push/from:1", "push/docker:1", "--src-tls-verify=false", "-f", form)
    source = "push/docker:1" if form == "v2s2" else "push/from:1"
    image = await store.pull(f"{registry.host}/{source}")
    target = f"{registry.host}/push/to-{form}-{compression}:2"
    await store.tag(f"{registry.host}/{source}", target)
    events: list[Progress] = []
    await push(store, target, progress=events.append)
    sent = raw(registry.host, f"push/to-{form}-{compression}:2")
    assert sent == raw(registry.host, source)
    assert ("docker" in json.loads(sent)["mediaType"]) == (form == "v2s2")
    assert {event.status for event in events} == {"uploading", "done"}
    assert (
        events[-1].current
        == events[-1].total
        == sum(one["size"] for one in json.loads(sent)["layers"]) + json.loads(sent)["config"]["size"]
    )
    other = ImageStore(data_dir.parent / "other")
    assert (await other.pull(target)).digest == image.digest
    other.close()
    assert leftovers(data_dir) == []


async def test_credentials_and_certificates(
    registry: TestRegistry, store: ImageStore, data_dir: Path, locked_registry: tuple[str, Path]
) -> None:
    host, ca = locked_registry
    registry.push("locked:1", [layer(*busybox_root(), entry("locked"))])
    image = await store.pull(f"{registry.host}/locked:1")
    name = f"{host}/locked:1"
    await store.tag(image.digest, name)
    good = {host: Login("robot", "secret")}
    with pytest.raises(Upstream, match="its certificate is not trusted: give its CA with --cert-dir"):
        await push(store, name, access=Access(tls_verify=True, logins=good))
    for tried in ({}, {host: Login("robot", "wrong-S3cr3t")}, {"elsewhere:1": Login("robot", "secret")}):
        with pytest.raises(Upstream, match=f"gives no access to .*hyper login {host}") as caught:
            await push(store, name, access=Access(tls_verify=True, cert_dir=ca, logins=tried))
        assert "S3cr3t" not in str(caught.value)
    access = Access(tls_verify=True, cert_dir=ca, logins=good)
    assert (await push(store, name, access=access)).digest == image.digest
    other = ImageStore(data_dir.parent / "other")
    with pytest.raises(ImageUnknown, match="hyper login"):
        await other.pull(name, access=Access(tls_verify=False))
    assert (await other.pull(name, access=access)).digest == image.digest
    other.close()
    for path in data_dir.parent.rglob("*"):
        assert not path.is_file() or b"cm9ib3Q6c2VjcmV0" not in path.read_bytes(), f"{path} keeps the password"


async def test_login_is_tried_and_repositories_are_listed(locked_registry: tuple[str, Path]) -> None:
    host, ca = locked_registry
    good, access = Login("robot", "secret"), Access(tls_verify=True, cert_dir=ca)
    await distribution.check_login(host, good, access, tls_verify=True)
    with pytest.raises(Upstream, match="does not take this user name and password"):
        await distribution.check_login(host, Login("robot", "wrong"), access, tls_verify=True)
    with pytest.raises(Upstream, match="cannot be reached"):
        await distribution.check_login(host, good, Access(), tls_verify=True)
    with pytest.raises(Upstream, match="cannot be reached"):
        await distribution.check_login(f"127.0.0.1:{free_port()}", good, Access(), tls_verify=False)
    with pytest.raises(Upstream, match="log in with hyper login"):
        await distribution.search(f"{host}/x", 5, access, tls_verify=True)


async def test_search(registry: TestRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("find/one:1", "find/two:1", "other/x:1"):
        registry.push(name, [layer(*busybox_root())])
    found = await distribution.search(f"{registry.host}/find/", 25, Access(), tls_verify=False)
    assert [one["name"] for one in found] == [f"{registry.host}/find/one", f"{registry.host}/find/two"]
    assert len(await distribution.search(f"{registry.host}/", 1, Access(), tls_verify=False)) == 1
    monkeypatch.setattr(distribution, "HUB_SEARCH", f"https://127.0.0.1:{free_port()}/v1/search")
    with pytest.raises(Upstream, match=r"Docker Hub cannot be searched: .* write host:port/nginx"):
        await distribution.search("nginx", 5, Access(), tls_verify=True)


async def test_what_cannot_be_pushed(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    registry.push("no:1", [layer(*busybox_root(), entry("no"))])
    image = await store.pull(f"{registry.host}/no:1")
    nowhere = f"127.0.0.1:{free_port()}/no:1"
    await store.tag(image.digest, nowhere)
    with pytest.raises(Upstream, match="nothing listens there"):
        await push(store, nowhere)
    with pytest.raises(ImageUnknown):
        await push(store, f"{registry.host}/never:1")
    with pytest.raises(InvalidInput, match="push a tag"):
        await push(store, f"{registry.host}/no@{image.digest}")
    _, parts, _ = store.parts(image)
    store.blobs.path(parts.layers[0].digest).unlink()
    with pytest.raises(Conflict, match=f"{parts.layers[0].digest} of it is not here; pull it again"):
        await push(store, f"{registry.host}/no:1")
    assert (await store.pull(f"{registry.host}/no:1")).digest == image.digest  # which brings it back
    await push(store, f"{registry.host}/no:1")
    assert leftovers(data_dir) == []


async def test_a_cancelled_push_leaves_nothing(registry: TestRegistry, store: ImageStore, data_dir: Path) -> None:
    registry.push("stuck:1", [layer(*busybox_root(), entry("stuck"))])
    image = await store.pull(f"{registry.host}/stuck:1")
    arrived = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/stuck:1"
    await store.tag(image.digest, name)
    task = asyncio.create_task(push(store, name))
    await arrived.wait()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, RuntimeFault)):
        await task
    server.close()
    await server.wait_closed()
    assert leftovers(data_dir) == []
