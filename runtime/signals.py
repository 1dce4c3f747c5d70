"""Names and numbers of signals."""

from __future__ import annotations

import signal

from runtime.errors import InvalidInput


def signal_number(name: str, field: str) -> int:
    """The number of a signal: `TERM`, `SIGTERM` or `15`.

    Raises:
        InvalidInput: there is no such signal.
    """
    text = name.upper().removeprefix("SIG")
    try:
        return int(signal.Signals(int(text)) if text.isdigit() else signal.Signals[f"SIG{text}"])
    except (KeyError, ValueError) as err:
        raise InvalidInput(
            f"there is no signal {name!r}: use a name like TERM or a number like 15", field=field
        ) from err
