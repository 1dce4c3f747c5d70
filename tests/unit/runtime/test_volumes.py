"""Volumes without VMs: names, claims, sparse copies, crashes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import AsyncMock

import pytest

from runtime import disks
from runtime.api.volumes import VolumesApi
from runtime.cli import mounts
from runtime.errors import Conflict, HostUnable, InvalidInput, NameInUse, NotFound
from runtime.images.image import ImageConfig
from runtime.spec import HealthSpec, Spec
from runtime.volumes import Volumes, commit, copying
from runtime.volumes.commit import _changed, _merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.life import Container

SIZE = 32 << 20


class Place:
    """Volumes over a directory, with containers that are only told of."""

    def __init__(self, directory: Path) -> None:
        self.containers: list[Container] = []
        self.directory = directory
        self.volumes = Volumes(directory, SIZE, lambda: self.containers)

    def container(self, name: str, state: str, *volumes: dict[str, Any]) -> Container:
        spec = Spec.model_validate({"image": "x", "volumes": volumes})
        live = state in {"starting", "running", "paused", "stopping"}
        record = SimpleNamespace(name=name, lifecycle=SimpleNamespace(created_at=time.time()))
        one = SimpleNamespace(id=name, spec=spec, state=state, live=live, record=record)
        self.containers.append(cast("Container", one))
        return self.containers[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.volumes.close()


@pytest.mark.parametrize(
    ("text", "source", "target", "read_only", "nocopy"),
    [
        ("/data", None, "/data", False, False),
        ("/data:ro", None, "/data", True, False),
        ("name:/data", "name", "/data", False, False),
        ("name:/data:ro,nocopy", "name", "/data", True, True),
        ("/host:/data:rw", "/host", "/data", False, False),
    ],
)
def test_a_volume_option(text: str, source: str | None, target: str, read_only: bool, nocopy: bool) -> None:
    found = mounts.volume(text)
    assert found == {"source": source, "target": target, "read_only": read_only, "nocopy": nocopy}


@pytest.mark.parametrize("text", ["", "data", "a:b", "a:/b:c", "a:/b:ro:rw", ":", "a:"])
def test_a_wrong_volume_option(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|option"):
        mounts.volume(text)


def test_a_sparse_copy_is_equal_and_sparse(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
        for offset in (0, 10_000_000, (1 << 30) - 5000):
            os.pwrite(file.fileno(), os.urandom(5000), offset)
    copying.copy(source, target)
    assert target.stat().st_size == 1 << 30
    assert disks.used_bytes(target) < 1 << 20
    with source.open("rb") as one, target.open("rb") as other:
        for offset in (0, 9_990_000, (1 << 30) - 20_000):
            assert os.pread(one.fileno(), 20_000, offset) == os.pread(other.fileno(), 20_000, offset)


async def test_volumes_are_made_once_and_kept(place: Place) -> None:
    made = await place.volumes.create("data", labels={"a": "b"})
    assert await place.volumes.create("data") == made
    assert place.volumes.file("data").stat().st_size == SIZE
    assert place.volumes.file("data").stat().st_mode & 0o777 == 0o600
    assert not disks.needs_recovery(place.volumes.file("data"))
    with pytest.raises(NameInUse):
        await place.volumes.create("data", size_bytes=SIZE * 2)
    with pytest.raises(NotFound):
        await place.volumes.create("other", snapshot="nosuch")
    again = Place(place.directory)
    assert again.volumes.all() == [made]
    again.volumes.close()


def mounts_of(spec: Spec) -> list[dict[str, Any]]:
    return [mount.model_dump() for mount in Spec.model_validate_json(spec.model_dump_json()).volumes]


async def test_a_volume_that_the_user_named_outlives_its_container_however_it_was_made(place: Place) -> None:
    named = (await place.volumes.create(anonymous=True)).name
    given = [{"source": named, "target": "/named", "generated": True}, {"target": "/own"}]
    spec, made = place.volumes.resolve(Spec.model_validate({"image": "x", "volumes": given}))
    one = place.container("one", "exited", *mounts_of(spec))
    await place.volumes.ensure(spec, made)
    await place.volumes.forget(one)
    assert [volume.name for volume in place.volumes.all()] == [named]


async def test_of_an_older_container_goes_what_was_made_with_it(place: Place) -> None:
    named = (await place.volumes.create(anonymous=True)).name
    own = "ab" * 32
    one = place.container("one", "exited", {"source": named, "target": "/named"}, {"source": own, "target": "/own"})
    await place.volumes.ensure(one.spec, frozenset({own}))
    assert [mount.generated for mount in one.spec.disks] == [None, None], "as older versions wrote it"
    await place.volumes.forget(one)
    assert [volume.name for volume in place.volumes.all()] == [named]


async def test_one_vm_writes_or_several_read(place: Place) -> None:
    await place.volumes.create("data")
    writer = place.container("writer", "starting", {"source": "data", "target": "/d"})
    assert [one.read_only for one in place.volumes.attach(writer)] == [False]
    reader = place.container("reader", "starting", {"source": "data", "target": "/d", "read_only": True})
    with pytest.raises(Conflict, match="in use by writer"):
        place.volumes.attach(reader)
    place.containers.remove(writer)
    assert not place.volumes.attach(reader)[0].read_only, "the first one fills it"
    place.volumes.attached(reader)
    assert place.volumes.attach(reader)[0].read_only
    second = place.container("second", "starting", {"source": "data", "target": "/e", "read_only": True})
    assert place.volumes.attach(second)[0].read_only
    third = place.container("third", "starting", {"source": "data", "target": "/e"})
    with pytest.raises(Conflict, match="reader"):
        place.volumes.attach(third)
    with pytest.raises(Conflict, match="reader, second, third"):
        await place.volumes.remove("data")


async def test_a_starting_container_that_has_claimed_nothing_is_in_nobodys_way(place: Place) -> None:
    await place.volumes.create("data")
    one = place.container("one", "starting", {"source": "data", "target": "/d"})
    other = place.container("other", "starting", {"source": "data", "target": "/d"})
    place.volumes.attach(one)
    with pytest.raises(Conflict, match="in use by one"):
        place.volumes.attach(other)


async def test_a_volume_that_was_not_unmounted_is_not_read_only(place: Place) -> None:
    await place.volumes.create("data")
    reader = place.container("reader", "starting", {"source": "data", "target": "/d", "read_only": True})
    place.volumes.attached(reader)
    with place.volumes.file("data").open("r+b") as file:
        file.seek(1024 + 0x60)
        flags = file.read(4)[0] | 0x4
        file.seek(1024 + 0x60)
        file.write(bytes([flags]))
    with pytest.raises(Conflict, match="not unmounted"):
        place.volumes.attach(reader)


async def test_snapshots_are_copies(place: Place) -> None:
    await place.volumes.create("data")
    with place.volumes.file("data").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"then")
    kept = await place.volumes.take_snapshot("data", "then")
    with pytest.raises(NameInUse):
        await place.volumes.take_snapshot("data", "then")
    await place.volumes.remove("data")
    made = await place.volumes.create("again", snapshot="then")
    assert (made.snapshot, made.size_bytes, kept.volume) == ("then", SIZE, "data")
    with place.volumes.file("again").open("rb") as file:
        file.seek(20 << 20)
        assert file.read(4) == b"then"
    with pytest.raises(InvalidInput):
        await place.volumes.create("more", snapshot="then", size_bytes=2 * SIZE)
    await place.volumes.remove_snapshot("then")
    assert place.volumes.snapshots() == []


async def test_a_copy_that_fails_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.volumes.create("data")

    def broken(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copying, "copy", broken)
    with pytest.raises(copying.DiskFull, match="no space"):
        await place.volumes.take_snapshot("data", "half")
    assert list((place.directory / "snapshots").iterdir()) == []
    assert place.volumes.snapshots() == []
    monkeypatch.undo()
    await place.volumes.take_snapshot("data", "half")


async def test_what_somebody_else_has_put_there_is_not_swept(place: Place) -> None:
    for path in ("volumes/lost+found", "volumes/backup", "snapshots/.Trash"):
        (place.directory / path).mkdir()
    (place.directory / "volumes/backup/volume.ext4").write_text("a copy")
    (place.directory / "volumes/backup/notes").write_text("of what")
    (place.directory / "volumes/README").write_text("no directory")
    place.volumes.sweep()
    assert {path.name for path in (place.directory / "volumes").iterdir()} == {"lost+found", "backup", "README"}
    assert len(list((place.directory / "volumes/backup").iterdir())) == 2
    assert (place.directory / "snapshots/.Trash").is_dir()


async def test_what_a_crash_leaves_is_swept(place: Place) -> None:
    await place.volumes.create("data")
    for path in ("volumes/.new-half", "volumes/.gone-half", "snapshots/.new-half"):
        (place.directory / path).mkdir()
    place.volumes.sweep()
    assert [path.name for path in (place.directory / "volumes").iterdir()] == ["data"]
    assert list((place.directory / "snapshots").iterdir()) == []


class Killed(BaseException):
    """The daemon is no more."""


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("what", ["made", "removed"])
@pytest.mark.parametrize("kind", ["volume", "snapshot"])
async def test_what_is_cut_off_after_any_step_is_there_whole_or_not_at_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, what: str, steps: int
) -> None:
    volumes, index = place.volumes, place.volumes._index
    await volumes.create("data")
    if what == "removed":
        await (volumes.create("one") if kind == "volume" else volumes.take_snapshot("data", "one"))
    left = steps

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **named)

        return step

    with monkeypatch.context() as dying:
        for owner, name in ((Path, "rename"), (shutil, "rmtree"), (index, f"put_{kind}"), (index, f"remove_{kind}")):
            dying.setattr(owner, name, mortal(getattr(owner, name)))
        with contextlib.suppress(Killed):
            if what == "removed":
                await (volumes.remove("one") if kind == "volume" else volumes.remove_snapshot("one"))
            else:
                await (volumes.create("one") if kind == "volume" else volumes.take_snapshot("data", "one"))
    volumes.sweep()
    names = {one.name for one in (index.volumes() if kind == "volume" else index.snapshots())}
    assert {path.name for path in (place.directory / f"{kind}s").iterdir()} == names
    if steps in (0, 4):
        assert ("one" in names) == (what == ("removed" if steps == 0 else "made"))
    for name in names:
        assert (place.directory / f"{kind}s" / name / "volume.ext4").stat().st_size == SIZE


async def test_without_their_rows_volumes_stay_and_are_taken_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a database that was lost, or that is an older copy."""
    await place.volumes.create("data")
    await place.volumes.take_snapshot("data", "then")
    with place.volumes.file("data").open("r+b") as file:
        file.write(b"mine")
    place.volumes._index.remove_volume("data")
    place.volumes._index.remove_snapshot("then")
    place.volumes.sweep()
    assert "hyper volume create data" in caplog.text
    assert f"move it to {place.directory}/volumes/ and run 'hyper volume create then'" in caplog.text
    assert place.volumes.all() == []
    await place.volumes.create("other")
    with pytest.raises(NameInUse):
        await place.volumes.take_snapshot("other", "then")
    with pytest.raises(NameInUse):
        await place.volumes.create("data", size_bytes=2 * SIZE)
    again = await place.volumes.create("data")
    assert (again.size_bytes, again.filled) == (SIZE, True)
    assert place.volumes.file("data").read_bytes()[:4] == b"mine"
    assert (place.directory / "snapshots/then/volume.ext4").stat().st_size == SIZE


async def test_a_directory_of_somebody_else_outlives_a_volume_of_its_name(place: Place) -> None:
    (place.directory / "volumes/theirs").mkdir()
    (place.directory / "volumes/theirs/notes").write_text("mine")
    with pytest.raises(HostUnable, match="not empty"):
        await place.volumes.create("theirs")
    assert (place.directory / "volumes/theirs/notes").read_text() == "mine"
    assert place.volumes.all() == []
    assert [path.name for path in (place.directory / "volumes").iterdir()] == ["theirs"]


def test_instructions_change_a_configuration() -> None:
    config = {"Env": ["A=1", "B=2"], "Cmd": ["x"]}
    told = ["ENV A=3", "env C 4", 'CMD ["a", "b"]', "ENTRYPOINT run it", "EXPOSE 80 53/udp", "WORKDIR /w", "LABEL k=v"]
    found = _changed(config, told)
    assert found["Env"] == ["B=2", "A=3", "C=4"]
    assert (found["Cmd"], found["Entrypoint"]) == (["a", "b"], ["/bin/sh", "-c", "run it"])
    assert found["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert (found["WorkingDir"], found["Labels"]) == ("/w", {"k": "v"})
    assert config == {"Env": ["A=1", "B=2"], "Cmd": ["x"]}
    for wrong in ("RUN x", "CMD", 'CMD ["a"', "CMD [1]", 'ENV A="x', "ENV A=1 B", "ENV A", "LABEL =1", "ENV ''"):
        with pytest.raises(InvalidInput):
            _changed({}, [wrong])


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("ENV A=one B=two", {"A": "one", "B": "two"}),
        ("""ENV A="x y" B='$z "q"' C=a\\ b D=""", {"A": "x y", "B": '$z "q"', "C": "a b", "D": ""}),
        ("ENV A x y=z", {"A": "x y=z"}),
        ('ENV A "x y"', {"A": "x y"}),
    ],
)
def test_pairs_are_as_in_a_dockerfile(told: str, found: dict[str, str]) -> None:
    assert _changed({"Env": ["A=old"]}, [told])["Env"] == [f"{name}={value}" for name, value in found.items()]
    assert _changed({}, [told.replace("ENV", "LABEL")])["Labels"] == found


def test_a_new_entrypoint_is_without_the_command_of_the_one_before() -> None:
    config = {"Cmd": ["x"], "Entrypoint": ["y"]}
    assert _changed(config, ['ENTRYPOINT ["z"]']) == {"Entrypoint": ["z"]}
    for told in (['ENTRYPOINT ["z"]', 'CMD ["own"]'], ['CMD ["own"]', 'ENTRYPOINT ["z"]']):
        assert _changed(config, told) == {"Entrypoint": ["z"], "Cmd": ["own"]}
    assert _changed(config, ['CMD ["own"]']) == {"Entrypoint": ["y"], "Cmd": ["own"]}


async def test_an_image_of_a_container_has_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ImageConfig(env=("A=1", "B=2"), cmd=("x",), user="web", healthcheck={"Test": ["CMD", "true"]})
    spec = Spec(image="x", args=("sh", "-c", "y"), env=("B", "C=3"), cwd="/w", health=HealthSpec(test=("NONE",)))
    one = SimpleNamespace(spec=spec, record=SimpleNamespace(image_digest="sha256:0", labels={"team": "shop"}))
    images = SimpleNamespace(resolve=AsyncMock(return_value=SimpleNamespace(config=image)))
    engine: Any = SimpleNamespace(images=images, lives=SimpleNamespace(find=lambda _: one))
    asked = AsyncMock(return_value=SimpleNamespace(to_dict=dict))
    monkeypatch.setattr(commit, "commit", asked)
    await VolumesApi(engine, cast("Any", None)).commit("web")
    of_image = {**image.to_dict(), "Volumes": {"/v": {}}}
    assert _merged(of_image, asked.await_args.kwargs["own"]) == {  # type: ignore[union-attr]  # it was awaited
        "Env": ["C=3", "A=1"], "Cmd": ["sh", "-c", "y"], "User": "web", "WorkingDir": "/w", "Labels": {"team": "shop"},
        "Volumes": {"/v": {}},
    }  # fmt: skip
