"""Our own terminal: raw keys, its size, and the keys that let go of a container."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

DEFAULT_DETACH_KEYS = b"\x10\x11"  # Ctrl-P, Ctrl-Q, as Docker's


@contextmanager
def raw(*, enabled: bool) -> Iterator[None]:
    """Pass every key on as it is, Ctrl-C as well; only where stdin is a terminal. It is always set back at the end."""
    if not enabled or not os.isatty(0):
        yield
        return
    import termios  # here: few need them
    import tty

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = termios.tcgetattr(0)
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(0, termios.TCSANOW)  # what was typed ahead is for the container
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def size() -> tuple[int, int]:
    """Rows and columns of our terminal; 24 and 80 if we have none."""
    for descriptor in (0, 1, 2):
        try:
            found = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if found.lines > 0 and found.columns > 0:
            return found.lines, found.columns
    return 24, 80


@contextmanager
def following_size(send: Callable[[int, int], None], *, enabled: bool, redraw: bool = False) -> Iterator[None]:
    """Send our terminal's size now and whenever it changes.

    With `redraw` another size is sent first, so that a program that is in the middle of things draws itself again.
    """
    if not enabled or not any(os.isatty(descriptor) for descriptor in (0, 1, 2)):
        yield
        return
    import threading  # here: few need it

    changed = threading.Event()
    changed.set()
    over = False

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        changed.set()

    def run() -> None:
        if redraw:
            rows, columns = size()
            send(rows + 1, columns + 1)
        while changed.wait() and not over:
            changed.clear()
            send(*size())

    before = signal.signal(signal.SIGWINCH, note)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over = True
        changed.set()
        signal.signal(signal.SIGWINCH, before)


def detach_keys(text: str) -> bytes:
    """The bytes of a key sequence: keys with commas between, each a character or `ctrl-` and one.

    Raises:
        ValueError: it is none.
    """
    keys = bytearray()
    for name in text.split(","):
        control = name.lower().removeprefix("ctrl-")
        if len(name) == 1 and name.isascii() and name.isprintable():
            keys += name.encode()
        elif name.lower().startswith("ctrl-") and len(control) == 1 and control in "@abcdefghijklmnopqrstuvwxyz[\\]^_":
            keys.append(ord(control.upper()) & 0x1F)
        else:
            raise ValueError(f"{name!r} is no key; write keys with commas between, such as ctrl-p,ctrl-q or ctrl-x,a")
    return bytes(keys)


class KeyFilter:
    """Finds the detach keys in what is typed. The beginning of the sequence is held until it is known to be none."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """What is to be passed on; once the keys have been typed, `detached` is set and what follows is dropped."""
        data = self._held + data
        found = data.find(self._keys)
        if found >= 0:
            self._held, self.detached = b"", True
            return data[:found]
        kept = next(n for n in range(min(len(self._keys) - 1, len(data)), -1, -1) if data.endswith(self._keys[:n]))
        self._held = data[len(data) - kept :]
        return data[: len(data) - kept]
