"""What hyperd can see of a container by itself, without the collector: its life, its checks, its guest's own counters.

Source: `memory.current`, `memory.events` (`oom_kill`), `cpu.stat` (`usage_usec`) and the `total` (microseconds) of
`cpu.pressure`, `memory.pressure` and `io.pressure` of the container's cgroup in its guest
(Documentation/admin-guide/cgroup-v2.rst, Documentation/accounting/psi.rst), and `/proc/net/tcp` and `tcp6` (proc(5)),
read through the agent. How long a health check took is hyperd's own measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from runtime import processes
from runtime.changes import hostwait
from runtime.changes.comparison import KINDS, RESOURCES, Seen
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.changes.comparison import Kind, Stalls
    from runtime.changes.hostwait import HostTime
    from runtime.life import Container
    from runtime.record import Port

_READ_TIMEOUT_S = 2.0
_CONNECT_TIMEOUT_S = 1.0
_MAX_FILE_BYTES = 16384
_MAX_SOCKETS_BYTES = 131072
_MAX_DIGITS = 19
_CHECKS_KEPT = 1000
# linux/net/tcp_states.h: connections that still have something to say to the container's process.
_OPEN_STATES = frozenset({"01", "03", "04", "08"})  # ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT


class Sample(NamedTuple):
    """One look at a guest's counters; None: the guest did not tell. `host` is what its VM had of the host then."""

    time: float
    memory_bytes: int | None
    oom_kills: int | None
    cpu_us: int | None
    stalled_us: Stalls = MappingProxyType({})
    host: HostTime | None = None


def parse(texts: dict[str, str], group: str, now: float) -> Sample:
    """A sample of the files of a container's cgroup; whatever is in them, it is a number of bounded length or None."""
    events = _keyed(texts.get(f"{group}/memory.events", ""))
    cpu = _keyed(texts.get(f"{group}/cpu.stat", ""))
    return Sample(
        now,
        _number(texts.get(f"{group}/memory.current", "")),
        events.get("oom_kill"),
        cpu.get("usage_usec"),
        {
            (one, kind): us
            for one in RESOURCES
            for kind, us in parse_pressure(texts.get(f"{group}/{one}.pressure", "")).items()
        },
    )


def parse_pressure(text: str) -> dict[Kind, int]:
    """The totals of a pressure file, in microseconds: of lines such as `some avg10=0.00 … total=7`."""
    lines = {line.partition(" ")[0]: line.rpartition(" total=")[2] for line in text.splitlines()[:2]}
    return {kind: us for kind in KINDS if (us := _number(lines.get(kind, ""))) is not None}


async def look(container: Container) -> Sample | None:
    """One look; None if the guest does not answer in time."""
    group = container.record.guest.cgroup
    names = ("memory.current", "memory.events", "cpu.stat", *(f"{one}.pressure" for one in RESOURCES))
    texts = await _texts(container, [f"{group}/{name}" for name in names], _MAX_FILE_BYTES)
    if texts is None:
        return None
    process = container.process
    host = None if process is None else hostwait.read(process, container.record.cgroups)
    return parse(texts, group, time.monotonic())._replace(host=host)


def count_connections(text: str, ports: Iterable[int]) -> int:
    """How many connections from outside are open at these ports, of the lines of `/proc/net/tcp` or `tcp6`.

    Those from the guest's own loopback are health checks and the container's own business.
    """
    wanted = set(ports)
    found = 0
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] not in _OPEN_STATES:
            continue
        address, _, port = fields[1].partition(":")
        with contextlib.suppress(ValueError):
            found += int(port, 16) in wanted and not address.endswith("7F")
    return found


async def connections(container: Container, ports: Iterable[Port]) -> int | None:
    """Connections from outside that are open at its published ports; None if the guest does not answer in time."""
    numbers = [port.container_port for port in ports if port.protocol == "tcp"]
    if not numbers:
        return 0
    texts = await _texts(container, ["/proc/net/tcp", "/proc/net/tcp6"], _MAX_SOCKETS_BYTES)
    return None if texts is None else sum(count_connections(text, numbers) for text in texts.values())


async def accepts(container: Container, port: int) -> bool:
    """Whether somebody accepts TCP connections at a port of the container, asked from the host."""
    network = container.record.network
    if network is None or container.state != "running":
        return False
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(network.address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _texts(container: Container, paths: list[str], max_bytes: int) -> dict[str, str] | None:
    if container.state != "running" or container.agent is None:
        return None
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            texts, _ = await processes.read(container, paths, max_bytes)
    except (RuntimeFault, TimeoutError):
        return None
    return texts


class Watch:
    """Gathers what is seen of one container from its making on; its first look is the base of what is counted.

    `check` is what its health check runs; empty: it has none.
    """

    def __init__(self, container: Container, check: tuple[str, ...] = ()) -> None:
        self.container = container
        self._check = check
        self._last_check = time.time()  # when the newest that was taken began
        self._check_times_s: deque[float] = deque(maxlen=_CHECKS_KEPT)
        self._runs = container.state == "running"
        self._epoch = container.record.lifecycle.epoch
        self._failed = container.failed_checks
        self._looks = self._answers = self._peak = 0
        self._first: Sample | None = None
        self._last: Sample | None = None
        self._ended = False

    async def look(self) -> None:
        """One more look."""
        self._looks += 1
        lifecycle = self.container.record.lifecycle
        self._ended = self._ended or (self._runs and lifecycle.state in {"exited", "dead"})
        self._take_checks()
        sample = await look(self.container)
        if sample is None:
            return
        self._answers += 1
        self._peak = max(self._peak, sample.memory_bytes or 0)
        if self._first is None or _went_back(self._last, sample):
            self._first = sample  # another VM of the same container: its counters begin anew
        self._last = sample

    def _take_checks(self) -> None:
        """How long those took that were made since the last look, as far as they are still there."""
        for one in self.container.checks:
            if one.began > self._last_check:
                self._last_check = one.began
                if one.exit_code == 0:
                    self._check_times_s.append(max(one.ended - one.began, 0.0))

    def seen(self) -> Seen:
        """What has been seen so far."""
        record, lifecycle = self.container.record, self.container.record.lifecycle
        first, last = self._first, self._last
        exits = max(lifecycle.epoch - self._epoch, 0)
        if self._runs and not exits and (self._ended or lifecycle.state in {"exited", "dead"}):
            exits = 1
        cores = oom_kills = host_wait_s = None
        stalled: Stalls = {}
        counted_s = 0.0
        if first is not None and last is not None and last.time > first.time:
            counted_s = last.time - first.time
            host_wait_s = hostwait.between(first.host, last.host)
            stalled = _shares(first.stalled_us, last.stalled_us, counted_s)
            if first.cpu_us is not None and last.cpu_us is not None:
                cores = max(last.cpu_us - first.cpu_us, 0) / 1e6 / counted_s
            if first.oom_kills is not None and last.oom_kills is not None:
                oom_kills = max(last.oom_kills - first.oom_kills, 0)
        if lifecycle.oom_killed and exits:
            oom_kills = max(oom_kills or 0, 1)
        known = last is not None and last.memory_bytes is not None
        return Seen(
            running=self._runs,
            looks=self._looks,
            answers=self._answers,
            exits=exits,
            failed_checks=self.container.failed_checks - self._failed,
            unhealthy=lifecycle.health == "unhealthy",
            checked=lifecycle.health != "none",
            oom_kills=oom_kills,
            memory_bytes=self._peak if known else None,
            memory_limit_bytes=record.limits.memory_bytes,
            cpu_cores=cores,
            check=self._check,
            check_times_s=tuple(self._check_times_s),
            stalled=stalled,
            pressure_s=counted_s,
            host_wait_s=host_wait_s,
        )


def _shares(first_us: Stalls, last_us: Stalls, seconds: float) -> Stalls:
    """The share of the time, 0 to 1, of what both looks tell."""
    return {key: min(max(us - first_us[key], 0) / 1e6 / seconds, 1.0) for key, us in last_us.items() if key in first_us}


def _went_back(before: Sample | None, after: Sample) -> bool:
    if before is None:
        return False
    other = before.host is not None and after.host is not None and before.host.pid != after.host.pid
    return other or (after.cpu_us or 0) < (before.cpu_us or 0)


def _keyed(text: str) -> dict[str, int]:
    pairs = (line.partition(" ") for line in text.splitlines()[:200])
    return {name: value for name, _, number in pairs if (value := _number(number)) is not None}


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
