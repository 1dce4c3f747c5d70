"""Many fake micro-VMs served by one process of their own, so that what samples them can be measured alone.

    python -m tests.fakevm.fleet DIR COUNT

lays out DIR/state and DIR/root, serves, and writes `ready`. It is told on standard input, a line each, and answers each
with `done`:

    stop N      the first N stop, as by SIGSTOP: they accept, take what is sent, and do not answer
    go          all go on
    watch PID   a line `round NS` whenever the last VM is read: CPU time of PID so far; PID 0 ends it

Every VM has its own files, sockets and memory; each sample that it is asked for finds it 10 ms of CPU time older, in
the guest and on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakevm import FakeVm
from tests.fakevm.process import REPOSITORY
from tests.fakevm.scenario import BASE, GOLDEN, PID, fake_vm, host_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

SCENARIO = "cgroup-v2"
PAGE_BYTES = 4096
WORK_USEC = 10_000
"""CPU time that a VM uses between two samples."""
_GROUP = "sys/fs/cgroup/hyper"
_CPU_STAT, _MEMORY = "/sys/fs/cgroup/container/cpu.stat", "/sys/fs/cgroup/container/memory.current"


def container_id(number: int) -> str:
    """Id of a VM of the fleet."""
    return f"{number:064x}"


def memory_bytes(number: int) -> int:
    """What the container of this VM uses; of each another amount."""
    return 16 << 20 | number * PAGE_BYTES


def cpu_usec(samples: int) -> int:
    """CPU time of a container that was sampled so often."""
    return 13_662_434 + samples * WORK_USEC


@dataclass
class FleetVm(FakeVm):
    """One of many: it works between samples, and tells when it is read."""

    host_cpu_stat: int = -1
    on_read: Callable[[], None] | None = None
    samples: int = 0

    def _hyper_read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.requests.clear()
        if self.on_read is not None:
            self.on_read()
        self.samples += 1
        used = cpu_usec(self.samples)
        self.files[_CPU_STAT] = _CPU_STAT_TEXT % used
        # The host's files are read once guest and VMM have answered. The text never gets shorter.
        os.pwrite(self.host_cpu_stat, b"usage_usec %d\n" % (used + 3_000_000), 0)
        return super()._hyper_read(arguments)


_CPU_STAT_TEXT = b"usage_usec %d\n" + (BASE / "guest" / _CPU_STAT[1:]).read_bytes().partition(b"\n")[2]


def lay_out(directory: Path, count: int) -> list[FleetVm]:
    """Files of `count` VMs below `directory`."""
    root = host_root("base", directory / "root")
    process = {
        str(path.relative_to(BASE / f"host/proc/{PID}")): path.read_bytes()
        for path in (BASE / f"host/proc/{PID}").rglob("*")
        if path.is_file()
    }
    group = {path.name: path.read_bytes() for path in (GOLDEN / SCENARIO / "host" / _GROUP / "3f").iterdir()}
    vms = []
    for number in range(count):
        vm = fake_vm(directory / "state", SCENARIO, container_id(number))
        assert vm.record.vm
        cgroup = f"{_GROUP}/{number}"
        pid = PID + 2 + number
        record = replace(
            vm.record,
            name=f"web{number}",
            vm=replace(vm.record.vm, pid=pid),
            cgroups=replace(vm.record.cgroups, v2=f"/{cgroup}"),
        )
        for path, text in process.items():
            _write(root / "proc" / str(pid) / path.replace(f"task/{PID}/", f"task/{pid}/"), text)
        for name, text in group.items():
            _write(root / cgroup / name, text)
        files = {**vm.files, _MEMORY: b"%d\n" % memory_bytes(number)}
        stat = os.open(root / cgroup / "cpu.stat", os.O_WRONLY | os.O_CLOEXEC)
        vms.append(FleetVm(vm.directory, record, vm.qmp, vm.status, vm.read, files, host_cpu_stat=stat))
    return vms


def _write(path: Path, text: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process (Documentation/scheduler/sched-stats.rst)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_bytes().split()[0]) for task in tasks)


@dataclass
class Fleet:
    """A fleet in a process of its own."""

    process: asyncio.subprocess.Process
    directory: Path
    count: int

    @property
    def state_dir(self) -> Path:
        """Where the records are."""
        return self.directory / "state"

    @property
    def root(self) -> Path:
        """Stands for `/` of the host."""
        return self.directory / "root"

    def directory_of(self, number: int) -> Path:
        """Where the record and the sockets of a VM are."""
        return self.state_dir / "containers" / container_id(number)

    def tell(self, command: str) -> None:
        """Send a command, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")

    async def ask(self, command: str) -> None:
        """Send a command, and wait until it is done."""
        self.tell(command)
        await self._line("done")

    async def rounds(self, pid: int, count: int) -> list[float]:
        """CPU seconds that `pid` used in each of the next rounds, from one read of the same VM to the next."""
        self.tell(f"watch {pid}")
        stamps = [float(await self._line("round")) / 1e9 for _ in range(count + 1)]
        await self.ask("watch 0")
        return [later - earlier for earlier, later in itertools.pairwise(stamps)]

    async def next_round(self) -> None:
        """Return as soon as a round has begun."""
        await self.rounds(self.process.pid, 0)

    async def _line(self, wanted: str) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, "the fleet ended"
                word, _, rest = line.strip().partition(" ")
                if word == wanted:
                    return rest


@contextlib.asynccontextmanager
async def fleet(directory: Path, count: int) -> AsyncIterator[Fleet]:
    """Serve `count` VMs below `directory` for the time of a test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakevm.fleet", str(directory), str(count)),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    one = Fleet(process, directory, count)
    try:
        await one._line("ready")
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(directory: Path, count: int) -> None:
    vms = lay_out(directory, count)
    for vm in vms:
        await vm.start()
    _say("ready")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, _, argument = line.decode().strip().partition(" ")
        _obey(vms, command, int(argument or 0))
        _say("done")


def _obey(vms: list[FleetVm], command: str, argument: int) -> None:
    if command == "stop":
        for vm in vms[:argument]:
            vm.going.clear()
    elif command == "go":
        for vm in vms:
            vm.going.set()
    elif command == "watch":
        # The last one is asked after all others, and never among those that stop.
        vms[-1].on_read = (lambda: _say(f"round {cpu_ns(argument)}")) if argument else None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
