"""How long a VM waited for the host: what the kernel writes, and what follows of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.changes import hostwait
from runtime.changes.hostwait import HostTime
from runtime.record import Cgroups
from runtime.vm.process import Process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def a_proc(root: Path, pid: int, threads: Mapping[int, str]) -> Path:
    for tid, text in threads.items():
        directory = root / str(pid) / "task" / str(tid)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "schedstat").write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7000 300 12\n", 300),
        ("0 0 0\n", None),  # a kernel that does not count
        ("", None),
        ("one two three\n", None),
    ],
)
def test_a_schedstat(text: str, found: int | None) -> None:
    assert hostwait.parse_schedstat(text) == found


def test_how_long_a_quota_held_a_group_back() -> None:
    assert hostwait.parse_throttled("usage_usec 9\nthrottled_usec 5\n", "") == 5000
    assert hostwait.parse_throttled("usage_usec 9\n", "nr_periods 3\nthrottled_time 70\n") == 70
    assert hostwait.parse_throttled("", "") == 0


def test_the_threads_of_a_vm(tmp_path: Path) -> None:
    proc = a_proc(tmp_path / "proc", 7, {7: "100 10 1", 8: "200 20 1", 9: "0 0 0"})
    group = tmp_path / "group"
    group.mkdir()
    (group / "cpu.stat").write_text("throttled_time 5\n")
    found = hostwait.read(Process(7, 1), Cgroups(v1={"cpu": str(group)}), proc)
    assert found == HostTime(7, {7: 10, 8: 20}, 5)
    assert hostwait.read(Process(6, 1), Cgroups(), proc) is None


def test_this_process_is_told_of() -> None:
    """The kernel that the suite runs on counts."""
    found = hostwait.read(Process(os.getpid(), 0), Cgroups())
    assert found is not None
    assert os.getpid() in found.waited_ns


def test_what_it_waited_between_two_moments() -> None:
    first = HostTime(7, {1: 0, 2: 10**9}, 0)
    last = HostTime(7, {1: 10**9, 3: 5 * 10**8}, 0)
    assert hostwait.between(first, last) == 1.5, "the thread that ended is left out"
    assert hostwait.between(first, last._replace(throttled_ns=10**9)) == 0.5, "its own quota is not the host"
    assert hostwait.between(first, first) == 0.0
    assert hostwait.between(first, last._replace(pid=8)) is None
    assert hostwait.between(None, last) is None


_TIMES = st.builds(
    HostTime, st.just(7), st.dictionaries(st.integers(1, 4), st.integers(0, 10**18)), st.integers(0, 10**18)
)


@given(_TIMES, _TIMES)
def test_nobody_waits_for_less_than_nothing(first: HostTime, last: HostTime) -> None:
    found = hostwait.between(first, last)
    assert found is not None
    assert found >= 0.0
