"""A micro-VM made of real files and real unix sockets that speak QMP and the agent protocol.

`tests/contract/test_exporter_qemu.py` holds it against a real QEMU, `test_exporter_guest.py` against the real agent. A
test sets `faults` to let one source misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from runtime import record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

Fault = Literal[
    "wedged", "endless", "oversize", "garbage", "deep", "nan", "huge", "utf8", "events", "error", "closes", "mute"
]
GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}


_SILENT = {"qmp_capabilities", "block-latency-histogram-set"}


def _place(request: Mapping[str, Any]) -> str:
    """What `FakeVm.qmp` has the answer under: the command, of the object tree `qom-get PATH PROPERTY`."""
    arguments = request.get("arguments", {})
    if request["execute"] in {"qom-get", "qom-set"}:
        return f"qom-get {arguments['path']} {arguments['property']}"
    return f"qom-list {arguments['path']}" if request["execute"] == "qom-list" else str(request["execute"])


def escape(data: bytes) -> str:
    """Bytes as the agent puts them into JSON: one \\u00XX for each that is not printable."""
    return data.decode("latin-1")


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeApp:
    """Servers on the loopback of a guest, by port: what each answers to anything, an error of the kernel's, or nothing.

    It answers as `tests/contract/test_agent_fetch.py` has it of the real agent.
    """

    ports: dict[int, bytes | str | None] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    took_ns: int = 3_000_000
    _fetches: dict[int, tuple[bytes, str | None, int]] = field(default_factory=dict)
    _waiting: set[int] = field(default_factory=set)

    def answer(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to `hyper-fetch` or `hyper-fetched`."""
        number = arguments["fetch"]
        if command == "hyper-fetch":
            self.sent.append(arguments["send"])
            found = self.ports.get(arguments["port"], "ECONNREFUSED")
            if found is None:
                self._waiting.add(number)
            else:
                data, error = (b"", found) if isinstance(found, str) else (found, None)
                self._fetches[number] = (data if arguments["send"] else b"", error, arguments["max_bytes"])
            return {"return": {}}
        if number in self._waiting:
            return {"return": {"state": "pending"}}
        if number not in self._fetches:
            return {"error": {"class": "BadState", "desc": "there is no fetch of this number"}}
        data, error, max_bytes = self._fetches[number]
        cut = data[:max_bytes]
        part = cut[arguments.get("offset", 0) :][: arguments.get("max_bytes", 65536)]
        if arguments.get("offset", 0) + len(part) >= len(cut):
            del self._fetches[number]
        return {
            "return": {
                "state": "done",
                "connect_ns": None if error == "ECONNREFUSED" else 1_000_000,
                "first_byte_ns": self.took_ns if data else None,
                "total_ns": self.took_ns,
                "error": error,
                "length": len(cut),
                "truncated": len(data) > max_bytes,
                "data": escape(part),
            }
        }


@dataclass
class FakeVm:
    """One VM. `qmp` maps a command to its return, as by `_place`, `files` a guest path to its bytes."""

    directory: Path
    record: record.Record
    qmp: dict[str, Any]
    status: dict[str, Any]
    read: dict[str, Any]
    files: dict[str, bytes]
    faults: dict[str, Fault] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    requests: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stock: dict[str, Any] | None = None  # answers of a stock qemu-ga, which is there in place of our agent
    unable: frozenset[str] = frozenset()  # commands that this one answers with an error of the guest's
    clock_ns: Callable[[], int] | None = None
    app: FakeApp | None = None  # what listens on the guest's loopback
    going: asyncio.Event = field(default_factory=_set_event)  # cleared: stopped, as QEMU by SIGSTOP
    _servers: list[asyncio.Server] = field(default_factory=list)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _monitors: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> None:
        """Write the record and listen."""
        self.directory.mkdir(parents=True, exist_ok=True)
        record.write(self.directory, self.record)
        for source, name, serve in (
            ("vmm", self.record.sockets.qmp_stats, self._serve_qmp),
            ("guest", self.record.sockets.agent_stats, self._serve_agent),
        ):
            if source not in self.absent:
                self._servers.append(await asyncio.start_unix_server(serve, sock=_listen(self.directory, name)))

    async def stop(self) -> None:
        """Close everything; the record stays."""
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                await writer.wait_closed()
        self._servers.clear()
        self._writers.clear()
        self._monitors.clear()

    async def tell(self, *events: Mapping[str, Any]) -> None:
        """Send events now to whoever is connected, whether or not it asks something."""
        for writer in self._monitors:
            for event in events:
                await _send(writer, event)

    async def _serve_qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with _closing(writer, keep=self.faults.get("vmm") == "wedged"):
            if self.faults.get("vmm") == "wedged":
                return
            await self.going.wait()
            await _send(writer, GREETING)
            self._monitors.append(writer)
            while line := await reader.readline():
                await self.going.wait()
                request = json.loads(line)
                self.requests.append(request["execute"])
                answer: dict[str, Any]
                place = _place(request)
                if request["execute"] in _SILENT:
                    answer = {"return": {}}
                elif request["execute"] == "qom-set" and place in self.qmp:
                    self.qmp[place] = request["arguments"]["value"]
                    answer = {"return": {}}
                elif place in self.qmp:
                    answer = {"return": self.qmp[place]}
                else:
                    answer = {"error": {"class": "DeviceNotActive", "desc": request["execute"]}}
                while self.events:
                    await _send(writer, self.events.pop(0))
                if "id" in request:
                    answer["id"] = request["id"]
                await self._reply("vmm", writer, answer)

    async def _serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with _closing(writer):
            while line := await reader.readline():
                await self.going.wait()
                request = json.loads(line.rpartition(b"\xff")[2])
                command, arguments = request["execute"], request.get("arguments", {})
                self.requests.append(command)
                if self.stock is not None and b"\xff" in line:
                    await _send(writer, {"error": {"class": "GenericError", "desc": "JSON parse error, stray 0xFF"}})
                if command == "guest-sync-delimited":
                    if self.faults.get("guest") not in {"wedged", "mute"}:
                        writer.write(b"\xff")
                        await _send(writer, {"return": arguments["id"]})
                elif command in self.unable:
                    await _send(writer, {"error": {"class": "GenericError", "desc": f"failed to read for {command}"}})
                elif self.stock is not None and command in self.stock:
                    await self._reply("guest", writer, {"return": self.stock[command]})
                elif self.stock is not None:
                    await _send(writer, {"error": {"class": "CommandNotFound", "desc": command}})
                elif command == "hyper-status":
                    await self._reply("guest", writer, {"return": self.status})
                elif command in {"hyper-fetch", "hyper-fetched"} and self.app is not None:
                    await self._reply("fetch", writer, self.app.answer(command, arguments))
                elif command == "hyper-read":
                    await self._reply("guest", writer, {"return": self._hyper_read(arguments)})
                else:
                    await _send(writer, {"error": {"class": "CommandNotFound", "desc": command}})

    def _hyper_read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for path in arguments["files"]:
            data = self.files.get(path)
            if data is None:
                entries.append({"path": path, "error": "ENOENT"})
            else:
                cut = len(data) > arguments["max_bytes"]
                entry = {"path": path, "data": escape(data[: arguments["max_bytes"]])}
                entries.append({**entry, "truncated": True} if cut else entry)
        times = {"time_ns": self.clock_ns()} if self.clock_ns else {}
        return {**self.read, **times, "files": entries}

    async def _reply(self, source: str, writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
        fault = self.faults.get(source)
        if fault in {"wedged", "mute"}:
            return
        if fault is None:
            await _send(writer, answer)
        elif fault == "closes":
            writer.close()
        elif fault in {"endless", "events"}:
            piece = b"x" * 65536 if fault == "endless" else json.dumps({"event": "RTC_CHANGE"}).encode() + b"\r\n"
            while not writer.is_closing():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        else:
            writer.write(_FAULTY[fault] + b"\n")
            await writer.drain()


_FAULTY: dict[str, bytes] = {
    "oversize": b'{"return": "' + b"x" * (5 << 20) + b'"}',
    "garbage": b"\x00\x01 not json {{{",
    "deep": b'{"return": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nan": b'{"return": {"time_ns": NaN}}',
    "huge": b'{"return": {"time_ns": ' + b"9" * 100_000 + b"}}",
    "utf8": b'{"return": "\xc3\x28\xfe"}',
    "error": b'{"error": {"class": "GenericError", "desc": "no"}}',
}


@contextlib.contextmanager
def _closing(writer: asyncio.StreamWriter, *, keep: bool = False) -> Iterator[None]:
    try:
        with contextlib.suppress(ConnectionError):
            yield
    finally:
        if not keep:
            writer.close()


def _listen(directory: Path, name: str) -> socket.socket:
    # A socket's name has at most 107 bytes, and a test's directory is longer than that.
    (directory / name).unlink(missing_ok=True)
    unix = socket.socket(socket.AF_UNIX)
    descriptor = os.open(directory, os.O_PATH)
    try:
        unix.bind(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
    return unix


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\r\n")
    await writer.drain()


@contextlib.asynccontextmanager
async def running(vm: FakeVm) -> AsyncIterator[FakeVm]:
    """The VM, for the time of a test."""
    await vm.start()
    try:
        yield vm
    finally:
        await vm.stop()
