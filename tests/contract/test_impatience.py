"""Real sockets against the servers of the exporter and of the controller: who asks for nothing stops nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI

from alerts.remediation import main as remediation
from exporter import main as exporter
from exporter.server import Application
from runtime.impatience import Impatient

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn

REQUEST = b"GET /nosuch HTTP/1.1\r\nHost: x\r\n"


class Quick(Impatient):
    request_timeout_s = 0.3


def of_exporter() -> uvicorn.Server:
    return exporter.Server(Application("1"), Quick)


def of_controller() -> uvicorn.Server:
    return remediation.serving(FastAPI(), Quick)


async def beside(server: uvicorn.Server, work: Callable[[tuple[str, int]], Any]) -> Any:
    """What `work`, in a thread, finds of a server that listens at the address it is given."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        try:
            return await asyncio.to_thread(work, listener.getsockname())
        finally:
            server.should_exit = True
            await serving


def read(connection: socket.socket) -> bytes:
    """All that comes up to the end."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize(
    "said",
    [b"", REQUEST, REQUEST + b"Content-Length: 9\r\n\r\nhalf"],
    ids=["nothing", "half a head", "half a body"],
)
@pytest.mark.parametrize(
    ("make", "count"), [(of_exporter, exporter.MAX_CONNECTIONS), (of_controller, remediation.MAX_CONNECTIONS)]
)
async def test_as_many_as_are_taken(make: Callable[[], uvicorn.Server], count: int, said: bytes) -> None:
    def work(address: tuple[str, int]) -> bytes:
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(count)]
            for one in silent:
                one.sendall(said)
            for one in silent:
                read(one)
            late = stack.enter_context(socket.create_connection(address, 10))
            late.sendall(REQUEST + b"Connection: close\r\n\r\n")
            return read(late)

    assert (await beside(make(), work)).startswith(b"HTTP/1.1 404 ")


async def test_who_is_silent_between_two_requests_is_left_to_the_servers_own_limit() -> None:
    def work(address: tuple[str, int]) -> None:
        with socket.create_connection(address, 10) as connection:
            for _ in range(2):
                connection.sendall(REQUEST + b"\r\n")
                found = b""
                while not found.endswith(b"and /healthz\n"):
                    found += (piece := connection.recv(65536))
                    assert piece
                connection.settimeout(2 * Quick.request_timeout_s)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
                connection.settimeout(10)
            connection.sendall(REQUEST)
            assert read(connection) == b"", "of the rest of a third it is not"

    await beside(of_exporter(), work)
