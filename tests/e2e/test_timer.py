"""A guest whose kernel has a wrong rate for its timer, or none, is booted again, and makes no template."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime import cgroups
from runtime.cgroups import HostCgroups, detect
from runtime.config import Config
from runtime.errors import GuestFailed
from runtime.network import holding
from runtime.vm import kernel, launch, machine, template, tsc
from runtime.vm.timer import TimerWrong
from tests import kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# What makes each kernel have a rate that is wrong: told a wrong one, or to leave the timer alone.
WRONG = {"ours": "lapic_timer_khz=1030000", "distribution": "nolapic_timer"}
FOUND = {"ours": r"off by \+3\.0%", "distribution": "there is none"}


class Place:
    """Where VMs of one kernel are started; `wrong` of them, the next ones, get a wrong timer."""

    def __init__(self, path: Path, directory: Path, groups: HostCgroups, inside: tuple[Path, ...]) -> None:
        self.kind = kernels.name(path)
        found = kernel.find(Config(data_dir=directory, kernel=path))
        self.host = launch.Host("/usr/bin/qemu-system-x86_64", "test", found, tsc.measure_khz())
        self.shape = machine.Shape(192 * 1024**2, 1, "tcg")
        tap, console = f"hyttm{os.getpid() % 100_000}", directory / "console.log"
        self.order = launch.Order("timer", directory / "vm", self.shape, 905_000, inside, tap, None, console)
        self.templates = template.Templates(directory / "templates", self.host, 905_001, groups)
        self.wrong = 0

    def words(self, usual: str, tsc_khz: int) -> str:
        if tsc_khz == 0 or self.wrong == 0:  # of none, a template's key is made
            return usual
        self.wrong -= 1
        return f"{usual} {WRONG[self.kind]}"


@pytest.fixture(params=kernels.present(), ids=kernels.name)
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    groups = HostCgroups(detect(), f"hyper-test-timer-{os.getpid()}")
    inside = groups.create("one")
    one = Place(request.param, tmp_path, groups, cgroups.directories(inside))
    usual = machine.kernel_command_line
    monkeypatch.setattr(
        machine, "kernel_command_line", lambda kernel, khz, accel: one.words(usual(kernel, khz, accel), khz)
    )
    yield one
    await one.templates.close()
    await holding.gone(one.order.tap)
    await groups.remove(inside)
    groups.remove_parent()


async def end(started: launch.Started) -> None:
    started.agent.close()
    await started.process.kill()


@pytest.mark.parametrize("mode", ["cold", "template"])
async def test_it_is_booted_again(
    place: Place, mode: machine.Mode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(launch._TIMER_TOLERANCE, "cold", 0.02)
    place.wrong = 1
    ram = os.memfd_create("test") if mode == "template" else -1
    await end(await launch.start(place.host, place.order, mode, ram=ram))
    assert place.wrong == 0
    assert re.search(FOUND[place.kind] + r", boots left: [24]$", caplog.messages[0])


async def test_it_makes_no_template_if_it_is_wrong_each_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launch._BOOTS, "template", 2)
    place.wrong = 2
    with pytest.raises(GuestFailed, match="template failed: the guest's kernel measured its timer wrongly"):
        await place.templates.settled(place.shape)
    assert place.wrong == 0
    assert not list((place.order.directory.parent / "templates").glob("*"))


async def test_no_vm_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launch._BOOTS, "cold", 1)
    monkeypatch.setitem(launch._TIMER_TOLERANCE, "cold", 0.02)
    place.wrong = 1
    with pytest.raises(TimerWrong) as raised:
        await launch.start(place.host, place.order, "cold")
    assert re.fullmatch(FOUND[place.kind], raised.value.found)
    assert not Path("/sys/class/net", place.order.tap).exists()
    assert not [one for group in place.order.groups for one in (group / "cgroup.procs").read_text().split()]
