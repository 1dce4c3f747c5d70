"""What the daemon counts of its own work, in `runtime.json` beside its socket (`docs/reference/state-directory.md`).

The collector reads the file; the daemon needs to know nothing of metrics, and what it did last can be read while
it hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_WRITE_INTERVAL_S = 1.0


class Counts:
    """Counters since `started_at`; `gauges` gives the figures that are not counted but looked up."""

    def __init__(self, path: Path, fixed: Mapping[str, object], gauges: Callable[[], Mapping[str, object]]) -> None:
        self._path = path
        self._fixed = {"schema": 1, "pid": os.getpid(), "started_at": time.time(), **fixed}
        self.gauges = gauges
        self._operations: dict[str, dict[str, float]] = {}
        self.starts: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()

    @contextlib.contextmanager
    def operation(self, kind: str) -> Iterator[None]:
        """Count and time one operation, by how it ends."""
        entry = self._operations.setdefault(kind, {"ok": 0, "failed": 0, "seconds": 0.0})
        began = time.monotonic()
        try:
            yield
        except BaseException:
            entry["failed"] += 1
            raise
        else:
            entry["ok"] += 1
        finally:
            entry["seconds"] += time.monotonic() - began

    def write(self) -> None:
        """Write the file, atomically; a full disk leaves the old one."""
        content = {
            **self._fixed,
            "updated_at": time.time(),
            "operations": self._operations,
            "starts": dict(self.starts),
            "fallbacks": dict(self.fallbacks),
            **self.gauges(),
        }
        temporary = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content))
            temporary.replace(self._path)

    async def keep_written(self) -> None:
        """Write the file once a second, until cancelled."""
        while True:
            self.write()
            await asyncio.sleep(_WRITE_INTERVAL_S)
