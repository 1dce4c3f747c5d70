"""For all tests."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    import pytest

# How long an example takes depends on the machine, and on what else it does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# pytest-xdist sets them in its workers; the programs tested would take them for a terminal's.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# A shell's background job ignores it, and so would all programs that are interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class EndToEndInOne(LoadFileScheduling):
    """Files of tests to whoever is free, but all end-to-end tests to one process, as many of them look at times.

    Except the longest, which minds nothing beside it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/e2e" if file.startswith("tests/e2e/") and not file.endswith("/test_storm.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> EndToEndInOne:
    """The scheduler of `make test`."""
    return EndToEndInOne(config, log)
