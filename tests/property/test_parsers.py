"""Every parser of what a guest or a VMM sends: it gives numbers that fit, or it raises `MalformedError`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import channel, kerneltext
from collector.definitions.microvm import EVENT_NAMES, STARVERS
from collector.details import guest_details, vmm_details
from collector.errors import MalformedError
from collector.reconcile import event_points, guest_oom_kills, guest_points, label, vmm_points
from collector.sources import (
    alertmanager,
    cgroup,
    guest,
    guestport,
    healthchecks,
    links,
    machine,
    process,
    qmp,
    runtime_counters,
    stockagent,
    vmm,
)
from collector.views import Pair, Shares, memory_points, overhead_cpu, residual_seconds, shares
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
    "wanted_of_net_table": lambda text: kerneltext.parse_net_table(text, frozenset({b"Tcp.CurrEstab", b"TcpExt.TW"})),
    "value": lambda text: kerneltext.parse_value(text, b"oom_kill"),
    "values": lambda text: kerneltext.parse_values(text, (b"anon", b"file")),
    "meminfo_value": lambda text: kerneltext.parse_meminfo_value(text, b"MemFree"),
    "cpu_times": kerneltext.parse_cpu_times,
    "tcp_states": kerneltext.parse_tcp_states,
    "sockets": kerneltext.parse_sockets,
    "file_count": kerneltext.parse_file_count,
    "io_stat": kerneltext.parse_io_stat,
    "diskstats": kerneltext.parse_diskstats,
    "count_lines": kerneltext.count_lines,
    "cgroup_cpu": lambda text: cgroup.parse_cpu(None, text),
    "cgroup_page_cache": lambda text: cgroup.parse_page_cache(None, text),
    "cgroup_oom": lambda text: cgroup.parse_oom_kills(text, None),
    "cgroup_throttled": lambda text: cgroup.parse_throttled(None, text),
    "cgroup_memory_limit": lambda text: cgroup.parse_memory_limit(text, None),
    "process_stat": process.parse_stat,
    "schedstat": process.parse_schedstat,
    "process_io": process.parse_io,
    "smaps": lambda text: process.parse_smaps(text, 192 << 20),
    "cpu_count": machine.parse_cpu_count,
    "topology_id": machine.parse_topology_id,
    "runtime_json": runtime_counters.parse,
    "health_json": lambda text: healthchecks.parse(text, 1),
    "links": lambda text: [links.counters(name, links.index(text)) for name in links.index(text)],
    "json_object": channel.parse_object,
    "answer": guestport.parse_answer,
    "alerts": alertmanager.parse_alerts,
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
    least = -1 if name == "topology_id" else 0  # Linux says -1 where it does not know
    assert all(
        least <= number <= kerneltext.MAX_COUNT * 1024
        for number in _numbers(result)
        if name not in {"json_object", "answer"}
    )


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
    for parse in QMP_PARSERS:
        try:
            parse(answer)
        except MalformedError:
            continue
    for deep in (False, True):
        try:
            guest.parse_sample(answer, "/sys/fs/cgroup/container", deep=deep)
        except MalformedError:
            continue


QMP_PARSERS: tuple[Callable[[object], Any], ...] = (
    qmp.parse_status,
    qmp.parse_blockstats,
    lambda answer: qmp.parse_thread_ids(answer, answer),
    qmp.parse_balloon,
    qmp.parse_balloon_interval,
    qmp.parse_balloon_stats,
    lambda answer: qmp.parse_balloon_path("/machine/peripheral", answer),
    qmp.parse_kvm_exits,
    qmp.parse_virtio,
    qmp.parse_queue_count,
    qmp.parse_inflight,
    stockagent.parse_time,
    stockagent.parse_interfaces,
    stockagent.parse_disks,
    stockagent.parse_root,
    stockagent.parse_cpus,
)


@given(data=st.data())
def test_a_damaged_answer_of_qemu_or_its_agent_fails_cleanly(data: st.DataObject) -> None:
    """One value somewhere in an honest answer is another: what comes out is counts, or nothing."""
    answers = read_json("base", "qmp.json") | read_json("deep-kvm", "scenario.json")["qmp"]
    answers |= read_json("qemu-ga", "qemu-ga.json")
    name, parse = data.draw(
        st.sampled_from(
            [
                ("query-blockstats", qmp.parse_blockstats),
                ("query-stats", qmp.parse_kvm_exits),
                ("query-balloon", qmp.parse_balloon),
                ("qom-get /machine/peripheral/balloon0 guest-stats", _balloon_values),
                ("x-query-virtio", qmp.parse_virtio),
                ("x-query-virtio-status", qmp.parse_queue_count),
                ("x-query-virtio-queue-status", qmp.parse_inflight),
                ("guest-get-time", stockagent.parse_time),
                ("guest-network-get-interfaces", stockagent.parse_interfaces),
                ("guest-get-diskstats", stockagent.parse_disks),
                ("guest-get-fsinfo", stockagent.parse_root),
                ("guest-get-cpustats", stockagent.parse_cpus),
            ]
        )
    )
    answer = answers[name]
    place: Any = answer
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    try:
        found = parse(answer)
    except MalformedError:
        return
    if name == "query-blockstats":
        found = [*vmm_details(vmm.VmmSample("running", vmm.Details(found)))]
        assert all(len(value) <= 64 and value.isascii() for point in found for value in point.label_values)
        found = [point.value for point in found]
    assert all(0 <= number <= kerneltext.MAX_COUNT * 1024 for number in _numbers(found))


times = st.floats(0, 1e6) | st.integers(0, 2**64).map(float)
maybe = st.none() | times
pairs = st.builds(Pair, times, times, maybe, maybe, times, times, times, maybe, maybe, maybe, maybe)


@given(before=pairs, now=pairs, vcpus=st.integers(0, 64))
def test_no_pair_of_samples_gives_a_share_or_a_residual_that_cannot_be(before: Pair, now: Pair, vcpus: int) -> None:
    ratio = overhead_cpu(before, now)
    assert ratio is None or 0 <= ratio <= 1
    residual = residual_seconds(before, now)
    assert residual is None or 0 <= residual < math.inf
    found = shares(before, now, vcpus)
    assert found is None or all(0 <= share <= 1 for share in (found.waiting, found.limit, found.host))
    assert found is None or 0 <= found.wanted < math.inf
    assert found is None or found.starved_by in STARVERS


@given(waiting=st.floats(0, 1), limit=st.floats(0, 1), host=st.floats(0, 1))
def test_the_verdict_is_a_cause_that_is_large_enough(waiting: float, limit: float, host: float) -> None:
    by = Shares(1.0, waiting, limit, host).starved_by
    large = {name for name, share in (("limit", limit), ("host", host), ("self", waiting)) if share >= 0.1}
    assert by in large | {"none"}
    assert by != "none" or not large & {"limit", "host"}


@given(sizes=st.lists(st.integers(0, 2**64), min_size=6, max_size=6))
def test_memory_of_two_views_never_wraps(sizes: list[int]) -> None:
    answer = {**read_json("base", "agent.json")["hyper-read"], "files": []}
    sample = replace(
        guest.parse_sample(answer, "/sys/fs/cgroup/container"), memory_bytes=sizes[0], memory_free_bytes=sizes[1]
    )
    ran = process.ProcessSample(0.0, None, None, None, None, None, process.VmMemory(*sizes[2:5]), memory_is_new=True)
    points = [*memory_points(sample, ran, sizes[5], deep=True)]
    assert len(points) == 2
    assert all(0 <= point.value <= 2**66 for point in points)


@given(data=st.data())
def test_lying_guest_gives_finite_points_with_clean_labels(data: st.DataObject) -> None:
    answer = dict(read_json("base", "agent.json")["hyper-read"])
    files = guest_files()
    for path in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=4)):
        files[path] = data.draw(texts)
    answer["files"] = [{"path": path, "data": text.decode("latin-1")} for path, text in files.items()]
    try:
        sample = guest.parse_sample(answer, "/sys/fs/cgroup/container", host_time_s=0.0, deep=True)
    except MalformedError:
        return
    points = [*guest_points(base_record(), sample), *guest_details(base_record(), sample)]
    assert all(math.isfinite(point.value) and point.value >= 0 for point in points)
    assert all(" " <= c <= "~" for point in points for value in point.label_values for c in value)
    assert all(kills >= 0 for kills in guest_oom_kills(sample).values())


@given(name=st.text(max_size=200), counts=st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5))
def test_lying_vmm_gives_clean_labels(name: str, counts: list[int]) -> None:
    inflight = {(name, 0): counts[0]}
    sample = vmm.VmmSample(name, vmm.Details((qmp.BlockDevice(name, *counts),), inflight))
    for point in (*vmm_points(sample), *vmm_details(sample)):
        assert all(len(value) <= 64 and value.isprintable() and value.isascii() for value in point.label_values)


@given(answer=json_values)
def test_alerts_of_any_shape_name_containers_or_nothing(answer: Any) -> None:
    for value in (answer, [answer], [{"labels": answer}], [{"labels": {"id": answer}}]):
        try:
            found = alertmanager.parse_alerts(json.dumps(value).encode())
        except MalformedError:
            continue
        assert all(len(one) == 64 for one in found)


@given(event=st.dictionaries(st.sampled_from(["event", "data"]), json_values) | st.just({"event": "SHUTDOWN"}))
def test_any_event_has_a_known_name_or_none(event: dict[str, Any]) -> None:
    name = vmm.event_name(event)
    assert name is None or name.partition(":")[0] in set(EVENT_NAMES.values())


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


@given(value=st.text(st.characters(exclude_categories=["Cs"])) | st.text("a\\,= \n\r\t"))
def test_tag_value_ends_nothing(value: str) -> None:
    tag = tag_value(value)
    assert not set(re.sub(r"\\[,= ]", "", tag)) & set("\\,= \n\r\t"), (
        "each is written behind a backslash, or not at all"
    )
    assert re.sub(r"\\(.)", r"\1", tag) == re.sub(r"[\n\r\t]", " ", value).replace("\\", "_")


@given(header=st.text(max_size=300))
def test_any_accept_header_is_answered(header: str) -> None:
    assert choose_format(header) in {"text", "openmetrics"}
    assert accepts_gzip(header) in {True, False}


@given(values=st.lists(st.text(max_size=20), min_size=6, max_size=6))
def test_any_base_labels_make_one_line_per_point(values: list[str]) -> None:
    points = [*vmm_points(vmm.VmmSample("running")), *event_points({"reset": 1})]
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


def _balloon_values(answer: object) -> object:
    told = qmp.parse_balloon_stats(answer)
    return None if told is None else dict(told.values)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, int | float):
        return [value]
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return []
