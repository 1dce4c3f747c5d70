"""Runs a program under what a systemd unit would put on it, where no systemd runs: uid, capabilities, system calls.

`confined` makes the command that does it. Of mounts and devices that a unit hides nothing is tried here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "scripts/systemd"
NOBODY = 65534
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_PR_SET_MDWE = 65  # linux/prctl.h, Linux 6.3: no memory both writable and executable
_ALLOW = 0x7FFF0000  # seccomp.h
_REFUSE = 0x00050000 | errno.EPERM  # seccomp.h, SCMP_ACT_ERRNO
_UNKNOWN = -1  # seccomp.h, __NR_SCMP_ERROR


def parse(path: Path) -> dict[str, list[str]]:
    """The settings of a unit by name: all their words, in order (systemd.unit(5): a list is added to)."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, words = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found.setdefault(name, []).extend(words.split())
    return found


def confined(unit: Path, argv: list[str], *, also: tuple[str, ...] = ()) -> list[str]:
    """The command that runs `argv` as the unit would: an unprivileged unit as nobody. `also`: more capabilities."""
    settings = parse(unit)

    def names(setting: str) -> str:
        return ",".join(["-all", *(f"+{c.removeprefix('CAP_').lower()}" for c in (*settings.get(setting, ()), *also))])

    bounding, ambient = names("CapabilityBoundingSet"), names("AmbientCapabilities")
    command = ["setpriv", f"--bounding-set={bounding}", f"--inh-caps={ambient}", f"--ambient-caps={ambient}"]
    if "User" in settings:
        command += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*command, "--", sys.executable, str(Path(__file__)), str(unit), "--", *argv]


@cache
def calls(group: str) -> frozenset[str]:
    """The system calls of a group such as `@mount`, and of those in it; a call is a group of one."""
    if not group.startswith("@"):
        return frozenset((group,))
    argv = ["systemd-analyze", "--no-pager", "syscall-filter", group]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    words = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return frozenset().union(*map(calls, words))


def _filter(words: list[str]) -> tuple[bool, frozenset[str]]:
    """Whether the first of the unit's lists allows, and the calls that are in the end allowed (or refused)."""
    allows = not words[0].startswith("~")
    named: frozenset[str] = frozenset()
    refusing = False
    for word in words:
        refusing = refusing if word.startswith("@") else word.startswith("~")
        group = calls(word.removeprefix("~"))
        named = named | group if refusing != allows else named - group
    return allows, named


def refuse_calls(words: list[str]) -> None:
    """Have the kernel refuse what a unit's SystemCallFilter refuses, for this process and all it starts."""
    allows, named = _filter(words)
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_REFUSE if allows else _ALLOW))
    for name in named:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number != _UNKNOWN:  # of an older or newer kernel than the library knows
            library.seccomp_rule_add(context, _ALLOW if allows else _REFUSE, number, 0)
    if library.seccomp_load(context) != 0:
        raise OSError("the filter of system calls was not loaded")


def _main() -> None:
    unit, _, *argv = sys.argv[1:]
    settings = parse(Path(unit))
    libc = ctypes.CDLL(None)
    groups = settings["SystemCallFilter"]
    if settings.get("NoNewPrivileges") == ["yes"]:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    refuse_calls(groups)
    if settings.get("MemoryDenyWriteExecute") == ["yes"]:
        libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)  # an older kernel refuses; then it is not tried
    os.execvp(argv[0], argv)  # noqa: S606 -- it becomes the program, as under systemd


if __name__ == "__main__":
    _main()
