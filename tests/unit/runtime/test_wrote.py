"""When a process last wrote to a file that it has open for both reading and writing, as QEMU has a disk."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from runtime.vm.process import Process

if TYPE_CHECKING:
    from pathlib import Path


def test_disks_count_and_logs_do_not(tmp_path: Path) -> None:
    disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.utime(disk, ns=(1, 1))
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, pass_fds=(disk, log)
    ) as child:
        process = Process.of(child.pid)
        assert process is not None
        os.write(log, b"x")
        assert process.wrote_at_ns() == 1
        os.write(disk, b"x")
        assert process.wrote_at_ns() == os.fstat(disk).st_mtime_ns > 1
        child.communicate()
    assert process.wrote_at_ns() == 0
    os.close(disk)
    os.close(log)
