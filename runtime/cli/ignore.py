"""`.dockerignore`: what of a context is not sent, by Docker's rules.

A pattern is taken from the context's root and covers what lies below what it matches; `**` stands for any number of
directories; `!` takes back; the last pattern that fits decides.
"""

from __future__ import annotations

import re

from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE = ".dockerignore"


class Ignored:
    """The patterns of one file."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            takes_back = text.startswith("!")
            pattern = "/".join(part for part in text.removeprefix("!").strip().split("/") if part not in ("", "."))
            if pattern:
                self._rules.append((_expression(pattern), takes_back))
        self.has_exceptions = any(takes_back for _, takes_back in self._rules)

    @classmethod
    def of(cls, directory: Path) -> Ignored:
        """The file of a context, or nothing.

        Raises:
            ClientError: it cannot be read.
        """
        try:
            return cls((directory / FILE).read_text(encoding="utf-8-sig").splitlines())
        except FileNotFoundError:
            return cls([])
        except (OSError, ValueError) as err:
            raise ClientError(f"{directory / FILE} cannot be read: {err}") from err

    def covers(self, name: str) -> bool:
        """Whether a name, with slashes and taken from the root, is left out."""
        parts = name.split("/")
        names = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        left_out = False
        for expression, takes_back in self._rules:
            if left_out == takes_back and any(expression.fullmatch(one) for one in names):
                left_out = not takes_back
        return left_out


def _expression(pattern: str) -> re.Pattern[str]:
    """As Go's filepath.Match has it, and `**`.

    Raises:
        ClientError: a bracket is not closed.
    """
    found, at = "", 0
    while at < len(pattern):
        character = pattern[at]
        if pattern.startswith("**/", at):
            found, at = f"{found}(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            found, at = f"{found}.*", at + 2
        elif character == "*":
            found, at = f"{found}[^/]*", at + 1
        elif character == "?":
            found, at = f"{found}[^/]", at + 1
        elif character == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                raise ClientError(f"{FILE}: {pattern!r}: the bracket is not closed")
            inside = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found, at = f"{found}[{inside}]", end + 1
        elif character == "\\" and at + 1 < len(pattern):
            found, at = found + re.escape(pattern[at + 1]), at + 2
        else:
            found, at = found + re.escape(character), at + 1
    try:
        return re.compile(found, re.DOTALL)
    except re.error as err:
        raise ClientError(f"{FILE}: {pattern!r}: {err}") from err
