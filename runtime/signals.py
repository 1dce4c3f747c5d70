"""Names and numbers of signals."""

from __future__ import annotations

import re
import signal

from runtime.errors import InvalidInput

_RTMIN, _RTMAX = 34, 64  # what libc leaves to programs of those from 32 on


def signal_number(name: str, field: str) -> int:
    """The number of a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`, `RTMAX-1`; any of Linux (signal(7)), 1 to 64.

    Raises:
        InvalidInput: there is no such signal.
    """
    number = _number(name.upper().removeprefix("SIG"))
    if number is None:
        raise InvalidInput(f"there is no signal {name!r}: use a name like TERM or a number like 15", field=field)
    return number


def _number(text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,2}", text):
        return int(text) if 1 <= int(text) <= _RTMAX else None
    if match := re.fullmatch(r"RTMIN\+([0-9]{1,2})|RTMAX-([0-9]{1,2})", text):
        number = _RTMIN + int(match[1]) if match[1] else _RTMAX - int(match[2])
        return number if _RTMIN <= number <= _RTMAX else None
    try:
        return int(signal.Signals[f"SIG{text}"])
    except KeyError:
        return None
