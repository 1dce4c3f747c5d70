"""Descriptors of taps that we hold beside QEMU's, so that it is not QEMU that has the tap removed.

A tap goes with the last descriptor of it, and whoever closes that one waits for the kernel, 20 ms and more. On its way
out QEMU would, and the end of every VM would be seen that much later. We close ours afterwards, in a thread. A daemon
that is killed holds nothing: the tap is QEMU's alone then, and goes with it.
"""

from __future__ import annotations

import asyncio
import os

_held: dict[int, tuple[str, int]] = {}  # by the pid of QEMU: the tap's name, and our descriptor
_closing: dict[str, asyncio.Future[None]] = {}


def hold(pid: int, tap: str, descriptor: int) -> None:
    """Hold the tap of this QEMU as well, until `let_go`."""
    _held[pid] = tap, os.dup(descriptor)


def let_go(pid: int) -> None:
    """This QEMU has ended: remove its tap in the background."""
    tap, descriptor = _held.pop(pid, ("", -1))
    if descriptor >= 0:
        _closing[tap] = closing = asyncio.ensure_future(asyncio.to_thread(os.close, descriptor))
        closing.add_done_callback(lambda done: _closing.pop(tap) if _closing.get(tap) is done else None)


async def gone(tap: str) -> None:
    """Wait until a tap of this name that is being removed is: its name is free then."""
    if tap in _closing:
        await asyncio.shield(_closing[tap])
