"""A client of hyperd's REST API (`docs/reference/api.md`): blocking, standard library only, quick to import.

Every call has a connection of its own, so one client may be used by several threads. What the API answers is returned
as it came: dicts and lists of JSON.
"""

from __future__ import annotations

import json

from runtime.calls import (
    ApiError,
    Caller,
    Chunks,
    ClientError,
    DaemonUnreachable,
    Records,
    quote,
    segment,
    setting,
    socket_path,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

__all__ = [
    "ApiError",
    "Chunks",
    "Client",
    "ClientError",
    "DaemonUnreachable",
    "Records",
    "quote",
    "segment",
    "setting",
    "socket_path",
]


class Client(Caller):
    """Calls of the API, one method each."""

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
        return self.call("GET", f"/v1/images/{segment(reference, 'image')}")

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
        return self.call("DELETE", f"/v1/images/{segment(reference, 'image')}{query}")

    def history(self, reference: str) -> Any:
        """The steps that made an image, the last first."""
        return self.call("GET", f"/v1/history/{segment(reference, 'image')}")

    def packages(self, reference: str) -> Any:
        """What an image has installed."""
        return self.call("GET", f"/v1/packages/{segment(reference, 'image')}")

    def save(self, references: Sequence[str], kind: str) -> Iterator[bytes]:
        """Images as an archive."""
        return self.stream("POST", "/v1/images/save", {"references": list(references), "format": kind})

    def containers(self, *, everything: bool = False, size: bool = False) -> Any:
        """Containers that run, or all; `size`: with what they take of the disk."""
        return self.call("GET", f"/v1/containers?all={str(everything).lower()}{'&size=true' if size else ''}")

    def create(self, spec: Mapping[str, Any], pulled_s: float | None = None) -> Any:
        """Create a container: its id, name, warnings. `pulled_s`: how long its image was pulled for it."""
        return self.call("POST", "/v1/containers" + ("" if pulled_s is None else f"?pulled_s={pulled_s:.6f}"), spec)

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

    def container_call(self, ref: str, action: str, body: object = None, *, method: str = "POST") -> Any:
        """A call about one container that has no method of its own here: `change`, `rollback`, `history` and such."""
        return self.call(method, _container(ref, action), body)

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
        return self.call("GET", f"/v1/volumes/{segment(name, 'volume')}")

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
        return self.records(f"{_container(ref, 'logs')}?{query}")

    def attach(self, ref: str, offset: int | None = None) -> Records:
        """What a container writes from now on, or from an offset in its log on; it waits while this is not read."""
        return self.records(_container(ref, "attach") + ("" if offset is None else f"?offset={offset}"))

    def input(self, ref: str, data: Iterable[bytes], *, close: bool = True) -> None:
        """Send to the stdin of a container created with `stdin`; with `close` the end of `data` closes it."""
        self.feed(_container(ref, "input"), data, close=close)

    def resize(self, ref: str, rows: int, cols: int) -> None:
        """Say how large a container's terminal is."""
        self.call("POST", _container(ref, "resize"), {"rows": rows, "cols": cols})

    def exec(self, ref: str, spec: Mapping[str, Any]) -> str:
        """Start a command in a container; returns its session."""
        return str(self.call("POST", _container(ref, "exec"), spec)["session"])

    def session_output(self, session: str) -> Records:
        """What a session's command writes, as records; the last is the event of its exit."""
        return self.records(f"/v1/sessions/{quote(session)}/output")

    def session_input(self, session: str, data: Iterable[bytes]) -> None:
        """Send to a session's stdin; the end of `data` closes it."""
        self.feed(f"/v1/sessions/{quote(session)}/input", data, close=True)

    def leave_session(self, session: str) -> None:
        """Nobody takes a session's output: it is thrown away, and the command goes on."""
        self.call("DELETE", f"/v1/sessions/{quote(session)}")

    def session_resize(self, session: str, rows: int, cols: int) -> None:
        """Say how large a session's terminal is."""
        self.call("POST", f"/v1/sessions/{quote(session)}/resize", {"rows": rows, "cols": cols})

    def audit(self, limit: int = 100) -> Any:
        """Who did what, newest first."""
        return self.call("GET", f"/v1/audit?limit={limit}")


def _given(**options: object) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}


def _query(pairs: Iterable[tuple[str, object]]) -> str:
    text = "&".join(f"{quote(key)}={quote(str(value))}" for key, value in pairs)
    return f"?{text}" if text else ""


def _container(ref: str, action: str = "") -> str:
    return f"/v1/containers/{segment(ref, 'container')}" + (f"/{action}" if action else "")
