"""A client of hyperd's REST API (`docs/reference/api.md`): blocking, standard library only, quick to import.

Every call has a connection of its own, so one client may be used by several threads. What the API answers is returned
as it came: dicts and lists of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from runtime.unixhttp import Connection, ProtocolError, Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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

    def __init__(self, response: Response, connection: socket.socket, path: str) -> None:
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
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


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


class Client:
    """Calls of the API, one method each. `timeout_s` bounds the wait for each piece of an answer; None: no bound.

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

    def ping(self) -> Any:
        """Whether the daemon is there: its pid and version."""
        return self.call("GET", "/v1/ping")

    def version(self) -> Any:
        """Versions of hyperd, QEMU, kernel, agent."""
        return self.call("GET", "/v1/version")

    def info(self) -> Any:
        """The host as the daemon sees it."""
        return self.call("GET", "/v1/info")

    def images(self) -> Any:
        """All images."""
        return self.call("GET", "/v1/images")

    def image(self, reference: str) -> Any:
        """One image."""
        return self.call("GET", f"/v1/images/{quote(reference)}")

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

    def pull(
        self,
        reference: str,
        tls_verify: bool | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> Iterator[dict[str, Any]]:
        """Pull; gives the progress, last `{"image": …}`. A failure of the pull is raised."""
        body = {"reference": reference, "tls_verify": tls_verify, **_given(**more)}
        return self.steps("/v1/images/pull", body, headers)

    def remove_image(self, reference: str, *, force: bool = False) -> Any:
        """Untag an image: what was untagged and deleted."""
        query = "?force=true" if force else ""
        return self.call("DELETE", f"/v1/images/{quote(reference)}{query}")

    def history(self, reference: str) -> Any:
        """The steps that made an image, the last first."""
        return self.call("GET", f"/v1/history/{quote(reference)}")

    def save(self, references: Sequence[str], kind: str) -> Iterator[bytes]:
        """Images as an archive."""
        return self.stream("POST", "/v1/images/save", {"references": list(references), "format": kind})

    def containers(self, *, everything: bool = False, size: bool = False) -> Any:
        """Containers that run, or all; `size`: with what they take of the disk."""
        return self.call("GET", f"/v1/containers?all={str(everything).lower()}{'&size=true' if size else ''}")

    def create(self, spec: Mapping[str, Any]) -> Any:
        """Create a container: its id, name, warnings."""
        return self.call("POST", "/v1/containers", spec)

    def container(self, ref: str, *, size: bool = False) -> Any:
        """One container, whole; `size`: with what it takes of the disk."""
        return self.call("GET", f"{_container(ref)}{'?size=true' if size else ''}")

    def start(self, ref: str) -> Any:
        """Start a container."""
        return self.call("POST", _container(ref, "start"))

    def stop(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> Any:
        """Stop a container: its stop signal (or this one), and after `timeout_s` the end."""
        return self.call("POST", _container(ref, "stop"), _given(timeout_s=timeout_s, signal=signal))

    def kill(self, ref: str, signal: str) -> None:
        """Send a signal to the main process."""
        self.call("POST", _container(ref, "kill"), {"signal": signal})

    def restart(self, ref: str, timeout_s: float | None = None, signal: str | None = None) -> Any:
        """Stop and start, with the same writable layer."""
        return self.call("POST", _container(ref, "restart"), _given(timeout_s=timeout_s, signal=signal))

    def redeploy(self, ref: str, actor: str, reason: str) -> Any:
        """A fresh VM and writable layer from the same image; who and why go into the audit log."""
        return self.call("POST", _container(ref, "redeploy"), {"actor": actor, "reason": reason})

    def pause(self, ref: str) -> None:
        """Stop all that runs in a container, until `unpause`."""
        self.call("POST", _container(ref, "pause"))

    def unpause(self, ref: str) -> None:
        """Let it go on."""
        self.call("POST", _container(ref, "unpause"))

    def rename(self, ref: str, name: str) -> None:
        """Give it another name."""
        self.call("POST", _container(ref, "rename"), {"name": name})

    def update(self, ref: str, **changes: object) -> Any:
        """Change limits and restart policy: members of the API's body."""
        return self.call("POST", _container(ref, "update"), changes)

    def top(self, ref: str, options: Sequence[str] = ()) -> Any:
        """The processes that run in a container, by options of `ps`: titles and rows."""
        return self.call("GET", _container(ref, "top") + _query(("option", option) for option in options))

    def volume(self, name: str) -> Any:
        """One volume."""
        return self.call("GET", f"/v1/volumes/{quote(name)}")

    def events(self, query: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """What happens, one event after the other: without an end, unless the query has `until`."""
        pending = b""
        pairs = [(key, one) for key, value in query.items() for one in (value if isinstance(value, list) else [value])]
        for piece in self.stream("GET", f"/v1/events{_query(pairs)}"):
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                yield dict(json.loads(line))

    def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove a container; `force`: also one that runs; `volumes`: with its anonymous volumes."""
        query = f"force={str(force).lower()}&volumes={str(volumes).lower()}"
        self.call("DELETE", f"{_container(ref)}?{query}")

    def wait(self, ref: str) -> Any:
        """Wait until a container does not run: its exit code."""
        return self.call("POST", _container(ref, "wait"))

    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str | None = None,
        until: str | None = None,
        offset: int | None = None,
    ) -> Records:
        """What a container wrote. Times are seconds since 1970."""
        options = _given(follow=str(follow).lower(), tail=tail, since=since, until=until, offset=offset)
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return self._records(f"{_container(ref, 'logs')}?{query}")

    def attach(self, ref: str, offset: int | None = None) -> Records:
        """What a container writes from now on, or from an offset in its log on; it waits while this is not read."""
        return self._records(_container(ref, "attach") + ("" if offset is None else f"?offset={offset}"))

    def input(self, ref: str, data: Iterable[bytes], *, close: bool = True) -> None:
        """Send to the stdin of a container created with `stdin`; with `close` the end of `data` closes it."""
        self._feed(_container(ref, "input"), data, close=close)

    def resize(self, ref: str, rows: int, cols: int) -> None:
        """Say how large a container's terminal is."""
        self.call("POST", _container(ref, "resize"), {"rows": rows, "cols": cols})

    def exec(self, ref: str, spec: Mapping[str, Any]) -> str:
        """Start a command in a container; returns its session."""
        return str(self.call("POST", _container(ref, "exec"), spec)["session"])

    def session_output(self, session: str) -> Records:
        """What a session's command writes, as records; the last is the event of its exit."""
        return self._records(f"/v1/sessions/{quote(session)}/output")

    def session_input(self, session: str, data: Iterable[bytes]) -> None:
        """Send to a session's stdin; the end of `data` closes it."""
        self._feed(f"/v1/sessions/{quote(session)}/input", data, close=True)

    def leave_session(self, session: str) -> None:
        """Nobody takes a session's output: it is thrown away, and the command goes on."""
        self.call("DELETE", f"/v1/sessions/{quote(session)}")

    def session_resize(self, session: str, rows: int, cols: int) -> None:
        """Say how large a session's terminal is."""
        self.call("POST", f"/v1/sessions/{quote(session)}/resize", {"rows": rows, "cols": cols})

    def audit(self, limit: int = 100) -> Any:
        """Who did what, newest first."""
        return self.call("GET", f"/v1/audit?limit={limit}")

    def _records(self, path: str) -> Records:
        connection = Connection(self._path, self._timeout_s)
        response = self._open("GET", path, None, connection)
        assert connection.sock is not None  # noqa: S101 -- it has just answered
        return Records(response, connection.sock, self._path)

    def _feed(self, path: str, data: Iterable[bytes], *, close: bool) -> None:
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
                    if response.status >= 400:
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
                # A daemon that refuses early answers and closes before all is sent: its answer says why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, path, body.data, headers)
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
        if response.status >= 400:
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


def _given(**options: object) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}


def quote(text: str) -> str:
    """Percent-encode all but what stands for itself in a path segment."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
    octets = text.encode(errors="surrogateescape")
    return "".join(chr(octet) if octet in plain else f"%{octet:02X}" for octet in octets)


def _query(pairs: Iterable[tuple[str, object]]) -> str:
    text = "&".join(f"{quote(key)}={quote(str(value))}" for key, value in pairs)
    return f"?{text}" if text else ""


def _container(ref: str, action: str = "") -> str:
    return f"/v1/containers/{quote(ref)}" + (f"/{action}" if action else "")
