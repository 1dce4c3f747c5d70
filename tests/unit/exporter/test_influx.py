from __future__ import annotations

import gzip
import http.server
import threading
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from collector.catalogue import container, hyper, machine, microvm
from collector.snapshot import ContainerSnapshot, Point, Snapshot, Summary
from exporter import influx, lineprotocol
from exporter.influx import InfluxWriter, Target
from exporter.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def snapshot(number: int = 1, image: str = "img", points: tuple[Point, ...] | None = None) -> Snapshot:
    if points is None:
        points = (
            Point(container.MEMORY_RSS, (), 7),
            Point(container.MEMORY_CACHE, (), 8.5),
            Point(container.CPU_USAGE_SECONDS_TOTAL, ("total",), float("inf")),
            Point(container.NETWORK_RECEIVE_BYTES_TOTAL, ("eth 0",), 9),
        )
    one = ContainerSnapshot(
        id="3f", name="web", state="running", base_values=("3f", "web", image, "t", "", "web"), points=points,
        summary=Summary(), memory_limit_bytes=1, taken_at=10.5, sampled_at={"guest": 10.0},
    )  # fmt: skip
    return Snapshot(number, 10.5, MappingProxyType({"3f": one}), ())


def test_lines_group_fields_and_leave_out_what_influx_cannot_hold() -> None:
    tags = r"id=3f,name=web,image=a\,b\=c\ d_\ ,namespace=t,container=web"
    assert list(lineprotocol.lines(snapshot(image="a,b=c d\\ "), "node1")) == [
        f"container_memory,{tags} rss=7.0,cache=8.5 10000000000",
        f"container_network,{tags},interface=eth\\ 0 receive_bytes_total=9.0 10000000000",
        f"microvm_sample,{tags},source=guest age_seconds=0.5 10500000000",
    ]


def test_what_is_of_no_container_is_told_apart_by_its_host() -> None:
    points = (Point(machine.CPU_CORES, (), 2), Point(hyper.INFLUX_DROPPED_TOTAL, ("late",), 1))
    given = replace(snapshot(), containers=MappingProxyType({}), points=points)
    assert list(lineprotocol.lines(given, "node 1")) == [
        r"machine,node=node\ 1 cpu_cores=2.0 10500000000",
        r"hyper_influx,node=node\ 1,reason=late dropped_total=1.0 10500000000",
    ]


def test_a_value_has_the_time_of_its_own_sample_and_is_written_once() -> None:
    points = (
        Point(container.LAST_SEEN, (), 10.5),
        Point(container.MEMORY_RSS, (), 7),
        Point(microvm.HOST_MEMORY_BYTES, ("vmm",), 8),
        Point(microvm.VMM_STATUS, ("running",), 1),
        Point(container.OOM_EVENTS_TOTAL, (), 0),
    )
    given = snapshot(points=points)
    one = replace(given.containers["3f"], sampled_at={"guest": 10.0, "host": 10.25})

    def times(written: dict[str, dict[str, float]]) -> dict[str, float]:
        now = replace(given, containers=MappingProxyType({"3f": one}))
        found = [line.rsplit(" ", 2) for line in lineprotocol.lines(now, "node1", written)]
        return {
            f"{head.partition(',')[0]}_{field.partition('=')[0]}": int(at_ns) / 1e9
            for head, fields, at_ns in found
            for field in fields.split(",")
        }

    of_the_round = {"container_last_seen": 10.5, "container_oom_events_total": 10.5, "microvm_sample_age_seconds": 10.5}
    # QEMU has told no time: its value is of this round.
    of_now = {**of_the_round, "microvm_vmm_status": 10.5}
    assert times({}) == {**of_now, "container_memory_rss": 10.0, "microvm_host_memory_bytes": 10.25}
    assert times({"3f": {"guest": 10.0, "host": 9.0}}) == {**of_now, "microvm_host_memory_bytes": 10.25}
    assert times({"3f": {"guest": 10.0, "host": 10.25}}) == of_now


def test_spool_keeps_order_and_drops_the_oldest(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=30)
    assert [spool.put(b"x" * 10, at_ns) for at_ns in (1, 2, 3)] == [0, 0, 0]
    assert spool.put(b"y" * 15, 4) == 2
    assert spool.backlog_bytes == 25
    oldest = spool.oldest()
    assert oldest is not None
    assert oldest.path.name.startswith(f"{3:020d}")
    spool.remove(oldest)
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.lp"))] == [b"y" * 15]


def test_spool_outlives_its_process(tmp_path: Path) -> None:
    Spool(tmp_path).put(b"first", 1)
    (tmp_path / "x.part").write_bytes(b"half")
    later = Spool(tmp_path)
    later.put(b"second", 2)
    assert later.backlog_bytes == 11
    assert not list(tmp_path.glob("*.part"))
    batch = later.oldest()
    assert batch is not None
    assert batch.path.read_bytes() == b"first"


class Server:
    """Answers writes with the statuses given, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.encodings: list[str] = []
        self.tokens: list[str | None] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = owner.statuses.pop(0) if owner.statuses else 204
                if status == 204:
                    owner.bodies.append(body)
                    owner.encodings.append(self.headers.get("content-encoding", ""))
                    owner.tokens.append(self.headers.get("authorization"))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                del args

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*statuses: int) -> Server:
        server = Server(*statuses)
        server.thread.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def counts(writer: InfluxWriter) -> dict[tuple[str, ...], float]:
    return {(p.metric.name.removeprefix("hyper_influx_"), *p.label_values): p.value for p in writer.points()}


def test_every_count_of_the_catalogue_is_there(tmp_path: Path) -> None:
    writer = InfluxWriter(Target("http://127.0.0.1:1", "o", "b"), tmp_path, "node1")
    declared = {m for m in vars(hyper).values() if getattr(m, "group", "") == "hyper_influx"}
    assert {point.metric for point in writer.points()} == declared


def test_failures_are_tried_again_and_order_is_kept(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(503, 429, 500)
    writer = InfluxWriter(Target(server.url, "o", "b"), tmp_path, "node1", first_retry_s=0.01)
    for number in (1, 2, 3):
        writer.offer(snapshot(points=(Point(container.MEMORY_RSS, (), number),)))
    writer.start()
    wait_for(lambda: counts(writer)["written_total",] == 3)
    writer.stop()
    found = counts(writer)
    assert found["failures_total",] == 3
    assert found["backlog_bytes",] == 0
    assert server.encodings == ["gzip"] * 3


def test_a_refused_batch_does_not_block_the_next(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(400)
    writer = InfluxWriter(Target(server.url, "o", "b"), tmp_path, "node1", first_retry_s=0.01)
    writer.offer(snapshot(1))
    writer.offer(snapshot(2))
    writer.start()
    wait_for(lambda: counts(writer)["written_total",] == 1)
    writer.stop()
    assert counts(writer)["dropped_total", "refused"] == 1
    assert counts(writer)["failures_total",] == 0


@pytest.mark.parametrize(
    "wrong",
    [b"\xef\xbb\xbfSECRET\n", b"SECRET\nof 2026\n", b"SECRET\n folded\n", b"SECRET\0\n", b"SECRET\xff\xfe\n"],
    ids=["byte order mark", "two lines", "a folded line", "no text", "not UTF-8"],
)
def test_a_token_file_may_be_wrong_until_it_is_corrected(
    wrong: bytes, tmp_path: Path, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    file = tmp_path / "token"
    file.write_bytes(wrong)
    writer = InfluxWriter(Target(server.url, "o", "b", file), tmp_path / "spool", "node1", first_retry_s=0.01)
    writer.offer(snapshot())
    writer.start()
    wait_for(lambda: counts(writer)["failures_total",] >= 2)
    (tmp_path / "right").write_text("SECRET\n")
    (tmp_path / "right").replace(file)  # at once: an empty file would do, and send none
    wait_for(lambda: counts(writer)["written_total",] == 1)
    writer.stop()
    assert server.tokens == ["Token SECRET"]
    assert f"influx_token_file {file}: more than one line, or not plain ASCII" in caplog.text
    assert "write the token into it and nothing else" in caplog.text
    assert "SECRET" not in caplog.text


def test_an_error_that_nobody_thought_of_ends_no_thread(
    tmp_path: Path, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    errors = {"lines": [TypeError("a defect")], "InfluxDBClient": [RuntimeError("Token SECRET")]}

    def fails_once(module: object, name: str) -> None:
        original = getattr(module, name)

        def call(*args: object, **more: object) -> object:
            if errors[name]:
                raise errors[name].pop()
            return original(*args, **more)

        monkeypatch.setattr(module, name, call)

    fails_once(lineprotocol, "lines")
    fails_once(influx, "InfluxDBClient")
    writer = InfluxWriter(Target(server.url, "o", "b"), tmp_path, "node1", first_retry_s=0.01)
    writer.offer(snapshot(1))
    writer.offer(snapshot(2))
    writer.start()
    wait_for(lambda: counts(writer)["written_total",] == 1)
    writer.stop()
    assert counts(writer)["dropped_total", "defect"] == 1
    assert counts(writer)["failures_total",] == 1
    assert "a defect" in caplog.text
    assert "cannot send a batch: RuntimeError" in caplog.text
    assert "in _write" in caplog.text, "it says where"
    assert "SECRET" not in caplog.text


def test_a_file_of_the_spool_that_is_no_text_is_for_the_server_to_judge(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    Spool(tmp_path).put(b"\xff\xfe", 1)
    server = serve()
    writer = InfluxWriter(Target(server.url, "o", "b"), tmp_path, "node1", first_retry_s=0.01)
    writer.start()
    wait_for(lambda: counts(writer)["written_total",] == 1)
    writer.stop()
    assert gzip.decompress(server.bodies[0]) == b"\xff\xfe"


def test_offering_never_waits(tmp_path: Path) -> None:
    writer = InfluxWriter(Target("http://127.0.0.1:1", "o", "b"), tmp_path, "node1")
    started = time.monotonic()
    for number in range(100):  # its threads are not started: nothing takes them
        writer.offer(snapshot(number))
    assert time.monotonic() - started < 1
    assert counts(writer)["dropped_total", "late"] == 92


def test_stopping_spools_what_was_offered(tmp_path: Path) -> None:
    writer = InfluxWriter(Target("http://127.0.0.1:1", "o", "b"), tmp_path, "node1", first_retry_s=30)
    writer.start()
    writer.offer(snapshot())
    writer.stop()
    assert Spool(tmp_path).backlog_bytes > 0
