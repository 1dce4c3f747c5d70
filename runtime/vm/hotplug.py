"""Putting real files behind the placeholders of a VM that runs: disks and the log.

The guest's devices stay; what QEMU has behind them changes. A disk's file is opened as a node of its own, and the raw
node that the device reads from is reopened onto it (QMP `add-fd`, `blockdev-add`, `blockdev-reopen`): 3 ms. The log's
port gets another file (`chardev-change`). QEMU may open nothing itself, so each file is handed over as a descriptor.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.qmp import QMPClient

# The sets that the command line makes have small numbers.
_FIRST_FDSET = 100


@dataclass(frozen=True, slots=True)
class Disk:
    """A file for the drive `node` of `runtime.vm.machine`."""

    node: str
    file: Path
    read_only: bool


class Plug:
    """The files of one VM; numbers what it hands over, so that a second set does not meet the first."""

    def __init__(self) -> None:
        self._numbers = itertools.count(_FIRST_FDSET)
        self._behind: dict[str, tuple[str, int]] = {}

    async def disks(self, qmp: QMPClient, *disks: Disk) -> None:
        """Put the files behind their drives; what was there before is closed.

        Raises:
            OSError: a file cannot be opened.
            QMPError: QEMU refused.
        """
        options: list[dict[str, Any]] = []
        before = [self._behind[disk.node] for disk in disks if disk.node in self._behind]
        for disk in disks:
            number = await self._hand_over(qmp, disk.file, os.O_RDONLY if disk.read_only else os.O_RDWR)
            node = f"{disk.node}-{number}"
            await qmp.execute(
                "blockdev-add",
                {
                    "driver": "file",
                    "node-name": node,
                    "filename": f"/dev/fdset/{number}",
                    "read-only": disk.read_only,
                    "auto-read-only": False,
                    "discard": "unmap",
                    "locking": "off",
                },
            )
            self._behind[disk.node] = (node, number)
            raw = {"driver": "raw", "node-name": disk.node, "file": node, "read-only": disk.read_only}
            options.append({**raw, "discard": "unmap"})
        await qmp.execute("blockdev-reopen", {"options": options})
        for node, number in before:
            await qmp.execute("blockdev-del", {"node-name": node})
            await qmp.execute("remove-fd", {"fdset-id": number})

    async def log(self, qmp: QMPClient, file: Path) -> None:
        """Let what the guest writes to its log port be appended to the file from now on.

        Raises:
            OSError, QMPError: as in `disks`.
        """
        number = await self._hand_over(qmp, file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        backend = {"type": "file", "data": {"out": f"/dev/fdset/{number}", "append": True}}
        await qmp.execute("chardev-change", {"id": "log", "backend": backend})

    async def _hand_over(self, qmp: QMPClient, file: Path, flags: int) -> int:
        """Give QEMU the open file, one at a time: it keeps only the descriptor that came last."""
        number = next(self._numbers)
        descriptor = os.open(file, flags | os.O_CLOEXEC, 0o600)
        try:
            qmp.send_fd_scm(descriptor)
            await qmp.execute("add-fd", {"fdset-id": number})
        finally:
            os.close(descriptor)
        return number
