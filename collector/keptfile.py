"""A kernel file that is opened once and read with `pread` ever after: a quarter of the cost of opening it each time."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from collector.errors import TooLargeError, UnreachableError

if TYPE_CHECKING:
    from pathlib import Path

_MAYBE_MORE: Final = 2048
_PIECE: Final = 65536
"""As many bytes are allocated for each read, however few there are: more would scatter the heap."""
_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP}
"""EOPNOTSUPP: a kernel before 6.1 that was started without PSI has the files, and reads nothing out of them."""
_GONE: Final = {errno.ESRCH, errno.ENODEV}


class KeptFile:
    """One file of /proc or of a cgroup. A descriptor of /proc/<pid> never shows a later process of that pid."""

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def read(self, max_bytes: int = 65536) -> bytes | None:
        """The whole file; None if there is none (here, or yet), it is not ours to read, or the kernel has it off.

        Raises:
            UnreachableError: its process or group is gone.
            TooLargeError: it has more than `max_bytes`.
        """
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            text = os.pread(self._fd, min(max_bytes + 1, _PIECE), 0)
            # The kernel may hand out a table a page at a time, and no more rows than fit the page as a whole.
            while len(text) > _MAYBE_MORE and (
                more := os.pread(self._fd, min(max_bytes + 1 - len(text), _PIECE), len(text))
            ):
                text += more
        except OSError as err:
            if err.errno in _ABSENT:
                self.close()
                return None
            self.close()
            if err.errno in _GONE:
                raise UnreachableError(f"{self.path.name}: gone") from err
            raise UnreachableError(f"{self.path.name}: {err.strerror}") from err
        if len(text) > max_bytes:
            raise TooLargeError(f"{self.path.name}: more than {max_bytes} bytes")
        return text

    def close(self) -> None:
        """Give the descriptor back; a later read opens the file again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
