"""Options of ps that `hyper top` takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import psoptions
from runtime.errors import InvalidInput

EF = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
AUX = ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"]


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], EF),
        (["-ef"], EF),
        (["-e", "-f"], EF),
        (["-Af"], EF),
        (["-A"], ["PID", "TTY", "TIME", "CMD"]),
        (["aux"], AUX),
        (["-aux"], AUX),
        (["auxww"], AUX),
        (["a", "u", "x"], AUX),
        (["ax"], ["PID", "TTY", "STAT", "TIME", "COMMAND"]),
        (["-el"], ["S", "UID", "PID", "PPID", "C", "PRI", "NI", "TTY", "TIME", "CMD"]),
        (["-o", "pid,comm"], ["PID", "COMMAND"]),
        (["-opid,comm"], ["PID", "COMMAND"]),
        (["-eo", "pid,rss"], ["PID", "RSS"]),
        (["axo", "pid,%cpu"], ["PID", "%CPU"]),
        (["-o", "pid", "-o", "user"], ["PID", "USER"]),
        (["-o", "pid rss"], ["PID", "RSS"]),
        (["-o", "pid,rss=MEMORY, OF IT"], ["PID", "MEMORY, OF IT"]),
        (["-o", "pid="], [""]),
        (["--format", "pid"], ["PID"]),
        (["--format=pid,args"], ["PID", "COMMAND"]),
    ],
)
def test_columns_are_those_of_ps(options: list[str], titles: list[str]) -> None:
    assert [title for title, _ in psoptions.columns(options)] == titles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o"], "-o names no column"),
        (["-o", ","], "-o names no column"),
        (["-o", "wchan"], "no column 'wchan'"),
        (["-o", "pid,nonsense"], "no column 'nonsense'"),
        (["--sort=rss"], "'--sort=rss' of ps cannot be had"),
        (["-p", "1"], "'-p' of ps cannot be had"),
        (["-T"], "'-T' of ps cannot be had"),
        (["f"], "'f' of ps cannot be had"),
        (["-"], "'-' of ps cannot be had"),
        ([""], "'' of ps cannot be had"),
        (["-o", ",".join(["pid"] * 65)], "more than 64 columns"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(options: list[str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        psoptions.columns(options)


@given(st.lists(st.text(alphabet="-=aefouxlwA pid,rsgcm%'é", max_size=12), max_size=5))
def test_any_words_are_columns_or_an_error(options: list[str]) -> None:
    try:
        assert psoptions.columns(options)
    except InvalidInput as err:
        assert err.field == "option"  # noqa: PT017 -- most words are none
