"""The part of requirements.lock that the programs need when they run: `python3 scripts/stack/runtime_lock.py`.

Names given as arguments are taken instead, with what they want. Images and installations take this; the rest is for
development. Needs the standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "hyperpulse"


def normal(name: str) -> str:
    """As in PEP 503."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \[;]", name)[0]).lower()


def subset(lock: str, direct: list[str]) -> str:
    """The entries of the lock for `direct` and all that they want, as its "via" comments tell.

    Raises:
        KeyError: the lock has no entry for one of `direct`.
    """
    entries = {normal(entry): entry for entry in re.split(r"\n(?=[a-zA-Z0-9])", lock) if "==" in entry.split("\n")[0]}
    wants: dict[str, set[str]] = {name: set() for name in entries}
    for name, entry in entries.items():
        for wanting in re.findall(r"^    #(?: via|  ) (\S+)$", entry, re.MULTILINE):
            wants.setdefault(normal(wanting), set()).add(name)
    todo, needed = [normal(name) for name in direct], set()
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += wants[name]
    return "\n".join(entries[name].rstrip() for name in sorted(needed)) + "\n"


def main() -> int:
    """Print it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sys.stdout.write(subset((ROOT / "requirements.lock").read_text(), sys.argv[1:] or project["dependencies"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
