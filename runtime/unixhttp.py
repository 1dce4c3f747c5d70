"""HTTP/1.1 over a unix socket, as much of it as hyperd's API needs (RFC 9112).

`http.client` takes 45 ms to import, as it brings e-mail and TLS: more than all else that `hyper ps` does. `socket`
takes 4 ms, for enumerations of all the constants that it has; what it is made of, `_socket`, has what is needed here.
"""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

CONNECT_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 65536
_READ_BYTES = 8192
_MAX_HEADERS = 100
_NO_BODY = frozenset({204, 304})


class ProtocolError(Exception):
    """The other side does not speak HTTP, or went away in the middle of an answer."""


class Response:
    """An answer whose head has been read. Closing it closes `connection`, unless there is more to come on it."""

    def __init__(self, connection: Connection, *, last: bool) -> None:
        self._connection = connection
        version, _, rest = self._line().partition(" ")
        code, _, self.reason = rest.partition(" ")
        if not version.startswith("HTTP/1.") or not code.isdecimal():
            raise ProtocolError(f"no HTTP status line: {version[:40]!r}")
        self.status = int(code)
        self._headers: dict[str, str] = {}
        while line := self._line():
            name, colon, value = line.partition(":")
            if not colon or len(self._headers) >= _MAX_HEADERS:
                raise ProtocolError(f"not a header, or too many: {line[:40]!r}")
            self._headers[name.lower()] = value.strip()
        self._last = last or version == "HTTP/1.0" or self.getheader("connection").lower() == "close"
        self._chunked = self.getheader("transfer-encoding").lower() == "chunked"
        length = self.getheader("content-length")
        self._left: int | None = 0  # of the body, or of a chunk; None: up to the end of the connection
        self._over = self.status in _NO_BODY
        if not self._over and not self._chunked:
            if length and not length.isdecimal():
                raise ProtocolError(f"no content length: {length[:40]!r}")
            self._left = int(length) if length else None
            self._over = self._left == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last or not self._over:
            self._connection.close()

    def getheader(self, name: str) -> str:
        """The value of a header, the empty string if it is not there; the case of the name does not count."""
        return self._headers.get(name.lower(), "")

    def read1(self, most: int) -> bytes:
        """Up to `most` bytes of the body as soon as there are any; none at its end.

        Raises:
            ProtocolError: the connection ended before the body did.
            OSError: it was reset, or nothing came in time.
        """
        if self._chunked and not self._left and not self._over:
            self._left = self._chunk()  # only now: a head may come long before what follows it
            self._over = not self._left
        if self._over:
            return b""
        piece = self._connection.piece(most if self._left is None else min(most, self._left))
        if self._left is None:
            self._over = not piece
            return piece
        if not piece:
            raise ProtocolError("the connection ended in the middle of the answer")
        self._left -= len(piece)
        if self._left == 0:
            if self._chunked:
                self._end_of_chunk()
            self._over = not self._chunked
        return piece

    def read(self, most: int) -> bytes:
        """The body up to its end, but no more than `most` bytes."""
        found = bytearray()
        while len(found) < most and (piece := self.read1(most - len(found))):
            found += piece
        return bytes(found)

    def _line(self) -> str:
        line = self._connection.line(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise ProtocolError("the connection ended without an answer" if not line else "a line without an end")
        return line.rstrip(b"\r\n").decode("latin-1")

    def _chunk(self) -> int:
        """The length of the next chunk; 0: there is none, and what follows the last has been read."""
        text = self._line().partition(";")[0].strip()
        try:
            length = int(text, 16)
        except ValueError as err:
            raise ProtocolError(f"no length of a chunk: {text[:40]!r}") from err
        if length < 0:
            raise ProtocolError(f"no length of a chunk: {text[:40]!r}")
        if length == 0:
            while self._line():
                pass
        return length

    def _end_of_chunk(self) -> None:
        if self._line():
            raise ProtocolError("a chunk is longer than it says")


class Connection:
    """One connection, made with the first request. `timeout_s` bounds the wait for each piece of an answer."""

    def __init__(self, path: str, timeout_s: float | None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._held = b""  # has come, and is not taken yet
        self.sock: _socket.socket | None = None

    def request(
        self, method: str, target: str, body: bytes | Iterable[bytes] | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a request; a body that is no bytes is sent in chunks.

        Raises:
            OSError: nobody listens, or the other side went away.
            ValueError: the target or a header would end its line.
        """
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {headers[name]}" for name in headers)]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked")
        if any("\n" in line or "\r" in line for line in lines) or lines[0].count(" ") != 2:
            raise ValueError("a request's target and headers are one line each")
        if self.sock is None:
            self.sock = self._connect()
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if body is None or isinstance(body, bytes):
            self.sock.sendall(head + (body or b""))
            return
        self.sock.sendall(head)
        for piece in body:
            if piece:
                self.sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.sock.sendall(b"0\r\n\r\n")

    def response(self, *, last: bool = True) -> Response:
        """The answer to the last request; unless it is the last one, the connection stays open when it is closed.

        Raises:
            ProtocolError, OSError: there is none.
        """
        return Response(self, last=last)

    def line(self, most: int) -> bytes:
        """What comes up to a newline, with it; without one, the connection has ended or there are so many bytes."""
        while not (end := self._held.find(b"\n") + 1) and len(self._held) < most:
            piece = self._receive()
            if not piece:
                break
            self._held += piece
        return self._take(end or most)

    def piece(self, most: int) -> bytes:
        """Up to so many bytes as soon as there are any; none at the end of the connection."""
        return self._take(most) if self._held else self._receive(most)

    def close(self) -> None:
        """Close it; the next request makes another."""
        self._held = b""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def break_off(self) -> None:
        """Have done with it, from another thread: who reads from it meets its end."""
        sock = self.sock
        try:
            if sock is not None:
                sock.shutdown(_socket.SHUT_RDWR)
        except OSError:
            return  # it has ended already

    def _take(self, most: int) -> bytes:
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def _receive(self, most: int = _READ_BYTES) -> bytes:
        if self.sock is None:
            raise ProtocolError("no request was sent")
        return self.sock.recv(most)

    def _connect(self) -> _socket.socket:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(self._path)
            sock.settimeout(self._timeout_s)
        except BaseException:
            sock.close()
            raise
        return sock
