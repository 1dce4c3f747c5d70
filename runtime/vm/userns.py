"""User namespaces in which a VM's user is root over the files of host directories, and over nothing else.

Ids 0 to 65535 of a directory's files are, for QEMU, its own uid (0) and ids that nobody has (the others). Over these it
has the rights of root; over all other files of the host it has those of its uid. The same namespace is the map of the
mounts that it gets (`runtime.vm.sharing`), which is what gives the files those ids. See docs/adr/0015.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from pathlib import Path

from runtime.errors import HostUnable

IDS = 65536  # of files that a guest may own
# Ids of nobody: beyond those that useradd and systemd give out, and below 2^31. All VMs have the same, as they are only
# seen through mounts that one VM has.
_FIRST_ID = 1_900_000_000
# What root does with files. It counts for ids of the map alone.
CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid")
_TIMEOUT_S = 10.0


def make(uid: int) -> int:
    """A user namespace for the VM that runs as `uid`, as a descriptor for the caller to close.

    Raises:
        HostUnable: the host makes none.
    """
    id_map = f"0 {uid} 1\n1 {_FIRST_ID + 1} {IDS - 1}\n"
    ours, theirs = socket.socketpair()
    try:
        with ours, theirs:
            ours.settimeout(_TIMEOUT_S)
            # A namespace lives as long as a process or a descriptor: `cat` stays in it until it is held. What it echoes
            # says that it is inside.
            end = theirs.fileno()
            child = subprocess.Popen(["unshare", "--user", "cat"], stdin=end, stdout=end, stderr=subprocess.DEVNULL)
            try:
                theirs.close()
                ours.sendall(b"\n")
                if not ours.recv(1):
                    raise _refused("unshare --user fails")
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{child.pid}/{name}").write_text(id_map)
                return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                child.kill()
                child.wait()
    except OSError as err:
        raise _refused(str(err)) from err


@functools.cache
def possible() -> bool:
    """Whether this host makes user namespaces."""
    try:
        os.close(make(_FIRST_ID))
    except HostUnable:
        return False
    return True


def require() -> None:
    """Refuse what needs a user namespace where there can be none.

    Raises:
        HostUnable: so it is.
    """
    if not possible():
        raise _refused("it was tried when it was first needed")


def _refused(why: str) -> HostUnable:
    return HostUnable(
        f"this host makes no user namespaces ({why}), which host directories as volumes need: allow them (sysctl"
        " user.max_user_namespaces) and restart hyperd, or use a named volume",
        field="volumes",
    )
