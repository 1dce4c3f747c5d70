"""Which QEMU is taken."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime.config import Config
from runtime.errors import HostUnable
from runtime.vm import qemu

if TYPE_CHECKING:
    from pathlib import Path


def program(path: Path, *, age_s: float = 0) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho QEMU emulator version 7.2.0 '(of a test)'\necho Copyright\n")
    path.chmod(0o755)
    os.utime(path, (1e9 - age_s, 1e9 - age_s))
    return path


def test_the_newest_that_was_built_goes_before_the_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = program(tmp_path / "bin" / qemu.PROGRAM)
    monkeypatch.setenv("PATH", f"{theirs.parent}:/usr/bin:/bin")
    config = Config(qemu_dir=tmp_path / "built")
    path, reason = qemu.find(config)
    assert path == str(theirs)
    assert "make qemu" in reason
    program(tmp_path / "built/7.2-2/bin" / qemu.PROGRAM, age_s=60)
    newest = program(tmp_path / "built/7.2-10/bin" / qemu.PROGRAM, age_s=10)
    program(tmp_path / "built/.new/bin" / qemu.PROGRAM)
    assert qemu.find(config) == (str(newest), f"built by 'make qemu', in {tmp_path}/built")
    path, reason = qemu.find(Config(qemu_dir=tmp_path / "built", qemu=str(theirs)))
    assert path == str(theirs)
    assert "HYPER_QEMU" in reason


def test_one_that_is_named_and_missing_is_not_replaced(tmp_path: Path) -> None:
    program(tmp_path / "7.2/bin" / qemu.PROGRAM)
    with pytest.raises(HostUnable, match="qemu-nosuch is not on this host"):
        qemu.find(Config(qemu_dir=tmp_path, qemu="qemu-nosuch"))


async def test_its_version_is_asked_for_once(tmp_path: Path) -> None:
    memory = tmp_path / "version.json"
    asked = tmp_path / "asked"
    good = program(tmp_path / "bin/good")
    good.write_text(f"{good.read_text()}echo >> {asked}\n")
    for _ in range(2):
        assert await qemu.version(str(good), memory, os.getuid()) == "7.2.0 (of a test)"
    assert len(asked.read_text().splitlines()) == 1
    good.write_text(good.read_text().replace("7.2.0", "7.2.1"))
    assert await qemu.version(str(good), memory, os.getuid()) == "7.2.1 (of a test)", "another program by the same name"
    memory.write_text("[]")
    assert await qemu.version(str(good), memory, os.getuid()) == "7.2.1 (of a test)"


async def test_one_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostUnable, match="does not run"):
        await qemu.version("/bin/false", tmp_path / "version.json", os.getuid())
    assert not list(tmp_path.iterdir())


async def test_one_that_only_root_can_reach_is_refused(tmp_path: Path) -> None:
    hidden = program(tmp_path / "of root/bin" / qemu.PROGRAM)
    (tmp_path / "of root").chmod(0o700)
    with pytest.raises(HostUnable, match="must run as user 905100"):
        await qemu.version(str(hidden), tmp_path / "version.json", 905_100)
