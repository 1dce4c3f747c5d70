"""Ranges of host ports become ports that are free."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from runtime.api.containers import settled
from runtime.errors import PortInUse
from runtime.network.ports import PortReservations
from runtime.spec import Spec
from tests.host import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def first() -> Iterator[int]:
    """A port that somebody listens on; the two after it are free."""

    def found() -> tuple[socket.socket, int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number: int = probe.getsockname()[1]
        held = [socket.create_server(("127.0.0.1", number + more)) for more in range(3)]
        for one in held[1:]:
            one.close()
        return held[0], number

    listener, number = wait_for(found, "ports behind one another")
    yield number
    listener.close()


def spec(*ports: dict[str, Any]) -> Spec:
    return Spec.model_validate({"image": "x", "ports": [{"host_ip": "127.0.0.1", **port} for port in ports]})


def test_the_first_that_is_free_is_taken_and_none_twice(first: int) -> None:
    ports = PortReservations()
    asked = {"host_port": first, "host_port_last": first + 2}
    made = settled(spec({**asked, "container_port": 80}, {**asked, "container_port": 81}), ports)
    assert [(port.host_port, port.host_port_last) for port in made.ports] == [(first + 1, None), (first + 2, None)]
    assert "host_port_last" not in made.model_dump()["ports"][0], "what is kept has no ranges"
    for number in (first + 1, first + 2):
        socket.create_server(("127.0.0.1", number)).close()  # nothing is held after that


def test_a_range_that_is_taken_is_refused(first: int) -> None:
    with pytest.raises(PortInUse, match=str(first)):
        settled(spec({"host_port": first, "host_port_last": first, "container_port": 80}), PortReservations())


def test_what_has_no_range_is_left_as_it_is(first: int) -> None:
    one = spec({"host_port": first, "container_port": 80}, {"container_port": 81})
    assert settled(one, PortReservations()) is one


@pytest.mark.parametrize("port", [{"host_port": 80, "host_port_last": 79}, {"host_port_last": 80}])
def test_a_range_that_goes_backwards_is_refused(port: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="host_port_last"):
        spec({**port, "container_port": 80})
