"""Finds containers: the records below `containers/` of the state directory.

A record is replaced as a whole, so one whose inode, size and time are as before is not read again. A container whose
record cannot be read is still there: what was read of it last holds until its directory is gone.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime import record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

_ID: Final = re.compile(r"[0-9a-f]{64}")

Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Known:
    """A record as it was last read, and why it could not be read now.

    `signature` is None if that may change without the file.
    """

    signature: Signature | None
    record: record.Record | None
    fault: str = ""


class StateDirectory:
    """The containers of one state directory, over time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._containers = str(path / "containers")
        self.unreadable = 0
        self._fault = ""
        self._known: dict[str, Known] = {}

    def directory(self, container_id: str) -> Path:
        """Directory of a container."""
        return self.path / "containers" / container_id

    def scan(self) -> Mapping[str, record.Record]:
        """Records by id. One that cannot be read is counted, said once in the log, and as it was before, if it was."""
        found: dict[str, Known] = {}
        try:
            names = sorted(os.listdir(self._containers))  # noqa: PTH208 -- a path object for each costs more
        except FileNotFoundError:
            names = []  # no container was ever made here
        except OSError as err:
            if str(err) != self._fault:
                logger.warning("cannot list %s: %s", self._containers, err)
            self._fault = str(err)
            return {name: known.record for name, known in self._known.items() if known.record}
        self._fault = ""
        for name in names:
            if _ID.fullmatch(name) and (known := self._look(name)) is not None:
                found[name] = known
        self._known = found
        self.unreadable = sum(1 for known in found.values() if known.fault)
        return {name: known.record for name, known in found.items() if known.record}

    def _look(self, name: str) -> Known | None:
        before = self._known.get(name)
        try:
            status = os.stat(f"{self._containers}/{name}/{record.FILE_NAME}")  # noqa: PTH116 -- as above
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if before is not None and before.signature == signature:
                return before
            found = record.read(self.directory(name))
        except (FileNotFoundError, NotADirectoryError):
            return None  # between mkdir and the first record, or just removed
        except OSError as err:
            return self._unreadable(name, None, str(err))
        except record.RecordError as err:
            return self._unreadable(name, signature, str(err))
        if found.id != name:
            return self._unreadable(name, signature, "it names another id")
        return Known(signature, found)

    def _unreadable(self, name: str, signature: Signature | None, fault: str) -> Known:
        before = self._known.get(name)
        if before is None or before.fault != fault:
            logger.warning("container %.12s: cannot read its record: %s", name, fault)
        return Known(signature, before.record if before is not None else None, fault)
