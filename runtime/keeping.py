"""What the daemon does all the time goes on, whatever happens in it.

A task that ends with an error is silent as long as somebody holds it: nothing would be seen but what it does no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, NoReturn

log = logging.getLogger(__name__)

AGAIN_S = 10.0


async def keep(what: str, run: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
    """Run it until cancelled: when an error ends it, begin it anew after a pause. The same one again is told once."""
    told = ""
    while True:
        began = time.monotonic()
        try:
            await run()
        except Exception as err:  # noqa: BLE001 -- told, and gone on from
            if (cause := repr(err)) != told or time.monotonic() - began > AGAIN_S:
                tell(what, err)
            told = cause
        await asyncio.sleep(AGAIN_S)


def tell(what: str, err: Exception) -> None:
    """Log why something was not done; with a traceback if that is a defect of ours."""
    if isinstance(err, RuntimeFault | OSError):
        log.warning("%s: %s", what, err)
    else:
        log.error("%s: a defect", what, exc_info=err)
