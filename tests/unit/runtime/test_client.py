"""The client of hyperd: what an answer, and a failure before there is one, means."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.client import ApiError, Client, ClientError, DaemonUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Who connects may send; it is read, and answered, by whoever accepts."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "hyperd.sock"))
        one.listen()
        yield one


def entries(path: Path) -> Iterator[bytes]:
    yield b"begins well"
    for one in path.iterdir():
        yield one.read_bytes()


def fails(error: OSError) -> Iterator[bytes]:
    yield b"begins well"
    raise error


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda: entries(Path("/nosuch")), "/nosuch: No such file or directory"),
        (lambda: fails(PermissionError(13, "Permission denied", "/x/secret")), "/x/secret: Permission denied"),
        (lambda: fails(IsADirectoryError(21, "Is a directory")), "the input: Is a directory"),
        (lambda: fails(BrokenPipeError(32, "Broken pipe")), "the input: Broken pipe"),
        (lambda: fails(TimeoutError("too slow")), "the input: too slow"),
    ],
)
def test_what_cannot_be_read_here_is_no_fault_of_the_daemon(
    listener: socket.socket, source: Callable[[], Iterator[bytes]], says: str
) -> None:
    with pytest.raises(ClientError) as caught:
        list(Client(listener.getsockname()).steps("/v1/images/load", upload=source()))
    assert (str(caught.value), isinstance(caught.value, DaemonUnreachable)) == (says, False)


def test_what_the_connection_fails_of_is(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="hyperd is not running"):
        list(Client(str(tmp_path / "nosuch")).steps("/v1/images/load", upload=iter([b"x"])))


@pytest.mark.parametrize(
    "call", [lambda client: client.info(), lambda client: client.attach("x"), lambda client: client.input("x", [b"a"])]
)
def test_being_led_elsewhere_is_no_success(listener: socket.socket, call: Callable[[Client], Any]) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/containers\r\nContent-Length: 0\r\n\r\n"
            )

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(ApiError, match="hyperd answered 307 Temporary Redirect"):
        call(Client(listener.getsockname()))
    thread.join(10)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda client: client.container(""), "container"),
        (lambda client: client.remove("", force=True), "container"),
        (lambda client: client.attach(""), "container"),
        (lambda client: client.container_call("", "history"), "container"),
        (lambda client: client.image(""), "image"),
        (lambda client: client.remove_image("", force=True), "image"),
        (lambda client: client.history(""), "image"),
        (lambda client: client.packages(""), "image"),
        (lambda client: client.volume(""), "volume"),
    ],
)
def test_an_empty_name_is_asked_for_nowhere(tmp_path: Path, call: Callable[[Client], Any], what: str) -> None:
    with pytest.raises(ClientError, match=f"^the name of the {what} is empty"):
        call(Client(str(tmp_path / "nosuch")))
