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
    config = Config(data_dir=tmp_path / "data")
    path, reason = qemu.find(config)
    assert path == str(theirs)
    assert "make qemu" in reason
    program(tmp_path / "data/qemu/7.2-2/bin" / qemu.PROGRAM, age_s=60)
    newest = program(tmp_path / "data/qemu/7.2-10/bin" / qemu.PROGRAM, age_s=10)
    program(tmp_path / "data/qemu/.new/bin" / qemu.PROGRAM)
    assert qemu.find(config) == (str(newest), f"built by 'make qemu', in {tmp_path}/data/qemu")
    path, reason = qemu.find(Config(data_dir=tmp_path / "data", qemu=str(theirs)))
    assert path == str(theirs)
    assert "HYPER_QEMU" in reason


def test_one_that_is_named_and_missing_is_not_replaced(tmp_path: Path) -> None:
    program(tmp_path / "qemu/7.2/bin" / qemu.PROGRAM)
    with pytest.raises(HostUnable, match="qemu-nosuch is not on this host"):
        qemu.find(Config(data_dir=tmp_path, qemu="qemu-nosuch"))


async def test_its_version(tmp_path: Path) -> None:
    assert await qemu.version(str(program(tmp_path / "bin/good"))) == "7.2.0 (of a test)"
    with pytest.raises(HostUnable, match="does not run"):
        await qemu.version("/bin/false")
