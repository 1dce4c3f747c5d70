"""`hyper` as a process: soon there, and soon gone.

What a start loads stays, so no garbage is looked for meanwhile; and at the end the kernel takes a process apart faster
than Python does. Both together take a fifth off `hyper ps`. `scripts/launcher.py` takes `site` off as well.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# A start makes some 8000 objects that Python would look through, again and again from 700 on.
OBJECTS_BEFORE_COLLECTION = 20_000


def main() -> NoReturn:
    """Run `hyper`, and end the process with its exit code."""
    gc.set_threshold(OBJECTS_BEFORE_COLLECTION)
    from runtime.cli import main as cli  # here: it loads all the rest

    code = cli.main()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before we began
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
