"""Versions of Debian's packages in their order: deb-version(7), as `dpkg --compare-versions` has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Key: TypeAlias = tuple[Any, ...]

MAX_CHARS: Final = 256
_VERSION = re.compile(r"(?:([0-9]+):)?([0-9A-Za-z.+:~-]+)")
_PART = re.compile(r"([^0-9]*)([0-9]*)")


def is_version(text: str) -> bool:
    """Whether it has the form of one."""
    return len(text) <= MAX_CHARS and _VERSION.fullmatch(text) is not None


def key(version: str) -> Key:
    """What versions are compared by.

    Raises:
        ValueError: it is none.
    """
    match = _VERSION.fullmatch(version)
    if match is None or len(version) > MAX_CHARS:
        raise ValueError(f"{version[:MAX_CHARS]!r} is no version of a Debian package")
    upstream, dash, revision = match[2].rpartition("-")
    return int(match[1] or 0), _parts(upstream if dash else revision), _parts(revision if dash else "")


def _parts(text: str) -> tuple[object, ...]:
    """Letters and numbers in turn; what is not there is 0, and each ends with letters that are none."""
    return tuple(one for word, number in _PART.findall(text or "0") for one in (_letters(word), int(number or 0)))


def _letters(word: str) -> tuple[int, ...]:
    """A tilde sorts before the end, the end before letters, and letters before all else."""
    return (*(-1 if one == "~" else ord(one) if one.isalpha() else ord(one) + 256 for one in word), 0)
