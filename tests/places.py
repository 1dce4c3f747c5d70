"""What tests make for themselves and take down again: a small file system, a server in a thread."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from socketserver import BaseServer

_POLL_S = 0.05  # how long a server may take to see that it is to end


@contextlib.contextmanager
def small_disk(path: Path, size: str, *, lazy: bool = False) -> Iterator[Path]:
    """A file system of so many bytes (`24m`) at a new directory. Unless `lazy`, nothing may hold it at its end."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", *(["-l"] if lazy else []), path], check=True)


@contextlib.contextmanager
def serving(server: BaseServer) -> Iterator[None]:
    """Let a server answer until the context ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": _POLL_S})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
