"""`make stack` tells whether data flow, by what Prometheus answers; the servers here are small ones of the test."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from typing import TYPE_CHECKING

import pytest

from runtime.config import Config
from scripts.stack import flow
from scripts.stack.services import services
from scripts.stack.settings import Settings, StackError
from tests.panels import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = Callable[[str], dict[str, object]]


def data(*values: str) -> dict[str, object]:
    return {"status": "success", "data": {"result": [{"value": [0, value]} for value in values]}}


@pytest.fixture
def served() -> Iterator[tuple[list[Answer], Settings]]:
    """Both servers as one; what it answers to an expression is the first of the list."""
    answers: list[Answer] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body leave as one

        def do_POST(self) -> None:
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            body = json.dumps(answers[0](form["query"][0])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 -- the library's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        yield answers, Settings(prometheus_port=port, influx_port=port, config=Config())
        server.shutdown()


def test_each_dashboard_has_its_line(served: tuple[list[Answer], Settings]) -> None:
    answers, settings = served
    answers.append(lambda _: data("1"))
    lines = list(flow.check(settings))
    assert len(lines) == len({board for board, _, _ in queries()})
    assert any(line.startswith("dashboard fleet: ") for line in lines)
    for line in lines:
        answered, of, number = line.split(": ")[1].split()[:3]
        assert of == "of"
        assert answered == number


def test_an_exporter_that_writes_nothing_is_told(
    served: tuple[list[Answer], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "FLOW_TIMEOUT_S", 0.1)
    answers, settings = served
    answers.append(lambda expr: data() if "influx_written" in expr else data("1"))
    with pytest.raises(StackError, match=r"the exporter wrote nothing .* has nothing for hyper_influx_written_total"):
        list(flow.check(settings))


def test_a_query_that_is_refused_is_told(served: tuple[list[Answer], Settings]) -> None:
    answers, settings = served
    answers.append(
        lambda expr: data("1") if "up" in expr or "count(" in expr else {"status": "error", "error": "no such word"}
    )
    with pytest.raises(StackError, match="no such word"):
        list(flow.check(settings))


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(StackError, match="does not answer a query"):
        list(flow.check(Settings(prometheus_port=1, influx_port=1)))


def test_the_exporter_writes_to_a_port_that_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each.name: each for each in services(Settings())}
    monkeypatch.setenv("DEMO_INFLUX_PORT", "18086")
    after = {each.name: each for each in services(Settings())}
    assert after["victoria-metrics"].address == "127.0.0.1:18086"
    assert after["hyper-exporter"].environment["HYPER_INFLUX_URL"] == "http://127.0.0.1:18086"
    assert before["hyper-exporter"].key != after["hyper-exporter"].key, "a running one is started again"
    assert before["hyperd"].key == after["hyperd"].key
    assert all(each.variable for each in after.values())
    assert all(each.address is None or each.address.startswith("127.0.0.1:") for each in after.values())
