"""Templates that are not there yet: on disk, being built, or not to be built for now."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import disks
from runtime.errors import GuestFailed, HostUnable
from runtime.vm import launch, machine, template
from runtime.vm.template import Templates

if TYPE_CHECKING:
    from runtime.vm.launch import Root
    from runtime.vm.machine import Shape

SHAPE: Any = None


class Failing(Templates):
    """No build of it succeeds, and none is looked for on disk."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Any, 0, Any)
        self.tries = 0

    def key(self, shape: Shape, root: Root | None = None) -> str:
        return "one"

    def _load(self, key: str, shape: Shape, root: Root | None) -> None:
        return None

    async def _build(self, key: str, shape: Shape, root: Root | None) -> template.Template:
        self.tries += 1
        await asyncio.sleep(0)
        raise HostUnable(f"no tap, try {self.tries}")


async def test_a_template_that_failed_is_built_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(template, "time", SimpleNamespace(monotonic=lambda: clock.now))
    templates = Failing()
    for _ in range(2):
        with pytest.raises(GuestFailed, match="template failed: no tap, try 1"):
            await templates.settled(SHAPE)
    clock.now += 59
    assert await templates.get(SHAPE) == (None, "template failed: no tap, try 1")
    clock.now += 2
    templates.prepare(SHAPE)
    assert await templates.get(SHAPE) == (None, "template is being built")
    with pytest.raises(GuestFailed, match="try 2"):
        await templates.settled(SHAPE)


async def test_one_on_disk_is_waited_for() -> None:
    class OnDisk(Failing):
        def _load(self, key: str, shape: Shape, root: Root | None) -> Any:
            time.sleep(0.05)
            return "loaded"

    assert await OnDisk().get(SHAPE) == ("loaded", None)


async def test_one_on_disk_has_the_layer_that_its_guest_has_mounted_or_is_built_anew(tmp_path: Path) -> None:
    shape, size = machine.Shape(1 << 20, 1, "tcg"), 16 << 20
    kernel = SimpleNamespace(key="kernel", needs_acpi=False)
    host: Any = SimpleNamespace(kernel=kernel, qemu_version="7", tsc_khz=1000)
    templates = Templates(tmp_path, host, 0, Any, size)
    assert templates.key(shape) != Templates(tmp_path, host, 0, Any, 2 * size).key(shape)
    saved = tmp_path / "one"
    saved.mkdir()
    (saved / "meta.json").write_text('{"tsc_khz": 1000}')
    (saved / "ram").write_bytes(bytes(1 << 20))
    (saved / "state").touch()
    assert templates._load("one", shape, None) is None, "without its layer it is of no use"
    await disks.make_writable(saved / "layer", size)
    found = templates._load("one", shape, None)
    assert found is not None
    os.close(found.ram)
    assert found.layer == disks.read_content(saved / "layer")
    assert found.layer.size_bytes == size


def test_what_no_start_can_use_any_more_is_removed(tmp_path: Path) -> None:
    def templates(version: str) -> Templates:
        kernel = SimpleNamespace(key="kernel", needs_acpi=False)
        host: Any = SimpleNamespace(kernel=kernel, qemu_version=version, tsc_khz=1000)
        return Templates(tmp_path / "templates", host, 0, Any, None)

    templates("7").sweep()  # there is nothing yet
    for name, about in {
        "a" * 24: json.dumps({"made_with": template._digest(templates("7")._made_with())}),
        "b" * 24: json.dumps({"made_with": template._digest(templates("6")._made_with())}),
        "c" * 24: '{"tsc_khz": 1000}',
        "d" * 24: json.dumps({"made_with": template._digest(templates("7")._made_with()), "image": "/nowhere"}),
        f".{'e' * 24}.123": "",
        "lost+found": "",
    }.items():
        (tmp_path / "templates" / name).mkdir(parents=True)
        (tmp_path / "templates" / name / "meta.json").write_text(about)
    templates("7").sweep()
    assert {one.name for one in (tmp_path / "templates").iterdir()} == {"a" * 24, "lost+found"}


async def test_an_image_has_one_of_its_own_when_it_is_asked_for_again_and_the_last_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(template, "_LET_GO_S", 0.005)

    class Built(Templates):
        def _load(self, key: str, shape: Shape, root: Root | None) -> None:
            return None

        async def _build(self, key: str, shape: Shape, root: Root | None) -> launch.Template:
            assert root is not None
            made.append(root.image.name)
            (tmp_path / "templates" / key).mkdir(parents=True)
            return launch.Template(key, shape, os.open("/dev/null", os.O_RDONLY), tmp_path, None, root.image)

    kernel = SimpleNamespace(key="kernel", needs_acpi=False)
    host: Any = SimpleNamespace(kernel=kernel, qemu_version="7", tsc_khz=1000)
    templates = Built(tmp_path / "templates", host, 0, Any, 1, images=2)
    shape = machine.Shape(1 << 20, 1, "tcg")

    async def asked(name: str) -> str | None:
        found = templates.of_image(shape, launch.Root(tmp_path / name, "sh", ""))
        await asyncio.sleep(0.02)
        return found.image.name if found and found.image else None

    assert await asked("gone") is None
    for name in "abc":
        (tmp_path / name).touch()
        assert [await asked(name) for _ in range(3)] == [None, None, name]
    assert (made, [one.image.name for one in templates.ready() if one.image]) == (["a", "b", "c"], ["b", "c"])
    assert len(list((tmp_path / "templates").iterdir())) == 2
    assert await asked("b") == "b"
    assert await asked("a") is None
    assert [one.image.name for one in templates.ready() if one.image] == ["b", "a"], "c was used longest ago"
    (tmp_path / "a").unlink()
    (tmp_path / "a").touch()
    assert [await asked("a") for _ in range(3)] == [None, None, "a"], "another file is another image"
    await templates.close()


async def test_what_is_given_up_stays_for_a_clone_that_is_being_started(tmp_path: Path) -> None:
    kernel = SimpleNamespace(key="kernel", needs_acpi=False)
    host: Any = SimpleNamespace(kernel=kernel, qemu_version="7", tsc_khz=1000)
    templates = Templates(tmp_path, host, 0, Any, 1, images=1)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / f"image-{name}").touch()
        ram = os.open("/dev/null", os.O_RDONLY)
        templates._ready[name] = launch.Template(name, SHAPE, ram, tmp_path, None, tmp_path / f"image-{name}")
    templates._give_up()
    assert [one.key for one in templates.ready()] == ["second"]
    assert (tmp_path / "first").exists()
    await templates.close()
    assert not (tmp_path / "first").exists()
    assert (tmp_path / "second").exists()


async def test_one_whose_clone_does_not_come_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[object] = []

    class Groups:
        def create(self, name: str) -> str:
            return name

        async def remove(self, groups: object) -> None:
            removed.append(groups)

    class Broken(Templates):
        async def _boot_and_save(self, order: launch.Order, root: Root | None, ram: int, state: int) -> None:
            os.truncate(ram, order.shape.ram_bytes)

        async def _verify(self, template: launch.Template, order: object) -> None:
            raise GuestFailed("it did not come up")

    monkeypatch.setattr(template.cgroups, "directories", lambda _: ())
    kernel = SimpleNamespace(key="kernel", needs_acpi=False)
    host: Any = SimpleNamespace(kernel=kernel, qemu_version="7", tsc_khz=1000)
    groups: Any = Groups()
    templates = Broken(tmp_path, host, 0, groups)
    before = list(Path("/proc/self/fd").iterdir())
    with pytest.raises(GuestFailed):
        await templates.settled(machine.Shape(1 << 20, 1, "tcg"))
    assert list(Path("/proc/self/fd").iterdir()) == before
    assert not list(tmp_path.iterdir())
    assert len(removed) == 1
