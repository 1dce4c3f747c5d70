"""What a guest's answer may be, and what it may not."""

from __future__ import annotations

import pytest

from collector.errors import MalformedError, TooLargeError
from collector.reconcile import guest_oom_kills
from collector.sources import guest
from tests.fakevm.scenario import guest_files, read_json

CGROUP = "/sys/fs/cgroup/container"


def parse(changes: dict[str, bytes], *, deep: bool = False) -> guest.GuestSample:
    """The honest answer of `base` with some files changed."""
    files = guest_files() | changes
    entries = [{"path": path, "data": text.decode("latin-1")} for path, text in files.items()]
    return guest.parse_sample({**read_json("base", "agent.json")["hyper-read"], "files": entries}, CGROUP, deep=deep)


@pytest.mark.parametrize(
    "files",
    [
        {f"{CGROUP}/memory.events": b"oom 1\noom_kill %d\n"},
        {"/proc/vmstat": b"nr_free_pages 1\noom_kill %d\n"},
    ],
    ids=["memory.events", "vmstat"],
)
def test_oom_kills_are_no_more_than_a_start_can_have(files: dict[str, bytes]) -> None:
    def told(kills: int) -> int:
        return sum(guest_oom_kills(parse({path: text % kills for path, text in files.items()})).values())

    assert told(1 << 31) == 1 << 31
    with pytest.raises(MalformedError, match="OOM"):
        told((1 << 31) + 1)


@pytest.mark.parametrize(("deep", "most"), [(False, guest.MAX_FILE_BYTES), (True, guest.MAX_DEEP_FILE_BYTES)])
def test_a_file_is_no_longer_than_was_asked_for(deep: bool, most: int) -> None:
    meminfo = b"MemFree: 1 kB\n"
    whole = meminfo + b"x" * (most - len(meminfo))
    assert parse({"/proc/meminfo": whole}, deep=deep).memory_free_bytes == 1024
    with pytest.raises(TooLargeError, match="meminfo"):
        parse({"/proc/meminfo": whole + b"x"}, deep=deep)
