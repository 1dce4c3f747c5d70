"""A program of its own: mount host directories in the mount namespace of a QEMU.

It is run as a script by `runtime.vm.sharing`, with descriptors for all it needs, as entering a mount namespace is for a
process with one thread. Until the last step a mount is only held by this process: if it is killed, nothing is left.

Arguments: descriptors of the mount namespace, the user namespace, and the directory to mount in; then for each mount
`DESCRIPTOR:MODE`, where MODE has `r` (read-only) and `p` (may be mounted without the map of ids). They get the names
0, 1, 2, …. A failure is told on stdout as `INDEX STEP ERRNO`, with exit code 1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

# asm/unistd_64.h; linux/mount.h, linux/fcntl.h, linux/sched.h
_SETNS, _OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 308, 428, 429, 442
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _CLONE_NEWNS = 1, 4, 0x20000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _IDMAP = 1, 2, 4, 8, 0x100000
_MS_PRIVATE = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


class _Failed(Exception):  # noqa: N818 -- reads as what happened
    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number


def _call(step: str, number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise _Failed(step, ctypes.get_errno())
    return result


def _set(tree: int, flags: int, user_namespace: int) -> None:
    attributes = _Attributes(flags, 0, _MS_PRIVATE, max(user_namespace, 0))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("map", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, ctypes.byref(attributes), size)


def _tree(source: int, user_namespace: int, mode: str) -> int:
    """A detached copy of the mounts at a directory or file, as the guest may have them."""
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | _AT_RECURSIVE | os.O_CLOEXEC
    tree = _call("open", _OPEN_TREE, source, b"", flags)
    # What is on these mounts is data for QEMU: it runs nothing of it, and opens no device.
    kept = _NOSUID | _NODEV | _NOEXEC | (_RDONLY if "r" in mode else 0)
    try:
        _set(tree, kept | _IDMAP, user_namespace)
    except _Failed as err:
        if "p" not in mode or err.number not in (errno.EINVAL, errno.EPERM):
            raise
        _set(tree, kept, -1)
    return tree


def _main(mount_namespace: int, user_namespace: int, place: int, mounts: list[str]) -> None:
    at = 0
    try:
        trees = []
        for at, text in enumerate(mounts):
            source, _, mode = text.partition(":")
            trees.append(_tree(int(source), user_namespace, mode))
            if stat.S_ISDIR(os.fstat(int(source)).st_mode):
                os.mkdir(str(at), 0o755, dir_fd=place)
            else:
                os.close(os.open(str(at), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=place))
        _call("enter", _SETNS, mount_namespace, _CLONE_NEWNS)
        for at, tree in enumerate(trees):
            _call("mount", _MOVE_MOUNT, tree, b"", place, str(at).encode(), _MOVE_MOUNT_F_EMPTY_PATH)
    except _Failed as err:
        sys.exit(_told(at, err.step, err.number))
    except OSError as err:
        sys.exit(_told(at, "make", err.errno or 0))


def _told(at: int, step: str, number: int) -> int:
    sys.stdout.write(f"{at} {step} {number}\n")
    return 1


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
