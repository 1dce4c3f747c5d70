"""Where a sparse file has data."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, as (from, to) in bytes, in order; the rest are holes, which read as zeros.

    Raises:
        OSError: the file cannot be looked at.
    """
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole follows
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
