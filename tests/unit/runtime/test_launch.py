"""A clone whose guest has a file system mounted never meets another one behind that drive."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import disks
from runtime.errors import GuestFailed
from runtime.vm import hotplug, launch, machine, monitor
from runtime.vm.launch import Order, Template
from runtime.vm.machine import Files, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SIZE, OTHER = 64 << 20, 32 << 20
LAYER = disks.Content(SIZE, ((4096, b"mounted" * 100),))
SHAPE = Shape(1 << 20, 1, "tcg")


class LookedError(Exception):
    """The start has come to QEMU's command line."""


@pytest.fixture
def behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts with a template and a writable layer; returns whether the layer's file is on QEMU's command line."""
    found: dict[str, Any] = {}

    def arguments(name: str, shape: Shape, files: Files, *rest: object) -> list[str]:
        found["fd"] = os.fstat(files.writable) if files.writable >= 0 else None
        raise LookedError

    async def gone(tap: str) -> None:
        pass

    monkeypatch.setattr(launch.machine, "arguments", arguments)
    monkeypatch.setattr(launch.machine, "kernel_command_line", lambda *_: "")
    monkeypatch.setattr(launch.links, "open_tap", lambda tap: os.open(os.devnull, os.O_RDWR))
    monkeypatch.setattr(launch.holding, "gone", gone)
    host: Any = SimpleNamespace(kernel=SimpleNamespace(file=tmp_path / "kernel", initrd=tmp_path / "kernel"), tsc_khz=1)
    (tmp_path / "kernel").touch()
    (tmp_path / "state").touch()

    async def start(file: Path, size_bytes: int, layer: disks.Content | None, *, cold: bool = False) -> bool:
        order = Order(
            "one",
            tmp_path / "vm",
            SHAPE,
            0,
            (),
            "tap",
            None,
            tmp_path / "console",
            writable=file,
            writable_bytes=size_bytes,
        )
        template = None if cold else Template("key", SHAPE, 0, tmp_path / "state", layer)
        with pytest.raises(LookedError):
            await launch.start(host, order, "cold" if cold else "clone", template=template)
        return found["fd"] is not None and os.path.samestat(found["fd"], file.stat())

    return start


async def test_a_new_layer_of_the_usual_size_is_the_one_that_the_guest_has_mounted(behind: Any, tmp_path: Path) -> None:
    assert await behind(tmp_path / "layer", SIZE, LAYER)
    with (tmp_path / "layer").open("rb") as file:
        assert file.read(4096 + 700) == bytes(4096) + b"mounted" * 100
    assert (tmp_path / "layer").stat().st_size == SIZE


async def test_a_layer_that_is_there_is_not_shown_to_a_guest_that_has_another_mounted(
    behind: Any, tmp_path: Path
) -> None:
    await disks.make_writable(tmp_path / "layer", SIZE)
    before = (tmp_path / "layer").read_bytes()
    assert not await behind(tmp_path / "layer", SIZE, LAYER)
    assert (tmp_path / "layer").read_bytes() == before
    # Not even one that such a start has made: somebody may have written to it since.
    assert await behind(tmp_path / "second", SIZE, LAYER)
    assert not await behind(tmp_path / "second", SIZE, LAYER)


async def test_a_layer_of_another_size_is_not_shown_either(behind: Any, tmp_path: Path) -> None:
    assert not await behind(tmp_path / "layer", OTHER, LAYER)
    assert (tmp_path / "layer").stat().st_size == OTHER


async def test_who_has_nothing_mounted_gets_the_file_at_once(behind: Any, tmp_path: Path) -> None:
    assert await behind(tmp_path / "layer", SIZE, None)
    assert await behind(tmp_path / "layer", SIZE, None)
    assert await behind(tmp_path / "cold", SIZE, None, cold=True)


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_file_comes_after_the_guest_has_unmounted(
    refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    class Agent:
        async def call(self, command: str, **arguments: object) -> None:
            done.append(f"{command} {arguments}")
            if refuses:
                raise GuestFailed("busy")

    class Plug:
        async def plug(self, qmp: object, files: tuple[Any, ...]) -> None:
            done.append(f"{files[0].node} {files[0].file.name}")

    @contextlib.asynccontextmanager
    async def opened(directory: Path) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(hotplug, "Plug", Plug)
    monkeypatch.setattr(monitor, "opened", opened)
    agent: Any = Agent()
    if refuses:
        with pytest.raises(GuestFailed):
            await launch._change_layer(tmp_path, agent, tmp_path / "mine")
    else:
        await launch._change_layer(tmp_path, agent, tmp_path / "mine")
    unmounted = "hyper-layer {'writable': None}"
    assert done == ([unmounted] if refuses else [unmounted, "writable mine"])


def test_guards_against_speculation_are_left_out_only_where_they_guard_nothing() -> None:
    kernel: Any = SimpleNamespace(needs_acpi=False)
    assert "mitigations=off" in machine.kernel_command_line(kernel, 1, "tcg").split()
    assert "mitigations" not in machine.kernel_command_line(kernel, 1, "kvm")
