"""Putting real files behind the placeholders of a VM that runs: disks and the log.

The guest's devices stay; what QEMU has behind them changes. A disk's file is opened as a node of its own, and the raw
node that the device reads from is reopened onto it (QMP `add-fd`, `blockdev-add`, `blockdev-reopen`). The log's port
gets another file (`chardev-change`). QEMU may open nothing itself, so each file is handed over as a descriptor. All of
it is sent at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.vm import machine
from runtime.vm.monitor import Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from runtime.vm.monitor import Monitor

# The sets that the command line makes have smaller numbers.
_FIRST_FDSET = 50


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
        self._behind: dict[str, tuple[int, bool]] = {}

    async def plug(self, monitor: Monitor, disks: Iterable[Disk], log: Path | None = None) -> None:
        """Put the files behind their drives, in place of what was there, and let the log be appended to its file.

        Raises:
            OSError: a file cannot be opened.
            GuestFailed: QEMU refused.
        """
        with contextlib.ExitStack() as stack:
            commands: list[Command] = []
            reopened: list[dict[str, Any]] = []
            before: list[Command] = []
            for disk in disks:
                number = next(self._numbers)
                flags = os.O_RDONLY if disk.read_only else os.O_RDWR
                commands += _opened(stack, disk, flags, number)
                reopened.append(_drive(disk.node, _node(number), read_only=disk.read_only))
                if disk.node in self._behind:
                    before += _closed(self._behind[disk.node][0])
                self._behind[disk.node] = (number, disk.read_only)
            if reopened:
                commands.append(Command("blockdev-reopen", {"options": reopened}))
            commands += before
            if log:
                number = next(self._numbers)
                fd = _open(stack, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                backend = {"type": "file", "data": {"out": f"/dev/fdset/{number}", "append": True}}
                commands.append(Command("add-fd", {"fdset-id": number}, fd))
                commands.append(Command("chardev-change", {"id": "log", "backend": backend}))
            await monitor.run(*commands)

    async def unplug(self, monitor: Monitor) -> None:
        """Put the placeholders back, so that nothing of the files is left in QEMU.

        Raises:
            GuestFailed: QEMU refused.
        """
        back = [
            _drive(node, machine.placeholder(node), read_only=read_only)
            for node, (_, read_only) in self._behind.items()
        ]
        commands = [Command("blockdev-reopen", {"options": back})]
        for number, _ in self._behind.values():
            commands += _closed(number)
        self._behind.clear()
        await monitor.run(*commands)


def _node(number: int) -> str:
    return f"f{number}"


def _drive(node: str, file: str, *, read_only: bool) -> dict[str, Any]:
    drive: dict[str, Any] = {"driver": "raw", "node-name": node, "file": file, "read-only": read_only}
    return drive if read_only else {**drive, "discard": "unmap"}


def _opened(stack: contextlib.ExitStack, disk: Disk, flags: int, number: int) -> Iterator[Command]:
    """The disk's file as a node of QEMU's."""
    yield Command("add-fd", {"fdset-id": number}, _open(stack, disk.file, flags))
    node: dict[str, Any] = {"driver": "file", "node-name": _node(number), "filename": f"/dev/fdset/{number}"}
    node |= {"read-only": True} if disk.read_only else {"discard": "unmap"}
    yield Command("blockdev-add", {**node, "locking": "off"})


def _closed(number: int) -> Iterator[Command]:
    """The node of a file and its descriptor are given up; no drive reads from it any more."""
    yield Command("blockdev-del", {"node-name": _node(number)})
    yield Command("remove-fd", {"fdset-id": number})


def _open(stack: contextlib.ExitStack, file: Path, flags: int) -> int:
    """Open a file until the stack ends."""
    descriptor = os.open(file, flags | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor
