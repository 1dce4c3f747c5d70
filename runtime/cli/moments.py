"""Moments as Docker takes them: seconds since 1970, RFC 3339, or how long ago."""

from __future__ import annotations

import re
import time

# Compiled when one is needed, as in `arguments`.
_SECONDS = r"([0-9]{1,11})(?:\.([0-9]{1,9}))?"
_PART = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|h|m|s)"
_FRACTION = r"(\.\d+)"
_UNIT_NS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6}


def moment_ns(text: str) -> int:
    """Nanoseconds since 1970.

    Raises:
        ValueError: it is no moment.
    """
    text = text.strip()
    seconds = re.fullmatch(_SECONDS, text)
    if seconds:
        return int(seconds[1]) * 10**9 + int((seconds[2] or "0").ljust(9, "0"))
    if re.fullmatch(f"(?:{_PART})+", text):
        return max(
            0, time.time_ns() - sum(int(float(count) * _UNIT_NS[unit]) for count, unit in re.findall(_PART, text))
        )
    return _of_date(text)


def seconds(text: str) -> str:
    """A moment as the API takes it: seconds since 1970, to the nanosecond.

    Raises:
        ValueError: it is no moment.
    """
    moment = moment_ns(text)
    return f"{moment // 10**9}.{moment % 10**9:09d}"


def _of_date(text: str) -> int:
    from datetime import datetime  # here: it takes as long to import as all the rest

    fraction = re.search(_FRACTION, text)
    digits = fraction[1][1:10] if fraction else ""
    try:
        # Without a zone it is our own.
        whole = datetime.fromisoformat(re.sub(_FRACTION, "", text, count=1)).astimezone()
    except (ValueError, OverflowError, OSError):
        whole = None
    if whole is None or whole.timestamp() < 0:
        raise ValueError(
            "write seconds since 1970, a time such as 2026-01-31T12:00:00Z, or how long ago, such as 10m or 1h30m"
        )
    return int(whole.timestamp()) * 10**9 + int(digits.ljust(9, "0"))
