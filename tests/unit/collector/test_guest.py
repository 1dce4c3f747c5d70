"""What a guest's answer may be, and what it may not."""

from __future__ import annotations

import json

import pytest

from collector.errors import MalformedError, TooLargeError
from collector.known import MAX_INTERFACES, Known
from collector.reconcile import guest_oom_kills
from collector.sources import guest, guestport
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


def interfaces(*names: str) -> bytes:
    return b"".join(b"%s: %s\n" % (name.encode(), b"1 " * 16) for name in names)


def test_a_guest_has_the_interfaces_that_it_named_first() -> None:
    known = Known()

    def told(*names: str) -> tuple[list[str], int]:
        kept, left_out = known.of(parse({"/proc/net/dev": interfaces(*names)}), ("vda", "vdb"))
        return [interface.name for interface in kept.interfaces], left_out

    assert told("eth0") == (["eth0"], 0)
    others = [f"a{number}" for number in range(MAX_INTERFACES - 1)]
    assert told(*others) == (others, 0)
    assert told("eth1", "eth0", "a0", "eth2") == (["eth0", "a0"], 2)
    assert told("eth1") == ([], 1)


def test_a_disk_has_the_number_that_it_had_first() -> None:
    known = Known()

    def told(text: bytes) -> tuple[dict[str, bytes], int]:
        line = b" 0" * 12
        rows = b"".join(row + line + b"\n" for row in text.split(b","))
        kept, left_out = known.of(parse({"/proc/diskstats": rows}, deep=True), ("vda", "vdb"))
        return {name: number for name, (number, _) in kept.disks.items()}, left_out

    first = {"vda": b"254:0", "other": b"7:1"}
    assert told(b"254 0 vda,7 1 other") == (first, 0)
    assert told(b"254 1 vda,7 2 other") == ({"other": b"7:2"}, 1)
    assert told(b"254 0 vda,7 1 other,254 16 vdb") == ({**first, "vdb": b"254:16"}, 0)


@pytest.mark.parametrize("number", [b"x 0", b"-1 0", b"0 %s" % (b"1" * 11), b"1:2 3", b"\xb2 0"])
def test_a_device_number_is_one(number: bytes) -> None:
    with pytest.raises(MalformedError):
        parse({"/proc/diskstats": number + b" vda" + b" 0" * 12})


@pytest.mark.parametrize("member", ["[]", "{}", "1", '"a"', r'"\\"', r'"\","', '["a"]'])
def test_an_answer_has_no_more_members_than_are_read_at_once(member: str) -> None:
    def answer(count: int) -> bytes:
        return f'{{"return": [{", ".join([member] * count)}]}}'.encode()

    assert len(guestport.parse_answer(answer(guestport.MAX_MEMBERS))["return"]) == guestport.MAX_MEMBERS
    with pytest.raises(MalformedError, match="members"):
        guestport.parse_answer(answer(5 * guestport.MAX_MEMBERS))


def test_commas_of_a_text_are_no_members() -> None:
    text = 'a{b="c",d="\\\\"} 1\n' * 20_000
    assert guestport.parse_answer(json.dumps({"data": text, "length": 1}).encode()) == {"data": text, "length": 1}
