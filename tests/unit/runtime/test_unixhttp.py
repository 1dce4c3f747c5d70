"""Answers in every form that HTTP/1.1 has for a body, and what is no answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from runtime.unixhttp import Connection, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Serve = Callable[..., tuple[Connection, list[bytes]]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server that reads one request for each answer and sends it; then it closes, unless it is to stay silent."""
    listener = socket.socket(socket.AF_UNIX)
    path = tmp_path / "http.sock"
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []
    let_go = threading.Event()

    def begin(*answers: bytes, silent: bool = False, piece_bytes: int = 1 << 20) -> tuple[Connection, list[bytes]]:
        requests: list[bytes] = []

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    got = connection.recv(65536)
                    while b"chunked" in got and not got.endswith(b"0\r\n\r\n"):
                        got += connection.recv(65536)
                    requests.append(got)
                    for at in range(0, len(answer), piece_bytes):
                        connection.sendall(answer[at : at + piece_bytes])
                if silent:
                    let_go.wait(10)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return Connection(str(path), 0.2 if silent else 5.0), requests

    yield begin
    let_go.set()
    for thread in threads:
        thread.join(10)
    listener.close()


def body(connection: Connection, sent: object = None) -> tuple[int, bytes]:
    connection.request("GET", "/", sent)  # type: ignore[arg-type]  # what is sent is one of the kinds that it takes
    with connection.response() as response:
        return response.status, response.read(1 << 20)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello")),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3;x=1\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n",
            (200, b"hello"),
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\nup to the end", (404, b"up to the end")),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
        (b"HTTP/1.1 200\nContent-Length: 0\n\n", (200, b"")),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1])
def test_an_answer(serve: Serve, answer: bytes, expected: tuple[int, bytes], piece_bytes: int) -> None:
    connection, _ = serve(answer, piece_bytes=piece_bytes)
    assert body(connection) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"a%d: b\r\n" % number for number in range(200)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
    ],
)
def test_what_is_no_answer(serve: Serve, answer: bytes) -> None:
    connection, _ = serve(answer)
    with pytest.raises(ProtocolError):
        body(connection)
    connection.close()


def test_a_body_is_sent_whole_or_in_chunks_and_a_connection_is_used_again(serve: Serve) -> None:
    fine = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    connection, requests = serve(fine, fine)
    connection.request("POST", "/a?b=c", b"data", {"X-One": "1"})
    with connection.response(last=False) as response:
        assert response.read1(100) == b"ok"
        assert response.read1(100) == b""
    connection.request("POST", "/d", iter([b"one", b"", b"three"]))
    with connection.response() as response:
        assert (response.getheader("CONTENT-length"), response.getheader("nosuch")) == ("2", "")
    assert connection.sock is None
    assert requests[0] == b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\nX-One: 1\r\nContent-Length: 4\r\n\r\ndata"
    assert requests[1].endswith(b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n")


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: Close\r\n"])
def test_a_server_that_closes_is_connected_to_anew(serve: Serve, head: bytes) -> None:
    connection, _ = serve(head + b"Content-Length: 2\r\n\r\nok")
    connection.request("GET", "/")
    with connection.response(last=False) as response:
        assert response.read(10) == b"ok"
    assert connection.sock is None


def test_one_that_says_nothing_is_given_up(serve: Serve) -> None:
    connection, _ = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", silent=True)
    with pytest.raises(TimeoutError):
        body(connection)
    connection.close()


def test_one_that_is_broken_off_ends(serve: Serve) -> None:
    connection, _ = serve(b"HTTP/1.1 200 OK\r\n\r\nhel", silent=True)
    connection.request("GET", "/")
    with connection.response() as response:
        connection.break_off()
        assert response.read(100) in (b"", b"hel")  # the rest may have come with the head, or be gone
    connection.break_off()  # again is nothing


@pytest.mark.parametrize(("target", "headers"), [("/a b", {}), ("/a\r\nX: y", {}), ("/", {"X": "a\nb"})])
def test_what_would_be_another_request_is_not_sent(tmp_path: Path, target: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="one line"):
        Connection(str(tmp_path / "nosuch"), 1.0).request("GET", target, None, headers)
