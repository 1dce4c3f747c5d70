"""Options of ps(1), as `docker top` takes them, mapped to columns that can be had from a guest's kernel.

Two dialects: with a dash (`-ef`, `-o pid,comm`), and without (`aux`). What chooses processes is taken where it means
all of them, for a container has no others; what chooses some, sorts or draws trees is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# By ps's names of them: the heading, and the value's name in `runtime.processes`.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "pid": ("PID", "pid"), "tgid": ("TGID", "pid"), "ppid": ("PPID", "ppid"),
    "pgid": ("PGID", "pgid"), "pgrp": ("PGRP", "pgid"), "sid": ("SID", "sid"), "sess": ("SESS", "sid"),
    "uid": ("UID", "uid"), "euid": ("EUID", "uid"), "user": ("USER", "uid"), "euser": ("EUSER", "uid"),
    "uname": ("USER", "uid"), "ruid": ("RUID", "ruid"), "ruser": ("RUSER", "ruid"),
    "gid": ("GID", "gid"), "egid": ("EGID", "gid"), "group": ("GROUP", "gid"), "egroup": ("EGROUP", "gid"),
    "c": ("C", "share"), "pcpu": ("%CPU", "pcpu"), "%cpu": ("%CPU", "pcpu"),
    "pmem": ("%MEM", "pmem"), "%mem": ("%MEM", "pmem"),
    "vsz": ("VSZ", "vsz"), "vsize": ("VSZ", "vsz"), "rss": ("RSS", "rss"), "rssize": ("RSS", "rss"),
    "tty": ("TT", "tty"), "tt": ("TT", "tty"), "tname": ("TTY", "tty"),
    "s": ("S", "s"), "state": ("S", "s"), "stat": ("STAT", "stat"),
    "start": ("STARTED", "start"), "stime": ("STIME", "start"), "start_time": ("START", "start"),
    "etime": ("ELAPSED", "etime"), "etimes": ("ELAPSED", "etimes"),
    "time": ("TIME", "time"), "cputime": ("TIME", "time"),
    "ni": ("NI", "ni"), "nice": ("NI", "ni"), "pri": ("PRI", "pri"), "nlwp": ("NLWP", "nlwp"),
    "thcount": ("THCNT", "nlwp"),
    "comm": ("COMMAND", "comm"), "ucmd": ("CMD", "comm"), "ucomm": ("COMMAND", "comm"),
    "args": ("COMMAND", "args"), "cmd": ("CMD", "args"), "command": ("COMMAND", "args"),
}  # fmt: skip
Columns = tuple[tuple[str, str], ...]

FULL: Columns = (
    ("UID", "uid"), ("PID", "pid"), ("PPID", "ppid"), ("C", "share"), ("STIME", "start"), ("TTY", "tty"),
    ("TIME", "time"), ("CMD", "args"),
)  # fmt: skip
_SHORT: Columns = (("PID", "pid"), ("TTY", "tty"), ("TIME", "time"), ("CMD", "comm"))
_LONG: Columns = (
    ("S", "s"), ("UID", "uid"), ("PID", "pid"), ("PPID", "ppid"), ("C", "share"), ("PRI", "opri"), ("NI", "ni"),
    ("TTY", "tty"), ("TIME", "time"), ("CMD", "comm"),
)  # fmt: skip
_BSD: Columns = (("PID", "pid"), ("TTY", "tty"), ("STAT", "stat"), ("TIME", "minutes"), ("COMMAND", "args"))
_BSD_USER: Columns = (
    ("USER", "uid"), ("PID", "pid"), ("%CPU", "pcpu"), ("%MEM", "pmem"), ("VSZ", "vsz"), ("RSS", "rss"),
    ("TTY", "tty"), ("STAT", "stat"), ("START", "start"), ("TIME", "minutes"), ("COMMAND", "args"),
)  # fmt: skip
_MOST_COLUMNS = 64
_REMEDY = "use -ef, aux, or -o with columns such as pid,user,rss,comm"


def columns(options: Sequence[str]) -> Columns:
    """Headings and values of what `ps OPTIONS` would show of all processes.

    Raises:
        InvalidInput: an option is not one of ps, or asks for what cannot be told from outside.
    """
    chosen: list[tuple[str, str]] = []
    letters: set[str] = set()
    words = list(options)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if name != "--format":
                raise _refused(word)
            chosen += _listed(value if equals else _next(words, name))
            continue
        dash = "-" if word.startswith("-") else ""
        flags = word.removeprefix("-")
        for index, flag in enumerate(flags):
            if flag == "o":
                chosen += _listed(flags[index + 1 :] or _next(words, f"{dash}o"))
                break
            if flag not in ("Aefjlw" if dash else "auxw"):
                if word == "-aux":  # as ps itself takes it
                    letters |= set("aux")
                    break
                raise _refused(f"{dash}{flag}" if flags else word)
            letters.add(dash + flag)
        if not flags:
            raise _refused(word)
    if chosen:
        if len(chosen) > _MOST_COLUMNS:
            raise InvalidInput(f"more than {_MOST_COLUMNS} columns: name fewer", field="option")
        return tuple(chosen)
    return _usual(letters)


def _usual(letters: set[str]) -> Columns:
    if "u" in letters:
        return _BSD_USER
    if letters & {"a", "x"}:
        return _BSD
    if not letters or "-f" in letters:
        return FULL
    return _LONG if "-l" in letters else _SHORT


def _listed(text: str) -> list[tuple[str, str]]:
    """The columns of `-o`: `pid,rss comm`; with a heading of one's own, `rss=MEMORY`, which takes all that follows."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest.strip(", "):
        rest = rest.lstrip(", ")
        end = min((at for at in (rest.find(","), rest.find(" ")) if at >= 0), default=len(rest))
        name, equals, heading = rest[:end].partition("=")
        if name not in COLUMNS:
            raise InvalidInput(
                f"there is no column {name[:40]!r} to be had from a guest's kernel; there are: {', '.join(COLUMNS)}",
                field="option",
            )
        if equals:
            heading, end = rest.partition("=")[2], len(rest)
        found.append((heading if equals else COLUMNS[name][0], COLUMNS[name][1]))
        rest = rest[end:]
    if not found:
        raise InvalidInput(f"-o names no column: {_REMEDY}", field="option")
    return found


def _next(words: list[str], option: str) -> str:
    if not words:
        raise InvalidInput(f"{option} names no column: {_REMEDY}", field="option")
    return words.pop(0)


def _refused(word: str) -> InvalidInput:
    return InvalidInput(f"the option {word[:40]!r} of ps cannot be had here: {_REMEDY}", field="option")
