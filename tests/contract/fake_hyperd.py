"""A server on a unix socket that answers what a test tells it to, in the shapes of `docs/reference/api.md`."""

from __future__ import annotations

import http.server
import json
import re
import socketserver
import struct
import threading
import urllib.parse
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def record(kind: int, payload: bytes) -> bytes:
    return struct.pack("<2sBBIQ", b"HP", kind, 0, len(payload), 1_700_000_000_123_456_789) + payload


def exited(code: int) -> bytes:
    return record(3, json.dumps({"event": "exited", "exit_code": code}).encode())


@dataclass
class Daemon:
    """Answers by method and path; keeps what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def bodies(self, call: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == call]


@dataclass
class Refusal:
    status: int
    code: str
    message: str


class Handler(http.server.BaseHTTPRequestHandler):
    daemon: Daemon
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self._body()
        # How long a pull took is another figure each time.
        path = re.sub(r"\?pulled_s=[0-9.]+$", "?pulled_s=…", urllib.parse.unquote(self.path))
        call = f"{self.command} {path}"
        self.daemon.asked.append((call, body))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client was interrupted, or has seen enough
            self._answer(call, body)

    def _answer(self, call: str, body: Any) -> None:
        answer = self.daemon.answers.get(call, Refusal(404, "not_found", f"no such thing: {call}"))
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, Refusal):
            error = {"error": {"code": answer.code, "message": answer.message, "field": None}}
            self._send(answer.status, json.dumps(error).encode())
        elif answer is None:
            self._send(204, b"")
        elif hasattr(answer, "__next__") or (isinstance(answer, list) and answer and isinstance(answer[0], bytes)):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in answer:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send(200, json.dumps(answer).encode())

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 -- the names that http.server looks for

    def _body(self) -> Any:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Type") == "application/octet-stream":
            return content
        return json.loads(content) if content else None

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(path: Path) -> Iterator[Daemon]:
    """A daemon on a unix socket, as long as the block."""
    daemon = Daemon()
    server = socketserver.ThreadingUnixStreamServer(str(path), bound(daemon))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield daemon
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def bound(daemon: Daemon) -> type[Handler]:
    """The handler class of one daemon's requests."""
    return type("Bound", (Handler,), {"daemon": daemon})
