"""Signals by name and number, those of real time among them."""

from __future__ import annotations

import pytest

from runtime.errors import InvalidInput
from runtime.signals import signal_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TERM", 15), ("sigterm", 15), ("15", 15), ("1", 1), ("CLD", 17), ("37", 37), ("32", 32), ("64", 64),
        ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("rtmin+0", 34), ("RTMIN+30", 64), ("RTMAX", 64), ("SigRtMax-1", 63),
    ],
)  # fmt: skip
def test_the_number_of_a_signal(name: str, number: int) -> None:
    assert signal_number(name, "signal") == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0",
        "65",
        "-1",
        "\u0661\u0665",
        "15 ",
        "NONE",
        "SIG",
        "RTMIN+",
        "RTMIN-1",
        "RTMAX+1",
        "RTMIN+31",
        "RTMAX-31",
        "_DFL",
    ],
)
def test_what_is_no_signal_is_refused_with_its_member(name: str) -> None:
    with pytest.raises(InvalidInput, match="there is no signal") as raised:
        signal_number(name, "stop_signal")
    assert raised.value.field == "stop_signal"
