"""One background program: started once, known by process id and start time, ended by that alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from scripts.stack.settings import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping

POLL_S = 0.05
PROBE_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Service:
    """What to start and how to see that it is ready.

    `ready_url` is asked over `ready_socket` where that is given. `address` is the host:port it will listen on, and
    `variable` moves it. `environment` is laid under the caller's. `files` are configuration files, path to text,
    written before the start.
    """

    name: str
    argv: tuple[str, ...]
    ready_url: str
    ready_socket: Path | None = None
    address: str | None = None
    variable: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    ready_timeout_s: float = 30.0
    stop_timeout_s: float = 15.0

    @property
    def key(self) -> str:
        """Changes with everything that a running one would have to be started again for."""
        settings = [*self.environment.items(), *self.files.items()]
        parts = [*self.argv, *(f"{name}={text}" for name, text in settings)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Running:
    """A program that was started; `start_ticks` is field 22 of /proc/PID/stat, so a reused id is not taken for it."""

    pid: int
    start_ticks: int
    key: str


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where it has ended (a zombie has)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(rest[18])


def find(run_dir: Path, name: str) -> Running | None:
    """The program `name` that an earlier `up` started, if it still runs."""
    try:
        running = Running(**json.loads((run_dir / f"{name}.pid").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return running if start_ticks(running.pid) == running.start_ticks else None


def start(service: Service, run_dir: Path) -> bool:
    """Start the service unless it runs, and wait until it is ready. Returns whether it had to be started.

    Raises:
        StackError: its port is taken, it ended, or it was not ready in time; it is then not left running.
    """
    running = find(run_dir, service.name)
    if running is not None and running.key == service.key and is_ready(service):
        return False
    if running is not None:
        stop(run_dir, service.name, service.stop_timeout_s)
    if service.address is not None:
        check_free(service.name, service.address, service.variable)
    elif is_ready(service):
        raise StackError(f"another {service.name} runs already: end it, or set {service.variable}")
    for path, text in service.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    log_path = run_dir / f"{service.name}.log"
    pid = _spawn(service, log_path)
    ticks = start_ticks(pid)
    if ticks is not None:
        file = {"pid": pid, "start_ticks": ticks, "key": service.key}
        (run_dir / f"{service.name}.pid").write_text(json.dumps(file))
    deadline = time.monotonic() + service.ready_timeout_s
    while time.monotonic() < deadline and start_ticks(pid) is not None:
        if is_ready(service):
            return True
        time.sleep(POLL_S)
    ended = start_ticks(pid) is None
    stop(run_dir, service.name, service.stop_timeout_s)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    what = f"ended with exit code {code}" if ended else f"was not ready in {service.ready_timeout_s:g} s"
    tail = "\n".join(f"    {line}" for line in log_path.read_text(errors="replace").splitlines()[-10:])
    raise StackError(f"{service.name} {what}; its log is {log_path}, which ends:\n{tail}")


def _spawn(service: Service, log_path: Path) -> int:
    """Start the program in a session of its own, without an object here that would have to outlive it."""
    try:
        return os.posix_spawnp(
            service.argv[0],
            service.argv,
            {**service.environment, **os.environ},
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ),
            setsid=True,
        )
    except FileNotFoundError as err:
        raise StackError(f"{service.argv[0]} was not found: run `make setup`") from err


def stop(run_dir: Path, name: str, timeout_s: float) -> bool:
    """End the program `name`: SIGTERM, and SIGKILL after `timeout_s`. Returns whether it ran."""
    running = find(run_dir, name)
    if running is not None:
        _signal(running, signal.SIGTERM)
        if not _has_ended(running, timeout_s):
            _signal(running, signal.SIGKILL)
            if not _has_ended(running, KILL_TIMEOUT_S):
                raise StackError(f"{name} (process {running.pid}) does not end, not even by SIGKILL")
    (run_dir / f"{name}.pid").unlink(missing_ok=True)
    return running is not None


def is_ready(service: Service) -> bool:
    """Whether the service, ours or another's, answers."""
    transport = None if service.ready_socket is None else httpx.HTTPTransport(uds=str(service.ready_socket))
    try:
        with httpx.Client(transport=transport, timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            return client.get(service.ready_url).is_success
    except httpx.HTTPError:
        return False


def _signal(running: Running, number: signal.Signals) -> None:
    if start_ticks(running.pid) == running.start_ticks:
        os.kill(running.pid, number)


def _has_ended(running: Running, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while start_ticks(running.pid) == running.start_ticks:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def check_free(what: str, address: str, variable: str) -> None:
    """Nobody listens on host:port.

    Raises:
        StackError: somebody does; the message names the variable that moves it.
    """
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as err:
            raise StackError(
                f"{what} cannot be at {address} ({err.strerror}): end what listens there, or move it with {variable}"
            ) from err
