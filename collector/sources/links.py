"""The host's network interfaces, of which each VM has one: a tap. One read for all of them, in rounds that want it.

Source: proc(5), /proc/net/dev: the counters that RTM_GETLINK has as well, 64 bits wide (net/core/net-procfs.c). It is
of the collector's own network namespace; where the taps are in another there is nothing to tell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from collector import kerneltext
from collector.errors import MalformedError
from collector.keptfile import KeptFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from collector.kerneltext import Interface

MAX_BYTES: Final = 8 << 20
_LINE: Final = re.compile(rb"^ *([^\s:]{1,15}):(.*)$", re.MULTILINE)


def index(text: bytes) -> dict[str, bytes]:
    """The counters of each interface by its name, as they stand there: only a few are ever looked at."""
    return {name.decode("latin-1"): numbers for name, numbers in _LINE.findall(text)}


def counters(name: str, links: Mapping[str, bytes]) -> Interface | None:
    """The counters of one interface; None if there is none of this name.

    Raises:
        MalformedError: they are not what the kernel writes.
    """
    numbers = links.get(name)
    if numbers is None:
        return None
    found = kerneltext.parse_net_dev(name.encode("latin-1", "replace") + b":" + numbers)
    if not found:
        raise MalformedError(f"net/dev: no counters of {name[:15]}")
    return found[0]


class LinksReader:
    """Reads the table. `root` stands for `/`."""

    def __init__(self, root: Path) -> None:
        self._file = KeptFile(root / "proc/net/dev")

    def read(self) -> dict[str, bytes]:
        """What `index` gives; nothing where there is no such file.

        Raises:
            SourceError: it cannot be read, or is longer than any.
        """
        text = self._file.read(MAX_BYTES)
        return {} if text is None else index(text)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()
