"""Versions are in the order in which dpkg has them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alerts.remediation import debian

# Few signs, so that two versions often begin with the same.
_text = st.text("019azAZ.+~", min_size=1, max_size=6)
_versions = st.builds(
    lambda epoch, first, rest, revision: f"{epoch}{first}{rest}{revision}",
    st.sampled_from(["", "0:", "1:", "09:"]),
    st.sampled_from("0129"),
    st.just("") | _text | st.builds("{}-{}".format, _text, _text),
    st.just("") | st.builds("-{}".format, _text),
)


@settings(max_examples=150)
@given(_versions, _versions)
@example("1.0~rc1-1", "1.0-1")
@example("1.0", "1.0-0")
@example("1.2.3-1+deb12u1", "1.2.3-1+deb12u10")
@example("1.a", "1.+")
@example("1", "1.00")
@example("2:1.0:3-1", "2:1.0:3-1~")
def test_as_dpkg_has_them(one: str, other: str) -> None:
    mine = (debian.key(one) > debian.key(other)) - (debian.key(one) < debian.key(other))
    # Of its answers one holds: for two that are equal it says so, and not that one is less.
    relation = {-1: "lt", 0: "eq", 1: "gt"}[mine]
    told = subprocess.run(["dpkg", "--compare-versions", one, relation, other], check=False, stderr=subprocess.DEVNULL)
    assert told.returncode == 0, (one, relation, other)


@pytest.mark.parametrize("text", ["", " ", "1 2", "1_2", "1\n", "é", "1" * 257, "½"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        debian.key(text)
