"""How one call of hyperd's API goes over its socket: where that is, what is sent, what an answer or a failure means.

Standard library only, and quick to import. Every call has a connection of its own.
"""

from __future__ import annotations

import json
import os
import time

from runtime.unixhttp import Connection, ProtocolError, Response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

ANSWER_LIMIT_BYTES = 256 << 20
CHUNK_BYTES = 64 << 10
STREAM_BYTES = 256 << 10
KEEP_ALIVE_S = 2.0
DEFAULT_STATE_DIR = "/run/hyper"
SOCKET_NAME = "hyperd.sock"


class ClientError(Exception):
    """Base: the call came to nothing. The text says what is wrong and what to do."""

    exit_code = 125


class DaemonUnreachable(ClientError):  # noqa: N818 -- reads as what happened
    """Nobody answers on the socket, or no longer."""


class ApiError(ClientError):
    """hyperd refused or failed. `code` and `field` are those of the API."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.exit_code = {"command_not_found": 127, "command_not_executable": 126}.get(code, 125)


class Records:
    """A stream of log records for `runtime.logs.Decoder`, in pieces.

    `offset` is where in the log the first byte stands; None where there is no log to go on in.
    """

    def __init__(self, response: Response, connection: Connection, path: str) -> None:
        self._response = response
        self._connection = connection
        self._path = path
        offset = response.getheader("X-Hyper-Log-Offset")
        self.offset = int(offset) if offset.isascii() and offset.isdigit() else None

    def __iter__(self) -> Iterator[bytes]:
        with self._response:
            while True:
                try:
                    piece = self._response.read1(STREAM_BYTES)
                except (OSError, ProtocolError) as err:
                    raise DaemonUnreachable(f"hyperd at {self._path} broke off in the middle of its answer") from err
                if not piece:
                    return
                yield piece

    def break_off(self) -> None:
        """Have done with it, from another thread: whoever reads it sees its end, or that hyperd broke off."""
        self._connection.break_off()


def setting(name: str, default: str) -> str:
    """One setting by the rules of `runtime.config`, without importing it: environment, then file, then default.

    Raises:
        ClientError: the configuration file cannot be read.
    """
    value = os.environ.get(f"HYPER_{name.upper()}")
    if value:
        return value
    path = os.environ.get("HYPER_CONFIG", "/etc/hyper/hyper.toml")
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- pathlib would cost as much to import as the rest of this
            import tomllib  # here: only hosts that have the file pay for it

            return str(tomllib.load(file).get(name, default))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as err:
        raise ClientError(f"the configuration file {path} cannot be read: {err}") from err


def socket_path(host: str | None = None) -> str:
    """The daemon's socket: of `unix:///path` if given, else in the configured state directory.

    Raises:
        ClientError: `host` is of another form.
    """
    if host is None:
        return f"{setting('state_dir', DEFAULT_STATE_DIR)}/{SOCKET_NAME}"
    path = host.removeprefix("unix://")
    if path == host or not path.startswith("/"):
        raise ClientError(f"--host {host} is not unix:///path/to/{SOCKET_NAME}")
    return path


class Caller:
    """Calls by method and path. `timeout_s` bounds the wait for each piece of an answer; None: no bound.

    Every method raises ApiError, or DaemonUnreachable if the daemon is not there or breaks off.
    """

    def __init__(self, path: str | None = None, *, timeout_s: float | None = None) -> None:
        self._path = path or socket_path()
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:
        """Any call with a JSON answer; None if it has none."""
        with self._open(method, path, body, headers=headers) as response:
            return _decode(response)

    def stream(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """Any call with a long answer: pieces as they come."""
        with self._open(method, path, body, headers=headers) as response:
            while True:
                try:
                    piece = response.read1(CHUNK_BYTES)
                except (OSError, ProtocolError) as err:
                    raise DaemonUnreachable(f"hyperd at {self._path} broke off in the middle of its answer") from err
                if not piece:
                    return
                yield piece

    def steps(
        self,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        upload: Iterable[bytes] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """POST that answers with its progress, the result last; `upload` is a body to send in pieces.

        A failure that the answer tells of is raised.
        """
        sent = body if upload is None else Chunks(upload)
        pending = b""
        for piece in self.stream("POST", path, sent, headers):
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _progress(line)
        if pending.strip():
            yield _progress(pending)

    def records(self, path: str) -> Records:
        """A call whose answer is a stream of log records."""
        connection = Connection(self._path, self._timeout_s)
        response = self._open("GET", path, None, connection)
        return Records(response, connection, self._path)

    def feed(self, path: str, data: Iterable[bytes], *, close: bool) -> None:
        """Send in requests of their own: one that is taken is with the guest, and hyperd sees at once if we go away."""
        connection, used = Connection(self._path, self._timeout_s), time.monotonic()

        def post(end: str, piece: bytes) -> None:
            nonlocal connection, used
            if time.monotonic() - used > KEEP_ALIVE_S:  # hyperd may be about to close it
                connection.close()
                connection = Connection(self._path, self._timeout_s)
            try:
                connection.request("POST", f"{path}?end={end}", piece, {"Content-Type": "application/octet-stream"})
                with connection.response(last=False) as response:
                    if response.status >= 300:
                        raise _error(response)
                    response.read(ANSWER_LIMIT_BYTES)
            except (OSError, ProtocolError) as err:
                raise self._fault(err) from err
            used = time.monotonic()

        try:
            for piece in data:
                post("false", piece)
            if close:
                post("true", b"")
        finally:
            connection.close()

    def _open(
        self,
        method: str,
        path: str,
        body: object,
        connection: Connection | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        connection = connection or Connection(self._path, self._timeout_s)
        headers = {"Connection": "close", **(headers or {})}
        try:
            if isinstance(body, Chunks):
                try:  # noqa: SIM105 -- contextlib would slow every start
                    connection.request(method, path, _read(body.data), headers)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a daemon that refuses early answers and closes before all is sent: its answer says why
            elif body is not None:
                headers["Content-Type"] = "application/json"
                connection.request(method, path, json.dumps(body).encode(), headers)
            else:
                connection.request(method, path, headers=headers)
            response = connection.response()
        except BaseException as err:
            connection.close()
            fault = self._fault(err)
            if fault is err:
                raise
            raise fault from err
        if response.status >= 300:  # a call has no other place, so that it is not led to one
            with response:
                raise _error(response)
        return response

    def _fault(self, err: BaseException) -> BaseException:
        """What a failed call means; an exception that is not of the connection (Ctrl-C, a defect) is passed on."""
        if isinstance(err, (FileNotFoundError, ConnectionRefusedError)):
            return DaemonUnreachable(
                f"hyperd is not running (nothing answers on {self._path});"
                " start it as root with: systemctl start hyperd, or: hyperd"
            )
        if isinstance(err, PermissionError):
            return DaemonUnreachable(f"no permission to use {self._path}; run as root, or join the group hyper")
        if isinstance(err, TimeoutError):
            return DaemonUnreachable(f"hyperd at {self._path} does not answer; see its log, and restart it if it hangs")
        if isinstance(err, (OSError, ProtocolError)):
            return DaemonUnreachable(f"hyperd at {self._path} broke off: {err or type(err).__name__}")
        return err


class Chunks:
    """A body to send in pieces."""

    def __init__(self, data: Iterable[bytes]) -> None:
        self.data = data


def _read(data: Iterable[bytes]) -> Iterator[bytes]:
    """What is to be sent. An error in reading it is told by its file: it is none of the connection's."""
    try:
        yield from data
    except OSError as err:
        raise ClientError(f"{err.filename or 'the input'}: {err.strerror or err}") from err


def _decode(response: Response) -> Any:
    try:
        content = response.read(ANSWER_LIMIT_BYTES + 1)
    except (OSError, ProtocolError) as err:
        raise DaemonUnreachable("hyperd broke off in the middle of its answer") from err
    if len(content) > ANSWER_LIMIT_BYTES:
        raise ClientError(f"hyperd's answer is larger than {ANSWER_LIMIT_BYTES} bytes")
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError as err:
        raise ClientError("hyperd's answer is not JSON: is something else listening on its socket?") from err


def _error(response: Response) -> ClientError:
    try:
        error = _decode(response)["error"]
        return ApiError(response.status, error["code"], error["message"], error.get("field"))
    except (ClientError, KeyError, TypeError):
        return ApiError(response.status, "unknown", f"hyperd answered {response.status} {response.reason}")


def _progress(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
        error = event.get("error")
        if error:
            raise ApiError(502, error["code"], error["message"], error.get("field"))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ClientError("hyperd's answer to the pull is not what it should be") from err
    return dict(event)


def quote(text: str) -> str:
    """Percent-encode all but what stands for itself in a path segment."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
    octets = text.encode(errors="surrogateescape")
    return "".join(chr(octet) if octet in plain else f"%{octet:02X}" for octet in octets)


def segment(text: str, what: str) -> str:
    """`quote` of what a path names. Without a name it would be the path of another call.

    Raises:
        ClientError: it is empty; `what` it is stands in the message.
    """
    if not text:
        raise ClientError(f"the name of the {what} is empty: write one")
    return quote(text)
