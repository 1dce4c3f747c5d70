"""The images that a Containerfile is built from."""

from __future__ import annotations

import contextlib
import re
import shlex
from typing import TYPE_CHECKING

from runtime.errors import InvalidInput
from runtime.images import reference

if TYPE_CHECKING:
    from collections.abc import Mapping

_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)", re.IGNORECASE | re.MULTILINE)
_COPIED_FROM = re.compile(r"--from=(\S+)", re.IGNORECASE)
_STAGE = re.compile(r"^\s*FROM\s+.*\sAS\s+(\S+)\s*$", re.IGNORECASE | re.MULTILINE)
_ARG = re.compile(r"^\s*ARG\s+(.+)$", re.IGNORECASE | re.MULTILINE)
# The innermost: what is within it has been substituted before.
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:[-+])([^${}]*))?\})")
_DOLLAR = "\0"  # of a value, where it begins no variable; no name has either


def bases(text: str, args: Mapping[str, str]) -> list[str]:
    """The images that a Containerfile names: not its own stages, and not what has a variable that is not known.

    Known are the ARGs before the first FROM, with what the caller gives for them in `args`; in FROM alone, as there.
    """
    stages = {name.lower() for name in _STAGE.findall(text)}
    known = _heading(text, args)
    named = {*(_substituted(name, known) for name in _FROM.findall(text)), *_COPIED_FROM.findall(text)}
    found = []
    for name in sorted(named - {"scratch"}):
        with contextlib.suppress(InvalidInput):  # a wrong name is for buildah to tell of, with its line
            if "$" not in name and name.lower() not in stages and not name.isdecimal():
                reference.parse(name)
                found.append(name)
    return found


def _heading(text: str, args: Mapping[str, str]) -> dict[str, str]:
    """The ARGs before the first FROM, with their values; one that has none is empty."""
    first = _FROM.search(text)
    known: dict[str, str] = {}
    for line in _ARG.findall(text[: first.start() if first else 0].replace("\\\n", " ")):
        with contextlib.suppress(ValueError):  # a quotation that does not end is for buildah to tell of
            for word in shlex.split(line):
                name, _, default = word.partition("=")
                value = args[name] if name in args else _substituted(default, known)
                known[name] = value.replace("$", _DOLLAR)[: reference.MAX_REFERENCE_LENGTH + 1]
    return known


def _substituted(text: str, known: Mapping[str, str]) -> str:
    """The text with `$X`, `${X}`, `${X:-default}` and `${X:+other}`; an unknown one stays, unless it has a default."""

    def value(match: re.Match[str]) -> str:
        name, how, other = match[1] or match[2], match[3], match[4]
        if how == ":-":
            return known.get(name) or other
        if how == ":+":
            return other if known.get(name) else ""
        return known.get(name, match[0])

    while (after := _VARIABLE.sub(value, text)) != text:
        text = after
    return text
