"""pyroute2, imported when it is first needed."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import types


async def library(name: str = "pyroute2") -> types.ModuleType:
    """The module, imported in a thread, so that what is served meanwhile goes on.

    It takes a sixth of the time in which a daemon comes back, and one that finds its bridge has no need of it yet.
    """
    return await asyncio.to_thread(importlib.import_module, name)
