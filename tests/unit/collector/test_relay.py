from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from collector import asked, relay
from collector.application import Application
from collector.definitions import container
from collector.errors import MalformedError, SourceError, TooLargeError, WedgedError
from collector.sources import fetch as fetching
from collector.sources import httpanswer
from collector.sources.apptext import MAX_LINES, Parsed, canonical, parse_labels, parse_text
from collector.sources.fetch import PART_BYTES, fetch, parse_fetched
from tests.steps import outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

HISTOGRAM = """\
# TYPE t histogram
t_bucket{path="/a",le="1"} 2
t_bucket{path="/b",le="+Inf"} 5
t_bucket{path="/a",le="+Inf"} 3
t_count{path="/a"} 3
t_sum{path="/a"} 1.5
"""


def parse(text: str, *wanted: str) -> list[Parsed]:
    return parse_text(text.encode(), wanted)


def select(text: str, budget: int = 500) -> tuple[list[str], dict[str, int]]:
    families, dropped = outcome(relay.select(parse(text), relay.Names(), "one", budget))
    return [family.name for family in families], dict(dropped)


def test_both_formats_are_read() -> None:
    text = """\
# HELP http_requests_total Requests\\nserved.
# TYPE http_requests_total counter
http_requests_total{code="200",method="GET"} 1027 1395066363000
http_requests_total{code="400", method = "P\\"O\\\\ST\\n",} 3

# any other comment
temperature -2.5e1
temperature_max{} +Inf # {trace="x"} 1
"""
    requests, temperature, most = parse(text)
    assert (requests.name, requests.type, requests.help) == ("http_requests_total", "counter", "Requests\nserved.")
    assert [sample.value for sample in requests.samples] == [1027, 3]
    assert dict(requests.samples[1].labels) == {"code": "400", "method": 'P"O\\ST\n'}
    assert (temperature.type, temperature.samples[0].value) == ("unknown", -25)
    assert most.samples[0].value == float("inf")
    openmetrics = '# HELP jobs Done.\n# TYPE jobs counter\njobs_total 4 # {id="7"} 1 9.5\njobs_created 9.5\n# EOF\n'
    (jobs,) = parse(openmetrics)
    assert (jobs.name, jobs.type, jobs.help, len(jobs.samples)) == ("jobs_total", "counter", "Done.", 1)


def test_only_names_that_are_wanted_are_kept() -> None:
    text = "app_a 1\napp_b 1\nother 1\n"
    assert [family.name for family in parse(text, "app_", "x")] == ["app_a", "app_b"]


@pytest.mark.parametrize(
    "text",
    [
        "a", "1a 1", "a b", "a 1 2 3", "a 1_000", "a 0x10", "a{b} 1", 'a{b="c} 1', 'a{b="c"', 'a{b="c"d="e"} 1',
        'a{b="c",b="d"} 1', 'a{__name__="up"} 1', "a1", "{} 1", "a {", "a 1e99999", "a " + "9" * 100,
        "a" * 300 + " 1", 'a{b="' + "x" * 2000 + '"} 1', "a{" + ",".join(f'l{n}="1"' for n in range(40)) + "} 1",
        "a " + " " * 20_000 + "1", "<html>",
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_one_bad_line_and_nothing_is_taken(text: str) -> None:
    with pytest.raises(MalformedError):
        parse(f"good 1\n{text}\n")


def test_a_text_that_is_none_is_refused() -> None:
    with pytest.raises(MalformedError, match="UTF-8"):
        parse_text(b"a 1\n\xff\n")
    with pytest.raises(TooLargeError):
        parse("a 1\n" * (MAX_LINES + 1))
    assert parse("") == []
    assert parse_labels(" ") == ()


@pytest.mark.parametrize(
    ("bound", "text"),
    [("1", "1.0"), ("0.005", "0.005"), ("5e-3", "0.005"), ("10000000", "1e+07"), ("+Inf", "+Inf"), ("inf", "+Inf"),
     ("NaN", None), ("", None), ("x", None), ("2500000", "2.5e+06"), ("-1", "-1.0")],
)  # fmt: skip
def test_bounds_are_written_in_one_way(bound: str, text: str | None) -> None:
    assert canonical(bound) == text


def test_names_of_the_standard_are_refused() -> None:
    text = "\n".join(
        f"{name} 1" for name in ("container_x", "microvm_x", "machine_x", "hyper_x", "up", "scrape_x", "a:b", "ALERTS")
    )
    assert select(f"{text}\nmine 1\nupper 1\n") == (["mine", "upper"], {"reserved": 8})


def test_labels_of_the_application_do_not_hide_those_of_its_container() -> None:
    (family,), _ = outcome(
        relay.select(parse('a{id="x",exported_id="y",job="z",path="/"} 1\n'), relay.Names(), "one", 10)
    )
    assert dict(family.samples[0].labels) == {
        "exported_exported_id": "x", "exported_id": "y", "exported_job": "z", "path": "/",
    }  # fmt: skip


def test_a_histogram_is_put_in_order() -> None:
    (family,), dropped = outcome(relay.select(parse(HISTOGRAM), relay.Names(), "one", 10))
    assert dropped == {}
    assert [(sample.name, dict(sample.labels).get("le")) for sample in family.samples] == [
        ("t_bucket", "1.0"), ("t_bucket", "+Inf"), ("t_count", None), ("t_sum", None), ("t_bucket", "+Inf"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "# TYPE a_total counter\na_total -1\n",
        "# TYPE a_total counter\na_total NaN\n",
        "a 1\na 2\n",
        '# TYPE t histogram\nt_bucket{le="1"} 1\n',
        '# TYPE t histogram\nt_bucket{le="1"} 2\nt_bucket{le="+Inf"} 1\n',
        '# TYPE t histogram\nt_bucket{le="1"} 1\nt_bucket{le="1.0"} 1\nt_bucket{le="+Inf"} 1\n',
        '# TYPE t histogram\nt_bucket{le="+Inf"} 1\nt_count 2\nt_sum 1\n',
        '# TYPE t histogram\nt_bucket{le="+Inf"} 1.5\n',
        '# TYPE t histogram\nt_bucket{le="+Inf"} NaN\n',
        "# TYPE t histogram\nt_bucket 1\n",
        "# TYPE t histogram\nt_count 1\nt_sum 1\n",
        "# TYPE t histogram\nt 1\n",
        '# TYPE t summary\nt{quantile="2"} 1\n',
        "# TYPE t summary\nt 1\n",
        "# TYPE t summary\nt_count 1.5\n",
        '# TYPE t summary\nt{quantile="0.5"} 1\nt{quantile="5e-1"} 2\n',
    ],
)
def test_a_family_that_contradicts_itself_is_left_out(text: str) -> None:
    names, dropped = select(f"{text}fine 1\n")
    assert names == ["fine"]
    assert set(dropped) == {"invalid"}


def narrowed(text: str, *keep: str) -> tuple[list[tuple[str, dict[str, str], float]], dict[str, int]]:
    families, dropped = outcome(relay.select(parse(text), relay.Names(), "one", 10, frozenset(keep)))
    return [(s.name, dict(s.labels), s.value) for family in families for s in family.samples], dict(dropped)


def test_labels_that_are_not_kept_go_and_counts_are_added_up() -> None:
    counts = """\
# TYPE a_total counter
a_total{path="/x",code="200"} 1
a_total{path="/y",code="200"} 2
a_total{code="500"} 4
"""
    assert narrowed(counts, "code") == ([("a_total", {"code": "200"}, 3), ("a_total", {"code": "500"}, 4)], {})
    assert narrowed(counts, "none") == ([("a_total", {}, 7)], {})
    assert narrowed('# TYPE hits counter\nhits{a="1"} 1\nhits{a="2"} 1\n', "b") == ([("hits", {}, 2)], {})
    assert narrowed('a{name="x",b="y"} 1\n', "name") == ([("a", {"exported_name": "x"}, 1)], {})


def test_histograms_are_added_up_by_bucket() -> None:
    other = HISTOGRAM + 't_bucket{path="/b",le="1.0"} 4\nt_sum{path="/b"} 2.5\nt_count{path="/b"} 5\n'
    assert narrowed(other, "code") == (
        [("t_bucket", {"le": "1.0"}, 6), ("t_bucket", {"le": "+Inf"}, 8), ("t_count", {}, 8), ("t_sum", {}, 4.0)],
        {},
    )
    assert narrowed(HISTOGRAM, "code") == ([], {"ambiguous": 5}), "with other buckets they have no sum"
    assert len(narrowed(HISTOGRAM, "path")[0]) == 5


@pytest.mark.parametrize(
    "text",
    [
        '# TYPE g gauge\ng{a="1"} 1\ng{a="2"} 2\n',
        'u{a="1"} 1\nu{a="2"} 2\n',
        '# TYPE s summary\ns{a="1",quantile="0.5"} 1\ns{a="2",quantile="0.5"} 2\n',
        '# TYPE c_total counter\nc_total{a="1"} 1e308\nc_total{a="2"} 1e308\n',
    ],
)
def test_what_has_no_sum_is_left_out_as_a_whole(text: str) -> None:
    assert narrowed(f"{text}fine 1\n", "b") == ([("fine", {}, 1)], {"ambiguous": 2})


def test_a_series_that_was_there_twice_is_not_added_up() -> None:
    assert narrowed('# TYPE a_total counter\na_total{b="1"} 1\na_total{b="1"} 1\n', "c") == ([], {"invalid": 2})


def test_the_budget_counts_what_is_left() -> None:
    many = "# TYPE m_total counter\n" + "".join(f'm_total{{path="/{n}"}} 1\n' for n in range(100))
    assert narrowed(many, "code") == ([("m_total", {}, 100)], {})


MANY: dict[str, str] = {
    "a histogram": "# TYPE h histogram\n"
    + "".join(f'h_bucket{{le="{n}"}} 1\n' for n in range(3000))
    + 'h_bucket{le="+Inf"} 1\n',
    "many histograms": "# TYPE h histogram\n" + "".join(f'h_bucket{{a="{n}",le="+Inf"}} 1\n' for n in range(3000)),
    "a summary": "# TYPE s summary\n" + "".join(f's{{a="{n}",quantile="0.5"}} 1\n' for n in range(3000)),
    "a counter": "# TYPE c_total counter\n" + "".join(f'c_total{{a="{n}"}} 1\n' for n in range(3000)),
    "labels of ours": "".join(f'g{{id="{n}"}} 1\n' for n in range(3000)),
    "many families": "".join(f"g{n} 1\n" for n in range(3000)),
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
@pytest.mark.parametrize("keep", [None, frozenset({"b"}), frozenset({"a", "id"})], ids=["all", "none", "some"])
def test_a_long_text_is_looked_at_in_slices(text: str, keep: frozenset[str] | None) -> None:
    steps = [*relay.select(parse(text), relay.Names(), "one", 400, keep)]
    assert max(steps) <= 400, "a slice, or the bounds of one histogram"
    if keep is not None and text is not MANY["a histogram"]:
        assert sum(steps) >= 3000


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_what_cannot_fit_is_not_looked_at(text: str) -> None:
    parsed = parse(text)
    if len(parsed) == 1:
        assert [*relay.select(parsed, relay.Names(), "one", 500)] == [1]
    families, dropped = outcome(relay.select(parsed, relay.Names(), "one", 500))
    assert sum(dropped.values()) + relay.series(families) == sum(len(family.samples) for family in parsed)
    assert set(dropped) == {"budget"}


def test_more_bounds_than_fit_cannot_be_narrowed() -> None:
    steps = [*relay.select(parse(MANY["a histogram"]), relay.Names(), "one", 500, frozenset({"a"}))]
    assert sum(steps) < 3000
    assert narrowed(MANY["a histogram"], "a") == ([], {"budget": 3001})


async def test_others_have_turns_while_a_text_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    seen: list[int] = []

    def select(*_: object) -> Generator[int, None, tuple[tuple[()], dict[str, int]]]:
        for _ in range(4):
            yield 200
            seen.append(turns)
        return (), {"budget": 1}

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def ask(command: str, _: object) -> Any:
        body = "HTTP/1.0 200 OK\n\n"
        return {} if command == "hyper-fetch" else {**DONE, "length": len(body), "data": body}

    monkeypatch.setattr(relay, "select", select)
    monkeypatch.setattr("collector.application.PATIENCE_S", 30.0)
    one = Application("one", {asked.METRICS: "80"}, relay.Names())
    beside = asyncio.create_task(other())
    one.begin(ask)
    await one.settle()
    beside.cancel()
    assert [point.value for point in one.points() if point.metric is container.RELAY_DROPPED_TOTAL] == [1]
    assert seen[0] < seen[1] == seen[2] < seen[3], "after every second step, which are more than a slice"


def test_a_bomb_does_not_take_the_others_with_it() -> None:
    bomb = "".join(f'bomb{{n="{n}"}} 1\n' for n in range(1000))
    assert select(f"first 1\n{bomb}last 1\n", budget=10) == (["first", "last"], {"budget": 1000})
    assert select("a 1\nb 1\nc 1\n", budget=2) == (["a", "b"], {"budget": 1})


def test_a_name_has_the_type_of_whoever_came_first() -> None:
    names = relay.Names()

    def of(container: str, text: str) -> tuple[list[str], int]:
        families, dropped = outcome(relay.select(parse(text), names, container, 100))
        return [family.name for family in families], dropped.get("type", 0)

    assert of("one", "# TYPE x_total counter\nx_total 1\n") == (["x_total"], 0)
    assert of("two", "# TYPE x_total gauge\nx_total 1\ny 1\n") == (["y"], 1)
    assert of("two", "# TYPE x gauge\nx 1\n") == ([], 1), "OpenMetrics names the counter so"
    assert of("two", "# TYPE x_total counter\nx_total 1\n") == (["x_total"], 0)
    names.release("one")
    assert of("three", "# TYPE x gauge\nx 1\n") == ([], 1), "there is still one that has it"
    names.release("two")
    assert of("three", "# TYPE x gauge\nx 1\n") == (["x"], 0)
    assert of("three", "# TYPE x counter\nx 1\n") == (["x"], 0), "it gives its own type up"
    assert outcome(relay.select(parse("# TYPE x counter\nx 1\n"), names, "three", 9))[0][0].type == "unknown"
    assert of("four", "# TYPE h histogram\n" + 'h_bucket{le="+Inf"} 1\n# TYPE h_count gauge\nh_count 1\n')[1] >= 1


@pytest.mark.parametrize(
    ("data", "status", "body", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nabc", 200, b"abc", True),
        (b"HTTP/1.0 404\n\nno", 404, b"no", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", 200, b"ab", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", 200, b"abc", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n", 200, b"abc", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 200, b"ab", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n", 302, b"", True),
    ],
)
def test_an_http_answer(data: bytes, status: int, body: bytes, whole: bool) -> None:
    assert httpanswer.parse_answer(data, ended=True) == httpanswer.Answer(status, body, whole)


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0\r\n\r\n", b"", b"HTTP/1.1 200", b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_http_answer(data: bytes) -> None:
    with pytest.raises(SourceError):
        httpanswer.parse_answer(data, ended=True)


def test_what_labels_ask_for() -> None:
    labels = {
        "hyper.metrics": "9100/metrics?x=1", "hyper.metrics.interval": "1m", "hyper.metrics.timeout": "500ms",
        "hyper.metrics.budget": "50", "hyper.metrics.allow": "http_, go_goroutines", "hyper.probe": "http:8080",
        "hyper.probe.interval": "2.5",
    }  # fmt: skip
    assert asked.parse_relay(labels) == asked.Relay(9100, "/metrics?x=1", 60.0, 0.5, 50, ("http_", "go_goroutines"))
    assert asked.parse_probe(labels) == asked.Probe("http", 8080, "/", 2.5, asked.DEFAULT_TIMEOUT_S)
    assert asked.parse_relay({"hyper.metrics": "1"}) == asked.Relay(1, "/metrics", 0.0, 5.0, 500, ())
    kept = asked.parse_relay({"hyper.metrics": "1", "hyper.metrics.labels": "code, method"})
    assert kept is not None
    assert kept.labels == {"code", "method"}
    assert asked.parse_probe({"hyper.probe": "tcp:5432"}) == asked.Probe("tcp", 5432, "", 0.0, 5.0)
    assert asked.parse_relay({"hyper.metrics.tier": "deep"}) is None
    assert asked.parse_probe({}) is None


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("hyper.metrics", ""), ("hyper.metrics", "0"), ("hyper.metrics", "65536"), ("hyper.metrics", "80 /x"),
        ("hyper.metrics", "80/a b"), ("hyper.metrics", "80/\r\nX: y"), ("hyper.metrics", "host:80"),
        ("hyper.metrics.budget", "0"), ("hyper.metrics.budget", "5001"), ("hyper.metrics.budget", "x"),
        ("hyper.metrics.timeout", "31"), ("hyper.metrics.timeout", "0"), ("hyper.metrics.interval", "-1"),
        ("hyper.metrics.interval", "2h"), ("hyper.metrics.allow", "a.*"), ("hyper.metrics.allow", "a," * 200),
        ("hyper.metrics.labels", ""), ("hyper.metrics.labels", "a.b"), ("hyper.metrics.labels", "a," * 200),
    ],
)  # fmt: skip
def test_a_wrong_label_is_named(label: str, value: str) -> None:
    with pytest.raises(asked.LabelError, match=label):
        asked.parse_relay({"hyper.metrics": "80", label: value})


@pytest.mark.parametrize("value", ["", "80", "udp:53", "tcp:80/x", "http:x", "tcp:", "exec", "exec: ", "exec:a\0"])
def test_a_wrong_probe_is_named(value: str) -> None:
    with pytest.raises(asked.LabelError, match=r"hyper\.probe"):
        asked.parse_probe({"hyper.probe": value})


def test_a_command_is_a_health_check_and_not_the_collector_s() -> None:
    assert asked.parse_probe({"hyper.probe": "exec:pg_isready -q", "hyper.probe.interval": "10s"}) is None
    with pytest.raises(asked.LabelError, match="interval"):
        asked.parse_probe({"hyper.probe": "exec:true", "hyper.probe.interval": "soon"})


def test_an_answer_has_no_more_chunks_than_can_be_put_together_at_once() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * httpanswer.MAX_CHUNKS
    assert httpanswer.parse_answer(head + chunks + b"0\r\n\r\n", ended=True).whole
    with pytest.raises(TooLargeError, match="chunks"):
        httpanswer.parse_answer(head + chunks + b"1\r\nx\r\n", ended=True)


DONE = {
    "state": "done", "connect_ns": 1, "first_byte_ns": None, "total_ns": 5, "error": None, "length": 2,
    "truncated": False, "data": "a\xff",
}  # fmt: skip


def test_a_result_of_the_agent() -> None:
    part = parse_fetched(DONE, 1.0, 10)
    assert part is not None
    assert (part.data, part.length, part.fetched.connect_s) == (b"a\xff", 2, 1e-9)
    assert parse_fetched({"state": "pending"}, 1.0, 10) is None
    refused = parse_fetched({**DONE, "error": "ECONNREFUSED"}, 1.0, 10)
    assert refused is not None
    assert refused.fetched.error == "ECONNREFUSED"
    late = parse_fetched({**DONE, "total_ns": 2**63}, 1.0, 10)
    assert late is not None
    assert late.fetched.total_s == 3.0, "no longer than it was given"


@pytest.mark.parametrize(
    "change",
    [{"state": "x"}, {"data": 1}, {"data": "\u0100"}, {"length": 1}, {"length": 11}, {"length": True}, {"error": 5},
     {"error": ""}, {"error": "E" * 33}, {"error": "EPIPE\n"}, {"error": "closed"},
     {"total_ns": None}, {"total_ns": -1}, {"connect_ns": 1.5}, {"connect_ns": "1"}],
)  # fmt: skip
def test_a_result_that_is_none(change: dict[str, object]) -> None:
    with pytest.raises(MalformedError):
        parse_fetched({**DONE, **change}, 1.0, 10)


WHOLE = "x" * (2 * PART_BYTES + 5)


class Guest:
    """Gives `WHOLE` in parts, each as `spoil` leaves it; each answer takes a second of its clock."""

    def __init__(self, spoil: Callable[[str], str] = str) -> None:
        self.spoil = spoil
        self.asked = 0

    async def ask(self, command: str, arguments: Mapping[str, Any]) -> Any:
        self.asked += 1
        offset = arguments.get("offset", 0)
        part = self.spoil(WHOLE[offset:][: arguments["max_bytes"]])
        return {} if command == "hyper-fetch" else {**DONE, "length": len(WHOLE), "data": part}

    def monotonic(self) -> float:
        return float(self.asked)

    async def fetch(self, deadline_s: float = 1.0) -> bytes:
        return (await fetch(self.ask, port=80, send="", deadline_s=deadline_s, max_bytes=1 << 20)).data


async def test_parts_make_the_whole() -> None:
    one = Guest()
    assert await one.fetch() == WHOLE.encode()
    assert one.asked == 4


@pytest.mark.parametrize(
    "spoil",
    [lambda part: part[:1], lambda part: part[:-1], lambda _: "", lambda part: part + "x"],
    ids=["a byte", "a byte less", "nothing", "a byte more"],
)
async def test_a_part_that_is_not_whole_is_the_last_one_asked_for(spoil: Callable[[str], str]) -> None:
    one = Guest(spoil)
    with pytest.raises(MalformedError):
        await one.fetch()
    assert one.asked == 2


async def test_parts_come_within_the_time_of_the_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Guest()
    monkeypatch.setattr(fetching, "time", one)
    monkeypatch.setattr(fetching, "_GRACE_S", 0.5)
    with pytest.raises(WedgedError):
        await one.fetch(1.0)
    assert one.asked == 3, "begun, asked about, and asked for one part more"
    assert await one.fetch(2.0) == WHOLE.encode()
