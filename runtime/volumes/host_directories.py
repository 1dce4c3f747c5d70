"""Directories and files of the host in a volume's place: which ones a container may have.

A path is followed as root follows it, symbolic links too: who may ask the daemon may as well be root. What it leads to
is opened once; what is looked at and what is mounted (`runtime.vm.sharing`) is then the same.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import HostUnable, InvalidInput
from runtime.vm import sharing, userns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.spec import Spec, VolumeSpec


def check(path: str, keep_out: Sequence[Path]) -> None:
    """Refuse what no container gets: directories of the daemon, what is below them, and what contains them.

    Raises:
        InvalidInput: it is such a path, or neither a directory nor a file. What is not there is well: it will be made.
        HostUnable: it cannot be looked at.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = _open(path)
        try:
            _check_opened(descriptor, path, keep_out)
        finally:
            os.close(descriptor)
        return
    _check_real(Path(os.path.realpath(path)), path, keep_out)


def open_shares(spec: Spec, keep_out: Sequence[Path]) -> list[sharing.Share]:
    """Open all that a container has of the host; the caller closes them. Blocks.

    Raises:
        InvalidInput, HostUnable: as `open_share`; none is open then.
    """
    shares: list[sharing.Share] = []
    try:
        for mount in spec.host_directories:
            shares.append(open_share(mount, keep_out))  # noqa: PERF401 -- those opened must be known when one fails
    except BaseException:
        for share in shares:
            os.close(share.fd)
        raise
    return shares


def open_share(mount: VolumeSpec, keep_out: Sequence[Path]) -> sharing.Share:
    """Open a directory or file; one that is not there may be made as a directory of root's.

    Raises:
        InvalidInput: as `check`; or no guest could use it, as its owner's number is too large.
        HostUnable: it cannot be opened or made.
    """
    path = mount.source or ""
    try:
        descriptor = _open(path)
    except FileNotFoundError as err:
        _check_real(Path(os.path.realpath(path)), path, keep_out)
        if not mount.create:
            raise InvalidInput(f"there is no {path} on the host: make it, or name it with -v", field="volumes") from err
        _make(Path(path))
        descriptor = _open(path)
    try:
        status = _check_opened(descriptor, path, keep_out)
        _check_owner(status, mount)
    except BaseException:
        os.close(descriptor)
        raise
    return sharing.Share(descriptor, path, mount.read_only)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise HostUnable(f"{path} cannot be opened: {err.strerror}", field="volumes") from err


def _make(path: Path) -> None:
    """Make a directory and those above it, for everybody to read, whatever the daemon's umask is."""
    try:
        for directory in (*reversed(path.parents), path):
            with contextlib.suppress(FileExistsError):
                directory.mkdir()
                directory.chmod(0o755)
    except OSError as err:
        raise HostUnable(f"{path} is not there and cannot be made: {err.strerror}", field="volumes") from err


def _check_opened(descriptor: int, path: str, keep_out: Sequence[Path]) -> os.stat_result:
    status = os.fstat(descriptor)
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise InvalidInput(
            f"{path} is neither a directory nor a file: sockets, pipes and devices of the host do not work in a"
            " micro-VM",
            field="volumes",
        )
    _check_real(Path(f"/proc/self/fd/{descriptor}").readlink(), path, keep_out)
    # The same directory may have another path, by a bind mount.
    for kept in keep_out:
        for one in (kept, *kept.parents):
            with contextlib.suppress(OSError):
                if os.path.samestat(one.stat(), status):
                    raise _refused(path, kept)
    return status


def _check_owner(status: os.stat_result, mount: VolumeSpec) -> None:
    owned = status.st_uid < userns.IDS and status.st_gid < userns.IDS
    if not owned and not (mount.read_only and sharing.for_everybody(status)):
        raise InvalidInput(
            f"{mount.source} belongs to {status.st_uid}:{status.st_gid}, and a guest has ids below {userns.IDS} alone:"
            " give it to another user, or let everybody read it and mount it :ro",
            field="volumes",
        )


def _check_real(real: Path, path: str, keep_out: Sequence[Path]) -> None:
    for kept in keep_out:
        own = Path(os.path.realpath(kept))
        if real == own or own in real.parents or real in own.parents:
            raise _refused(path, kept)


def _refused(path: str, kept: Path) -> InvalidInput:
    return InvalidInput(
        f"{path} is, contains or is in {kept}, which is the daemon's own: the disks of all containers are there; name a"
        " directory beside it",
        field="volumes",
    )
