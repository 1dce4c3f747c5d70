from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.errors import BadFeed
from alerts.remediation import osv
from alerts.remediation.hyperd import Package, Packages


def record(ident: str = "DSA-1", *, ecosystem: str = "Debian:12", name: str = "openssl", kind: str = "ECOSYSTEM",
           events: list[dict[str, str]] | None = None, **members: Any) -> dict[str, Any]:  # fmt: skip
    events = [{"introduced": "0"}, {"fixed": "3.0.2-1"}] if events is None else events
    affected = {"package": {"ecosystem": ecosystem, "name": name}, "ranges": [{"type": kind, "events": events}],
                "versions": ["3.0.1-1"], "ecosystem_specific": {"urgency": "high"}}  # fmt: skip
    return {"schema_version": "1.7.0", "id": ident, "modified": "2026-01-01T00:00:00Z", "affected": [affected],
            **members}  # fmt: skip


def lines(*records: Any) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in records) + b"\n"


def installed(version: str, source: str = "openssl", *, distribution: str = "debian", release: str = "12") -> Packages:
    packages = [Package(source=source, source_version=version), Package(source="base-files", source_version="12")]
    return Packages(distribution=distribution, version=release, packages=packages)


@pytest.mark.parametrize(
    ("events", "hit", "missed"),
    [
        ([{"introduced": "0"}, {"fixed": "3.0.2-1"}], ["3.0.1-1", "0~git", "3.0.2-1~deb12u1"], ["3.0.2-1", "1:0"]),
        ([{"fixed": "2"}, {"introduced": "1"}, {"introduced": "3"}, {"fixed": "4"}], ["1", "3.5"], ["0.9", "2", "4"]),
        ([{"introduced": "1"}, {"introduced": "2"}, {"fixed": "3"}], ["1.5", "2"], ["0", "3"]),
        ([{"introduced": "0"}], [], ["1"]),
        ([{"introduced": "0"}, {"last_affected": "5"}], [], ["1"]),
        ([{"fixed": "2"}], [], ["1"]),
        ([], [], ["1"]),
    ],
)
def test_what_a_newer_version_closes(events: list[dict[str, str]], hit: list[str], missed: list[str]) -> None:
    feed = osv.parse(lines(record(events=events)))
    assert [one for one in (*hit, *missed) if feed.fixable(installed(one))] == hit


def test_a_list_and_lines_say_the_same_and_what_is_not_meant_is_left_out() -> None:
    records = [
        record("DSA-1"),
        record("CVE-2", name="base-files", events=[{"introduced": "0"}, {"fixed": "13"}]),
        record("CVE-3", withdrawn="2026-01-02T00:00:00Z"),
        record("CVE-4", ecosystem="Debian:11"),
        record("CVE-5", ecosystem="PyPI", events=[{"introduced": "0"}, {"fixed": "1!2_0"}]),
        record("CVE-6", kind="GIT", events=[{"introduced": "0"}, {"fixed": "not a version"}]),
        {"id": "CVE-7"},
        record("USN-8", ecosystem="Ubuntu:22.04:LTS"),
        record("USN-9", ecosystem="Ubuntu:Pro:22.04:LTS"),
    ]
    for raw in (
        lines(*records),
        lines(*records)[:-1],
        json.dumps(records).encode(),
        b"\n " + json.dumps(records, indent=2).encode(),
    ):
        feed = osv.parse(raw)
        assert feed.records == 9
        assert feed.fixable(installed("3.0.1-1")) == {"DSA-1", "CVE-2"}
        assert feed.fixable(installed("3.0.1-1", distribution="ubuntu", release="22.04")) == {"USN-8"}
        assert feed.fixable(installed("3.0.1-1", distribution="alpine")) == frozenset()
        assert feed.fixable(Packages(distribution="debian", version="12")) == frozenset()
        assert feed.fixable(Packages()) == frozenset()
    assert osv.parse(b"[]").records == 0


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "it is empty"),
        (b"\n\n", "line 1: Invalid JSON"),
        (b" ", "line 1: Invalid JSON"),
        (b"<html>", "line 1: Invalid JSON"),
        (lines(record()) + b'{"id": "DSA-2", "aff', "line 2: Invalid JSON"),
        (lines({"affected": []}), "line 1: id: Field required"),
        (lines(record("../../etc")), "line 1: id: "),
        (lines(record(events=[{"introduced": "0"}, {"fixed": "1 2"}])), "DSA-1: '1 2' is no version"),
        (lines(record(events=[{"introduced": "0"}, {"fixed": "9" * 300}])), "affected.0.ranges.0.events.1.fixed"),
        (lines({"id": "DSA-1", "affected": {}}), "line 1: affected"),
        (b"[[[[", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b"[7]", "0: Input should be"),
        (lines({"id": "DSA-1", "affected": [{"ranges": [{"type": "GIT", "events": [{}] * 1001}]}]}), "events"),
    ],
)
def test_what_is_no_feed_is_said_in_a_line(raw: bytes, said: str) -> None:
    with pytest.raises(BadFeed) as caught:
        osv.parse(raw)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_feed_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(osv, "MAX_BYTES", 1000)
    with pytest.raises(BadFeed, match="longer than 1000 bytes"):
        osv.parse(b" " * 1001)
    monkeypatch.setattr(osv, "MAX_RECORDS", 2)
    with pytest.raises(BadFeed, match="more than 2 lines"):
        osv.parse(lines({"id": "A"}, {"id": "B"}, {"id": "C"}))


@settings(max_examples=50)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lines))
def test_whatever_is_read_is_a_feed_or_a_line(raw: bytes) -> None:
    try:
        osv.parse(raw)
    except BadFeed as err:
        assert "\n" not in str(err)  # noqa: PT017 -- it may be raised, and need not
