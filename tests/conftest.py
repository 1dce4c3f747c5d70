"""For all tests."""

from __future__ import annotations

import os

# pytest-xdist sets them in its workers; the programs tested would take them for a terminal's.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
