"""Host directories for one VM: mounted below the directory that its QEMU exports, in QEMU's own mount namespace.

Nobody else sees these mounts, and they are gone with QEMU, whatever becomes of the daemon. What the guest may do there
is settled by the mounts themselves: which ids it has (an idmapped mount), whether it may write, and that no device
there works (`nodev`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import command
from runtime.errors import GuestFailed, HostUnable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.vm.process import Process

_PROGRAM = Path(__file__).with_name("mounting.py")
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Share:
    """A directory or file of the host, as a descriptor (O_PATH), and how it is called in messages."""

    fd: int
    path: str
    read_only: bool

    @property
    def needs_map(self) -> bool:
        """Whether it is of no use unless ids are mapped: it is to be written, or not everybody may read it."""
        return not self.read_only or not for_everybody(os.fstat(self.fd))


def for_everybody(status: os.stat_result) -> bool:
    """Whether a directory or file may be read by every user."""
    wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else 0)
    return status.st_mode & wanted == wanted


def prepare(directory: Path) -> Path:
    """Make the empty directory that a VM exports. Only root may write in it, and QEMU is not that."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    directory.chmod(0o755)  # whatever the umask is
    return directory


async def attach(process: Process, shares: Sequence[Share]) -> None:
    """Mount the shares for a QEMU that was started to have some; they are called 0, 1, 2, … in what it exports.

    Raises:
        HostUnable: the host's kernel or a file system cannot.
        GuestFailed: QEMU is gone.
    """
    namespaces = Path(f"/proc/{process.pid}/ns")
    opened: list[int] = []
    try:
        for path, flags in (
            (namespaces / "mnt", os.O_RDONLY),
            (namespaces / "user", os.O_RDONLY),
            (Path(f"/proc/{process.pid}/cwd"), os.O_PATH | os.O_DIRECTORY),
        ):
            opened.append(os.open(path, flags | os.O_CLOEXEC))
        if not process.alive():  # looked at after they are held: they cannot be of a later process
            raise GuestFailed("QEMU ended before its host directories were mounted")
        mounts = [f"{share.fd}:{'r' * share.read_only}{'p' * (not share.needs_map)}" for share in shares]
        done = await command.run(
            [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, opened), *mounts],
            timeout_s=_TIMEOUT_S,  # a file system over a network may not answer
            pass_fds=(*opened, *(share.fd for share in shares)),
        )
    except TimeoutError as err:
        raise HostUnable(f"the host directories could not be mounted within {_TIMEOUT_S:g} s", field="volumes") from err
    except OSError as err:
        raise GuestFailed(f"QEMU ended before its host directories were mounted: {err.strerror}") from err
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if done.returncode != 0:
        raise HostUnable(_explained(done.stdout.decode(), done.last_line, shares), field="volumes")


def _explained(told: str, said: str, shares: Sequence[Share]) -> str:
    """What a failure means for the one who named the directory."""
    words = told.split()
    if len(words) != 3:
        return f"the host directories cannot be mounted: {said}"
    at, step, number = int(words[0]), words[1], int(words[2])
    share = shares[at]
    if step == "map" and number in (errno.EINVAL, errno.EPERM):
        how = "what is to be written" if not share.read_only else "what not everybody may read"
        return (
            f"{share.path} is on a file system, or has one mounted below it, that the host's kernel cannot give a"
            f" micro-VM's user the files of (no idmapped mounts), and {how} needs that: use a directory on ext4, XFS,"
            " btrfs or tmpfs, or mount one that everybody may read with :ro"
        )
    if number == errno.ENOSYS:
        return "host directories as volumes need Linux 5.12 or later on the host: use a named volume"
    return f"{share.path} cannot be mounted for the micro-VM: {os.strerror(number)} ({step})"
