from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector import kerneltext
from collector.errors import MalformedError, TooLargeError, UnreachableError
from collector.keptfile import KeptFile
from collector.sources import process
from tests.fakevm.scenario import BASE

if TYPE_CHECKING:
    from collections.abc import Callable

TEMPLATE_CLONE = b"""\
7f0000000000-7f000c000000 rw-p 00000000 00:01 77                        /memfd:template (deleted)
Size:             196608 kB
Rss:              100000 kB
Pss:               30000 kB
Anonymous:         20000 kB
VmFlags: rd wr
55d000000000-55d000100000 rw-p 00000000 00:00 0                          [heap]
Size:               1024 kB
Rss:                1000 kB
Pss:                1000 kB
Anonymous:          1000 kB
VmFlags: rd wr
"""


def test_ram_of_a_clone_is_split_into_its_own_and_the_template_s() -> None:
    memory = process.parse_smaps(TEMPLATE_CLONE, 192 << 20)
    assert memory == process.VmMemory(20000 * 1024, 80000 * 1024, 1000 * 1024)


def test_ram_that_is_not_found_is_absent() -> None:
    assert process.parse_smaps(TEMPLATE_CLONE, 64 << 20) == process.VmMemory(None, None, None)


def test_split_mapping_of_one_file_is_one_ram() -> None:
    text = TEMPLATE_CLONE.replace(
        b"7f0000000000-7f000c000000 rw-p 00000000 00:01 77                        /memfd:template (deleted)\n",
        b"7f0000000000-7f0004000000 rw-p 00000000 00:01 77 /memfd:template (deleted)\n"
        b"Rss: 5 kB\nPss: 5 kB\nAnonymous: 0 kB\n"
        b"7f0004000000-7f000c000000 rw-p 04000000 00:01 77 /memfd:template (deleted)\n",
    )
    memory = process.parse_smaps(text, 192 << 20)
    assert memory.guest_ram == 20000 * 1024
    assert memory.template_shared == 80005 * 1024


@pytest.mark.parametrize(
    ("text", "limit"), [(b"max\n", None), (b"9223372036854771712\n", None), (b"134217728\n", 134217728)]
)
def test_no_limit_is_no_number(text: bytes, limit: int | None) -> None:
    assert kerneltext.parse_limit(text) == limit


def test_name_in_brackets_may_hold_brackets() -> None:
    text = b"7 (a) b) (c) S " + b" ".join(str(n).encode() for n in range(4, 30))
    assert process.parse_stat(text) == process.ProcessStat((14 + 15) / 100, 22)


def test_pressure_without_a_full_line() -> None:
    assert kerneltext.parse_pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n") == (
        kerneltext.Pressure(1.5, None)
    )


def test_loopback_is_not_the_container_s_traffic() -> None:
    line = b" lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
    found = kerneltext.parse_net_dev(b"Inter-|\n face |\n" + line + line.replace(b" lo", b"eth0"))
    assert found == (kerneltext.Interface("eth0", 1, 2, 3, 4, 9, 10, 11, 12),)


def test_interfaces_have_a_budget() -> None:
    lines = [f"if{n}: ".encode() + b" ".join([b"1"] * 16) for n in range(50)]
    assert len(kerneltext.parse_net_dev(b"\n".join(lines))) == 8


@pytest.mark.parametrize("name", ["snmp", "netstat"])
def test_what_is_wanted_of_a_table_is_what_the_whole_of_it_has(name: str) -> None:
    text = (BASE / "guest/proc/net" / name).read_bytes()
    whole = kerneltext.parse_net_table(text)
    wanted = frozenset([*whole][::5]) | {b"Tcp.NoSuchName"}
    assert kerneltext.parse_net_table(text, wanted) == {key: whole[key] for key in [*whole][::5]}


@pytest.mark.parametrize("numbers", [b"T: 1", b"T: 1 2 3", b"T: 1 2 ", b"T:  1 2", b"U: 1 2", b"", b"T: x 2"])
def test_numbers_that_do_not_go_with_their_names_are_malformed(numbers: bytes) -> None:
    with pytest.raises(MalformedError):
        kerneltext.parse_net_table(b"T: A B\n" + numbers, frozenset({b"T.A", b"T.B"}))


def test_what_a_block_policy_adds_to_a_device_s_line_is_not_looked_at() -> None:
    text = b"254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 use_delay=0 depth=max\n254:16\n"
    none = kerneltext.DeviceIo(0, 0, 0, 0)
    assert kerneltext.parse_io_stat(text) == {b"254:0": kerneltext.DeviceIo(1, 2, 3, 4, 5), b"254:16": none}
    for wrong in (b"254:0 rbytes", b"254:0 rbytes=x", b"254:0 rbytes=max"):
        with pytest.raises(MalformedError):
            kerneltext.parse_io_stat(wrong)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (kerneltext.parse_flat, b"a 1\n" * 5000),
        (kerneltext.parse_tcp_states, b"a b c 01\n" * 5000),
        (kerneltext.parse_io_stat, b"254:0 rbytes=1\n" * 1100),
        (
            lambda text: kerneltext.parse_net_table(text, frozenset({b"Tcp.a"})),
            b"Tcp: " + b"a " * 2100 + b"\nTcp: " + b"1 " * 2100,
        ),
    ],
    ids=["flat", "tcp", "io.stat", "names of a net table"],
)
def test_rows_have_a_budget(parse: Callable[[bytes], object], text: bytes) -> None:
    with pytest.raises(MalformedError, match="more than"):
        parse(text)


def test_cpus_beyond_the_budget_are_not_looked_at() -> None:
    line = b"cpu%s 1 0 2 3 4 0 0 0\n"
    first = line % b"" + b"".join(line % str(number).encode() for number in range(64))
    times = kerneltext.parse_cpu_times(first)
    assert len(times.by_cpu) == 64
    assert kerneltext.parse_cpu_times(first + b"cpu64 x\n" + b"cpu x\n") == times


def test_kept_file_reads_what_is_there_now(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "x")
    assert file.read() is None
    (tmp_path / "x").write_bytes(b"1\n")
    assert file.read() == b"1\n"
    (tmp_path / "x").write_bytes(b"2\n")
    assert file.read() == b"2\n"
    with pytest.raises(TooLargeError):
        file.read(1)
    file.close()


def test_kept_file_reads_a_table_to_its_end(tmp_path: Path) -> None:
    # smaps comes a page at a time; every Python process has more than a page of it.
    whole = KeptFile(Path("/proc/self/smaps")).read(8 << 20)
    assert whole is not None
    assert whole.count(b"\nRss:") > 20
    assert b"[stack]" in whole


def test_kept_file_that_the_kernel_has_turned_off_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    (tmp_path / "cpu.pressure").write_bytes(b"")
    monkeypatch.setattr(os, "pread", off)
    assert KeptFile(tmp_path / "cpu.pressure").read() is None


def test_kept_file_of_a_process_that_ended() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        file = KeptFile(Path(f"/proc/{child.pid}/stat"))
        assert file.read() is not None
    with pytest.raises(UnreachableError):
        file.read()
