"""hyperd, forked off a process that has imported all of it: what a start takes is not what the storm is about.

Importing takes longer than all else that a daemon does to come back, and there are some hundreds of starts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from tests.host import Daemon

# Each line that it reads is an environment; it forks, and says the process id. Nobody waits for who was forked.
_PROGRAM = """
import gc, json, os, signal, sys
from runtime import daemon
gc.disable()
daemon._spare_pydantic()
from runtime import serving
serving._import_server()
import uvicorn
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(json.loads(line))
        os.setpgid(0, 0)
        null, log = os.open(os.devnull, os.O_RDWR), os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
        for target, fd in enumerate((null, log, log)):
            os.dup2(fd, target)
        os.closerange(3, 64)
        sys.argv = ["hyperd"]
        daemon.main()
        os._exit(0)
    print(pid, flush=True)
"""


class Forked:
    """A process that is not our child, with what `tests.host.Daemon` wants of one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Whether it has ended; how, nobody knows."""
        if self.returncode is None and select.select([self._descriptor], [], [], 0)[0]:
            self._end()
        return self.returncode

    def kill(self) -> None:
        """End it as a crash would."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def terminate(self) -> None:
        """End it as an operator would."""
        signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        if self.returncode is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("hyperd", timeout or 0)
            self._end()

    def _end(self) -> None:
        self.returncode = 0
        os.close(self._descriptor)


class Forge:
    """Starts daemons in the place of `daemon`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self._daemon.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def start(self) -> None:
        """Start one; it is `daemon.process`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._daemon.env) + "\n")
        self._process.stdin.flush()
        self._daemon.process = Forked(int(self._process.stdout.readline()))  # type: ignore[assignment]  # it has all that is used
