"""Which directories of the host a container may have, and in what a specification they differ from volumes."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import ValidationError

from runtime import workload
from runtime.cli import dockerlike, mounts
from runtime.errors import HostUnable, InvalidInput
from runtime.spec import MAX_HOST_DIRECTORIES, Spec, VolumeSpec
from runtime.vm import launch, machine, sharing
from runtime.vm.kernel import Kernel
from runtime.volumes import Volumes, host_directories

if TYPE_CHECKING:
    from runtime.life import Container


def spec(*volumes: dict[str, Any]) -> Spec:
    return Spec.model_validate({"image": "x", "volumes": volumes})


def bind(source: Path | str, **more: Any) -> VolumeSpec:
    return VolumeSpec(source=str(source), target="/d", **more)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/host/dir:/d", "/host/dir"),
        ("./dir:/d:ro", "{cwd}/dir"),
        ("../dir:/d", "{above}/dir"),
        (".:/d", "{cwd}"),
        ("~/dir:/d", "/home/me/dir"),
        ("name:/d", "name"),
    ],
)
def test_relative_paths_are_the_clients(
    text: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert mounts.volume(text)["source"] == source.format(cwd=tmp_path, above=tmp_path.parent)


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ({"source": "some/dir", "target": "/d"}, "no absolute path"),
        ({"source": "./dir", "target": "/d"}, "no absolute path"),
        ({"source": "/a\0b", "target": "/d"}, "no absolute path"),
        ({"source": "/a", "target": "/d", "nocopy": True}, "nocopy"),
        ({"source": "/a", "target": "/proc/x"}, "outside /proc"),
    ],
)
def test_a_source_that_is_wrong_is_named(volume: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(volume)


def test_as_many_as_the_agent_takes() -> None:
    volumes = [{"source": "/a", "target": f"/d{number}"} for number in range(MAX_HOST_DIRECTORIES)]
    assert len(spec(*volumes, {"target": "/x"}, {"target": "/y"}).volumes) == MAX_HOST_DIRECTORIES + 2
    with pytest.raises(ValidationError, match="more than 32 host directories"):
        spec(*volumes, {"source": "/a", "target": "/more"})


def test_a_path_is_cleaned_as_docker_does() -> None:
    assert bind("//a/./b/../c/").source == "/a/c"


async def test_they_are_no_volumes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    volumes = Volumes(tmp_path / "data", 32 << 20, list)
    try:
        given = spec({"source": "/usr", "target": "/a"}, {"source": "/usr", "target": "/b"}, {"target": "/c"})
        found, anonymous = volumes.resolve(given)
        assert len(anonymous) == 1
        await volumes.ensure(found, anonymous)
        assert [one.name for one in volumes.all()] == list(anonymous)
        record = SimpleNamespace(name="one", lifecycle=SimpleNamespace(created_at=0.0))
        await volumes.forget(cast("Container", SimpleNamespace(spec=found, record=record)))
        assert volumes.all() == []
    finally:
        volumes.close()


def test_what_the_agent_is_told_is_in_the_order_of_the_places(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(2048))  # its superblock is looked at
    given = spec(
        {"source": "/host", "target": "/a/b", "read_only": True},
        {"source": "disk", "target": "/a"},
        {"source": "/other", "target": "/c"},
        {"source": "second", "target": "/a/b/c"},
    )
    asked = workload.mounts(given, (launch.Volume(disk, read_only=False), launch.Volume(disk, read_only=True)))
    assert [(one["path"], one["device"], one["directory"], one["read_only"]) for one in asked] == [
        ("/a", "vdc", "data", False),
        ("/c", machine.SHARED_TAG, "0", False),
        ("/a/b", machine.SHARED_TAG, "1", True),
        ("/a/b/c", "vdd", "data", False),
    ]
    assert [mount.source for mount in given.host_directories] == ["/other", "/host"], "as they are numbered"


def test_the_daemons_directories_are_kept_from_containers(tmp_path: Path) -> None:
    own = tmp_path / "lib" / "hyper"
    (own / "containers").mkdir(parents=True)
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "beside").mkdir()
    for path in ("/", str(tmp_path), str(own), f"{own}/containers", f"{own}/not/there", f"{tmp_path}/link"):
        with pytest.raises(InvalidInput, match="the daemon's own"):
            host_directories.check(path, [own])
        with pytest.raises(InvalidInput, match="the daemon's own"):
            host_directories.open_share(bind(path), [own])
    assert not (own / "not").exists()
    host_directories.check(f"{tmp_path}/beside", [own])
    host_directories.check(f"{tmp_path}/lib/hyper2", [own])


def test_what_is_not_there_is_made_unless_it_must_be(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with pytest.raises(InvalidInput, match="make it"):
        host_directories.open_share(bind(place, create=False), [])
    assert list(tmp_path.iterdir()) == []
    previous = os.umask(0o077)
    try:
        share = host_directories.open_share(bind(place), [])
    finally:
        os.umask(previous)
    os.close(share.fd)
    assert [path.stat().st_mode & 0o7777 for path in (place.parent, place)] == [0o755, 0o755]


def test_what_cannot_be_shared_is_refused_with_the_reason(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="neither a directory nor a file"):
        host_directories.check(str(tmp_path / "socket"), [])
    with pytest.raises(HostUnable, match="Not a directory"):
        host_directories.check(str(tmp_path / "file" / "below"), [])
    before = _descriptors()
    with pytest.raises(InvalidInput, match="neither"):
        host_directories.open_shares(
            spec({"source": str(tmp_path), "target": "/a"}, {"source": str(tmp_path / "socket"), "target": "/b"}), []
        )
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "read_only", "allowed"),
    [
        (0, 0, 0o700, False, True),
        (65535, 65535, 0o700, False, True),
        (65536, 0, 0o755, False, False),
        (0, 65536, 0o755, False, False),
        (65536, 0, 0o755, True, True),
        (65536, 0, 0o750, True, False),
    ],
)
def test_an_owner_that_no_guest_has_is_refused_unless_everybody_may_read(
    uid: int, gid: int, mode: int, read_only: bool, allowed: bool
) -> None:
    status = os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    with contextlib.nullcontext() if allowed else pytest.raises(InvalidInput, match=f"belongs to {uid}:{gid}"):
        host_directories._check_owner(status, bind("/a", read_only=read_only))


def test_what_everybody_may_read_needs_no_map(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    for path, mode, read_only, needed in (
        (tmp_path, 0o755, True, False),
        (tmp_path, 0o755, False, True),
        (tmp_path, 0o754, True, True),
        (file, 0o644, True, False),
        (file, 0o640, True, True),
    ):
        path.chmod(mode)
        share = host_directories.open_share(bind(path, read_only=read_only), [])
        assert share.needs_map == needed, (path, oct(mode), read_only)
        os.close(share.fd)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("0 map 22", "no idmapped mounts"),
        ("0 map 1", ":ro"),
        ("0 open 38", "Linux 5.12"),
        ("0 mount 28", "No space left on device (mount)"),
        ("", "it was killed"),
    ],
)
def test_a_mount_that_fails_is_explained(told: str, said: str) -> None:
    assert said in sharing._explained(told, "it was killed", [sharing.Share(-1, "/there", read_only=False)])


def test_a_vm_shares_by_9p_if_its_kernel_can(tmp_path: Path) -> None:
    files = machine.Files(*[3] * 8)
    shape = machine.Shape(1 << 27, 1, "tcg")
    for lacks, tags in (((), 1), (("9p",), 0)):
        kernel = Kernel("6.1", tmp_path, tmp_path, "key", needs_acpi=False, lacks=lacks, reason="")
        given = machine.arguments("x", shape, files, "clone", kernel, "")
        assert sum(machine.SHARED_TAG in word for word in given) == tags
        devices = [word.partition(",")[0] for word in given if word.startswith("virtio-")]
        assert sum(name.endswith("-device") for name in devices) == 7 + tags, "there are eight places"


def test_docker_calls_them_binds() -> None:
    one = {"id": "a", "name": "n", "state": "running", "spec": spec(
        {"source": "/host", "target": "/d", "read_only": True}, {"source": "disk", "target": "/e"}
    ).model_dump()}  # fmt: skip
    first, second = dockerlike.shown(one)["Mounts"]
    assert (first["Type"], first["Source"], first["Destination"], first["RW"]) == ("bind", "/host", "/d", False)
    assert (second["Type"], second["Name"], second["RW"]) == ("volume", "disk", True)
