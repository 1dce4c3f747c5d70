"""Fetches from servers on the loopback of a real guest: whatever these do, both ports go on answering."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import agent_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

PAGE = "app_up 1\n"
BIG_BYTES = 300_000
SERVERS = f"""
mkdir /tmp/www; printf '{PAGE}' > /tmp/www/metrics; printf 'caf\\351\\n' > /tmp/www/bytes
head -c {BIG_BYTES} /dev/zero | tr '\\0' x > /tmp/www/big
httpd -p 127.0.0.1:8080 -h /tmp/www; httpd -p 127.0.0.2:8084 -h /tmp/www
nc -ll -p 8081 -e sleep 600 &
nc -ll -p 8082 -e yes &
sleep 600
"""
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def vm() -> Iterator[agent_vm.GuestVm]:
    with agent_vm.GuestVm() as guest:
        assert guest.stats.refusal("hyper-fetch", fetch=1, port=8080)[0] == "BadState", "nothing runs yet"
        guest.start("sh", "-c", SERVERS)

        def serves() -> bool:
            return all(get(guest, port)["error"] is None for port in (8080, 8081, 8082))

        agent_vm.wait_for(serves, "all servers listen")
        yield guest


def begin(vm: agent_vm.GuestVm, port: int, path: str | None = None, **more: Any) -> int:
    number = next(numbers)
    send = "" if path is None else f"GET {path} HTTP/1.0\r\n\r\n"
    assert vm.stats.call("hyper-fetch", fetch=number, port=port, send=send, **more) == {}
    return number


def end(vm: agent_vm.GuestVm, number: int, **more: Any) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        answer = vm.stats.call("hyper-fetched", fetch=number, **more)
        assert answer["state"] in {"pending", "done"}
        return answer if answer["state"] == "done" else None

    found: dict[str, Any] = agent_vm.wait_for(done, "the fetch has an end", 60)
    return found


def get(vm: agent_vm.GuestVm, port: int, path: str | None = None, **more: Any) -> dict[str, Any]:
    return end(vm, begin(vm, port, path, **more))


def test_a_page_comes_back_as_its_bytes(vm: agent_vm.GuestVm) -> None:
    answer = get(vm, 8080, "/metrics")
    head, _, body = answer["data"].partition("\r\n\r\n")
    assert head.startswith("HTTP/1.")
    assert " 200 " in head.splitlines()[0]
    assert body == PAGE
    assert (answer["error"], answer["truncated"], answer["length"]) == (None, False, len(answer["data"]))
    assert 0 < answer["connect_ns"] <= answer["first_byte_ns"] <= answer["total_ns"]
    assert get(vm, 8080, "/bytes")["data"].encode("latin-1").endswith(b"caf\xe9\n")


def test_an_answer_is_taken_in_parts_and_once(vm: agent_vm.GuestVm) -> None:
    number = begin(vm, 8080, "/big", max_bytes=1 << 20)
    first = end(vm, number, max_bytes=100_000)
    data = first["data"]
    assert len(data) == 100_000
    while left := first["length"] - len(data):
        part = end(vm, number, offset=len(data), max_bytes=100_000)["data"]
        assert len(part) == min(100_000, left), "a part is whole"
        data += part
    assert data.endswith("x" * BIG_BYTES)
    assert vm.stats.refusal("hyper-fetched", fetch=number)[0] == "BadState"


def test_an_answer_is_cut_at_its_limit(vm: agent_vm.GuestVm) -> None:
    for port, path in ((8080, "/big"), (8082, "/endless")):
        answer = get(vm, port, path, max_bytes=1000)
        assert (answer["length"], answer["truncated"]) == (1000, True)


def test_connecting_is_enough_if_nothing_is_sent(vm: agent_vm.GuestVm) -> None:
    answer = get(vm, 8081)
    assert (answer["error"], answer["length"], answer["first_byte_ns"]) == (None, 0, None)
    assert answer["connect_ns"] > 0
    refused = get(vm, 8083)
    assert (refused["error"], refused["connect_ns"]) == ("ECONNREFUSED", None)


def test_a_server_of_another_address_is_not_reached(vm: agent_vm.GuestVm) -> None:
    assert vm.run("wget", "-q", "-O", "-", "http://127.0.0.2:8084/metrics")[1] == PAGE.encode()
    assert get(vm, 8084, "/metrics")["error"] == "ECONNREFUSED"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fetch": 0}, "fetch"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"send": "x" * 4097}, "send"),
        ({"send": 1}, "send"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 30001}, "deadline_ms"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 2 << 20}, "max_bytes"),
    ],
)
def test_what_is_wrong_with_a_fetch_is_named(vm: agent_vm.GuestVm, change: dict[str, object], field: str) -> None:
    kind, text = vm.stats.refusal("hyper-fetch", **{"fetch": 1, "port": 8080, **change})
    assert (kind, text.split(":")[0]) == ("InvalidArgument", field)


def test_a_server_that_says_nothing_delays_no_other_request(vm: agent_vm.GuestVm) -> None:
    """Its deadline is longer than the test waits for any answer: one wait for it and the test fails."""
    deadline_ms = 30_000
    waiting = [begin(vm, 8081, "/", deadline_ms=deadline_ms) for _ in range(3)]
    began = time.monotonic()
    for _ in range(50):
        assert vm.stats.call("guest-ping") == {}
        assert vm.control.call("guest-ping") == {}
        assert vm.stats.call("hyper-read", files=["/proc/stat"])["files"][0]["data"]
    assert get(vm, 8080, "/metrics")["data"].endswith(PAGE)
    assert vm.run("true")[0] == 0
    states = {vm.stats.call("hyper-fetched", fetch=one)["state"] for one in waiting}
    assert time.monotonic() - began < deadline_ms / 1000
    assert states == {"pending"}, "all of that came before the first deadline"
    begin(vm, 8081, "/", deadline_ms=200)
    assert vm.stats.refusal("hyper-fetch", fetch=next(numbers), port=8080)[0] == "BadState", "four at once"


def test_an_application_that_is_stopped_costs_its_deadline_and_no_more() -> None:
    with agent_vm.GuestVm() as guest:
        guest.start("sh", "-c", SERVERS)
        agent_vm.wait_for(lambda: get(guest, 8080, "/metrics")["error"] is None, "it listens")
        guest.run("sh", "-c", "kill -STOP $(pidof httpd)")
        number = begin(guest, 8080, "/metrics", deadline_ms=300)
        assert guest.control.call("guest-ping") == {}
        stopped = end(guest, number)
        assert stopped["error"] == "ETIMEDOUT"
        assert stopped["connect_ns"] > 0, "the kernel takes the connection, the application does not"
        assert stopped["total_ns"] >= 300e6
        guest.run("sh", "-c", "kill -CONT $(pidof httpd)")
        assert get(guest, 8080, "/metrics")["data"].endswith(PAGE)


def test_results_that_nobody_takes_make_room(vm: agent_vm.GuestVm) -> None:
    for _ in range(12):
        begin(vm, 8083)
    kept = begin(vm, 8083)
    assert end(vm, kept)["error"] == "ECONNREFUSED"
