"""Every parser of what a guest or a VMM sends: it gives numbers that fit, or it raises `MalformedError`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import channel, kerneltext
from collector.errors import MalformedError
from collector.reconcile import guest_oom_kills, guest_points, label, vmm_points
from collector.sources import cgroup, guest, machine, process, runtime_counters, vmm
from exporter.exposition import base_labels, escape, render_points
from exporter.lineprotocol import tag_value
from exporter.negotiation import accepts_gzip, choose_format
from tests.fakevm.scenario import BASE, base_record, guest_files, read_json

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS: dict[str, Callable[[bytes], Any]] = {
    "count": kerneltext.parse_count,
    "single": kerneltext.parse_single,
    "limit": kerneltext.parse_limit,
    "flat": kerneltext.parse_flat,
    "meminfo": kerneltext.parse_meminfo,
    "pressure": kerneltext.parse_pressure,
    "net_dev": kerneltext.parse_net_dev,
    "net_table": kerneltext.parse_net_table,
    "steal": kerneltext.parse_steal,
    "io_stat": kerneltext.parse_io_stat,
    "diskstats": kerneltext.parse_diskstats_names,
    "count_lines": kerneltext.count_lines,
    "cgroup_cpu": lambda text: cgroup.parse_cpu(None, text),
    "cgroup_page_cache": lambda text: cgroup.parse_page_cache(None, text),
    "cgroup_oom": lambda text: cgroup.parse_oom_kills(text, None),
    "process_stat": process.parse_stat,
    "schedstat": process.parse_schedstat,
    "process_io": process.parse_io,
    "smaps": lambda text: process.parse_smaps(text, 192 << 20),
    "cpu_count": machine.parse_cpu_count,
    "runtime_json": runtime_counters.parse,
    "json_object": channel.parse_object,
}
REAL = sorted(path for path in BASE.rglob("*") if path.is_file() and path.suffix != ".json")

words = st.sampled_from([b"some", b"full", b"total=", b"rbytes=", b"cpu", b"kB", b"Tcp:", b"eth0:", b":", b"=", b"lo:"])
tokens = st.one_of(words, st.integers(-1, 2**70).map(lambda n: str(n).encode()), st.binary(max_size=8))
lines = st.lists(st.lists(tokens, max_size=20).map(b" ".join), max_size=12).map(b"\n".join)
texts = st.one_of(st.binary(max_size=512), lines)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)


@pytest.mark.parametrize("name", PARSERS)
@given(text=texts)
def test_parser_fails_cleanly(name: str, text: bytes) -> None:
    try:
        result = PARSERS[name](text)
    except MalformedError:
        return
    assert all(0 <= number <= kerneltext.MAX_COUNT * 1024 for number in _numbers(result) if name != "json_object")


@pytest.mark.parametrize("name", PARSERS)
@given(real=st.sampled_from(REAL), cut=st.integers(0, 600), byte=st.binary(min_size=1, max_size=3))
def test_parser_survives_damaged_files(name: str, real: Any, cut: int, byte: bytes) -> None:
    text = real.read_bytes()
    damaged = text[: cut % (len(text) + 1)] + byte + text[(cut + 1) % (len(text) + 1) :]
    try:
        PARSERS[name](damaged)
    except MalformedError:
        return


@given(number=st.integers(0, 2**64 - 1))
def test_count_round_trip(number: int) -> None:
    assert kerneltext.parse_count(str(number).encode()) == number


@given(number=st.one_of(st.integers(2**64, 2**80), st.integers(-(2**70), -1)))
def test_count_beyond_64_bits_is_malformed(number: int) -> None:
    with pytest.raises(MalformedError):
        kerneltext.parse_count(str(number).encode())


@given(answer=json_values)
def test_answers_of_any_shape(answer: Any) -> None:
    for parse in (vmm.parse_status, vmm.parse_blockstats, lambda a: vmm.parse_thread_ids(a, a)):
        try:
            parse(answer)
        except MalformedError:
            continue
    try:
        guest.parse_sample(answer, "/sys/fs/cgroup/container")
    except MalformedError:
        return


@given(data=st.data())
def test_lying_guest_gives_finite_points_with_clean_labels(data: st.DataObject) -> None:
    answer = dict(read_json("base", "agent.json")["hyper-read"])
    files = guest_files()
    for path in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=4)):
        files[path] = data.draw(texts)
    answer["files"] = [{"path": path, "data": text.decode("latin-1")} for path, text in files.items()]
    try:
        sample = guest.parse_sample(answer, "/sys/fs/cgroup/container", host_time_s=0.0)
    except MalformedError:
        return
    points = [*guest_points(base_record(), sample)]
    assert all(math.isfinite(point.value) and point.value >= 0 for point in points)
    assert all(" " <= c <= "~" for point in points for value in point.label_values for c in value)
    assert all(kills >= 0 for kills in guest_oom_kills(sample).values())


@given(name=st.text(max_size=200), counts=st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5))
def test_lying_vmm_gives_clean_labels(name: str, counts: list[int]) -> None:
    sample = vmm.VmmSample(name, (vmm.BlockDevice(name, *counts),))
    for point in vmm_points(sample):
        assert all(len(value) <= 64 and value.isprintable() and value.isascii() for value in point.label_values)


@given(value=st.text())
def test_label_is_short_printable_ascii(value: str) -> None:
    assert len(label(value)) <= 64
    assert all(" " <= c <= "~" for c in label(value))


@given(value=st.text())
def test_escaped_label_is_one_line_and_closed(value: str) -> None:
    escaped = escape(value)
    assert "\n" not in escaped
    assert '"' not in escaped.replace("\\\\", "").replace('\\"', "")
    assert escaped.replace("\\\\", "\0").replace("\\n", "\n").replace('\\"', '"').replace("\0", "\\") == value or (
        "\0" in value
    )


@given(value=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_tag_value_ends_nothing(value: str) -> None:
    tag = tag_value(value)
    assert not tag.endswith("\\")
    assert "\\\\" not in tag
    assert not set("\n\r\t") & set(tag)


@given(header=st.text(max_size=300))
def test_any_accept_header_is_answered(header: str) -> None:
    assert choose_format(header) in {"text", "openmetrics"}
    assert accepts_gzip(header) in {True, False}


@given(values=st.lists(st.text(max_size=20), min_size=6, max_size=6))
def test_any_base_labels_make_one_line_per_point(values: list[str]) -> None:
    points = [*vmm_points(vmm.VmmSample("running", ()))]
    families, count = render_points(points, base_labels(values))
    text = "".join(f for f in families if f)
    assert text.count("\n") == count == len(points)


@given(value=json_values)
def test_channel_reads_back_any_object_without_nan(value: Any) -> None:
    try:
        text = json.dumps({"return": value}, allow_nan=False)
    except ValueError:
        with pytest.raises(MalformedError):
            channel.parse_object(json.dumps({"return": value}).encode())
    else:
        assert channel.parse_object(text.encode()) == {"return": value}


def _numbers(value: Any) -> list[float]:
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return []
