"""A QEMU process: started detached, unprivileged and confined; watched by a process descriptor; ended for certain.

The daemon may be killed at any time: the process goes on, and is found again by its pid and start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

from runtime.errors import GuestFailed, HostUnable
from runtime.network import holding
from runtime.vm import userns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PR_SET_THP_DISABLE = 41  # linux/prctl.h
_libc = ctypes.CDLL(None)
# Children that this daemon started and has not reaped; a Popen that is dropped would warn, and leave a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Process:
    """A process for as long as its start time fits; a reused pid is another process."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none, or it is a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the name in parentheses may contain anything; field 3 follows it, field 22 is starttime.
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] == "Z" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Whether this very process runs (a zombie does not)."""
        return Process.of(self.pid) == self

    def memory_bytes(self) -> int:
        """Its proportional share of memory (PSS) now; 0 if it has ended. Takes a millisecond or so."""
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)

    def wrote_at_ns(self) -> int:
        """When one of the disks that it has open was last written to; 0 if it has none, or has ended."""
        latest = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    # proc_pid_fd(5): the link's mode says what it is open for. Logs are for writing alone.
                    both = entry.stat(follow_symlinks=False).st_mode & 0o600 == 0o600
                    if both and S_ISREG((found := entry.stat()).st_mode):
                        latest = max(latest, found.st_mtime_ns)
        return latest

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended is no failure."""
        with self._descriptor() as descriptor:
            if descriptor is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)

    async def ended(self) -> int | None:
        """Wait until it has ended, and reap it. Returns its exit code, -N for a signal; None if it is not our child."""
        loop = asyncio.get_running_loop()
        with self._descriptor() as descriptor:
            if descriptor is not None:
                done = asyncio.Event()
                loop.add_reader(descriptor, done.set)
                try:
                    await done.wait()
                finally:
                    loop.remove_reader(descriptor)
        child = _children.pop(self.pid, None)
        code = None if child is None else child.wait()
        holding.let_go(self.pid)
        return code

    async def kill(self) -> None:
        """End it with SIGKILL and wait for the end. A stopped process (SIGSTOP) ends as well."""
        self.signal(signal.SIGKILL)
        await self.ended()

    @contextlib.contextmanager
    def _descriptor(self) -> Iterator[int | None]:
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Looked at after the descriptor is held, so that it cannot be of a later process with the same pid.
            stat = Process.of(self.pid)
            ours = self.pid in _children or stat == self
            yield descriptor if ours else None
        finally:
            os.close(descriptor)


# QEMU opens /dev/kvm itself, and its user may not. In its own mount namespace it gets a node that is its own.
_OWN_KVM = (
    'mount -t tmpfs -o mode=0755 none /mnt && mknod -m 0600 /mnt/kvm c 10 232 && chown "$0" /mnt/kvm '
    '&& mount --bind /mnt/kvm /dev/kvm && exec "$@"'
)


# A VM that may get host directories: root of its own user namespace, with what that needs to own their files.
_AS_ROOT_OF = "nsenter --user={} -- setpriv --reuid=0 --regid=0"


# The process enters its control groups before it is QEMU, so that a VM is always found in them, and is billed from the
# first page; should it crash, the guest's memory is not written to a file. Arguments: how many groups, their
# directories, the program.
_ENTER_GROUPS = (
    "ulimit -c 0; n=$1; shift; "
    'while [ "$n" -gt 0 ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; n=$((n-1)); done; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a VM runs as and in: a uid of its own, and its control groups.

    `user_namespace` is of `runtime.vm.userns`, -1 for none; to be kept open until QEMU answers.
    """

    uid: int
    groups: tuple[Path, ...]
    kvm: bool = False
    user_namespace: int = -1


def uids_in_use() -> set[int]:
    """The effective uids of all processes of the host; takes some microseconds a process.

    Asked of `/proc`, and not of records: there is no VM that it misses, whoever has started it.
    """
    found = set()
    for one in os.scandir("/proc"):
        if one.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found.add(one.stat().st_uid)  # proc(5): also if it cannot be traced
    return found


def without_huge_pages() -> None:
    """Let this process, and all that it starts, have pages of the usual size.

    QEMU asks for huge ones for the code that it translates: of 2 MB each, the last is as good as empty, and clearing
    them takes longer than the start gains (prctl(2), PR_SET_THP_DISABLE). A kernel without them refuses, which is well.
    """
    _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def start(
    program: str,
    arguments: Sequence[str],
    descriptors: Sequence[int],
    confinement: Confinement,
    log: Path,
    directory: Path,
) -> Process:
    """Start QEMU as an unprivileged user in namespaces (mount, network, IPC, UTS) and control groups of its own.

    What it prints goes to `log`; `directory` is where it starts. Returns before QEMU is ready.

    Raises:
        HostUnable: a program of the chain is missing or may not be run.
    """
    uid = confinement.uid
    chain = ["sh", "-c", _ENTER_GROUPS, "sh", str(len(confinement.groups)), *map(str, confinement.groups)]
    chain += ["unshare", "--mount", "--net", "--ipc", "--uts", "--"]
    if confinement.kvm:
        chain += ["sh", "-c", _OWN_KVM, str(uid)]
    if confinement.user_namespace >= 0:
        chain += _AS_ROOT_OF.format(f"/proc/{os.getpid()}/fd/{confinement.user_namespace}").split()
        kept = "".join(f",+{name}" for name in userns.CAPABILITIES)
    else:
        chain += ["setpriv", f"--reuid={uid}", f"--regid={uid}"]
        kept = ""
    chain += ["--clear-groups", "--no-new-privs", f"--bounding-set=-all{kept}"]
    chain += ["--inh-caps=-all", "--ambient-caps=-all", "--"]
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*chain, program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                start_new_session=True,
                cwd=directory,
                # One malloc arena: one a thread, each with pages of its own, costs up to 2 MB a VM.
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "MALLOC_ARENA_MAX": "1"},
            )
    except OSError as err:
        raise HostUnable(f"cannot start {program}: {err.strerror}") from err
    process = Process.of(child.pid)
    _children[child.pid] = child
    if process is None:
        child.wait()
        del _children[child.pid]
        raise GuestFailed(f"QEMU ended at once: {last_line(log)}")
    return process


def last_line(log: Path, limit_bytes: int = 4096) -> str:
    """The last line that QEMU printed, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - limit_bytes))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return "it left no message"
    return lines[-1] if lines else "it left no message"


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address for a unix socket, through its directory's descriptor: it holds 107 bytes, a path may be longer.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def listen(directory: Path, name: str) -> socket.socket:
    """A listening unix socket `name` in `directory`, mode 0600, for QEMU to inherit."""
    path = directory / name
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with address_of(path) as address:
        previous = os.umask(0o177)
        try:
            listener.bind(address)
            listener.listen(4)
        finally:
            os.umask(previous)
    return listener


async def connect(path: Path, limit_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a unix socket whose path may be longer than a socket address.

    Raises:
        OSError: nobody listens.
    """
    with address_of(path) as address:
        return await asyncio.open_unix_connection(address, limit=limit_bytes)
