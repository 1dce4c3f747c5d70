"""Have `hyper` start without Python's `site`, which takes a tenth of what `hyper ps` takes, and is not needed.

Run by the interpreter of a virtual environment that the project is installed in: `.venv/bin/python -I
scripts/launcher.py`. The script that pip has made is written over; it would do as well, only later.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# What Linux has taken as the first line of a script since ever (execve(2)).
LONGEST_FIRST_LINE = 127
TEXT = '''\
{first_line}
"""`hyper` as scripts/launcher.py wrote it: without `site`, unless the project is no longer where it was."""

import sys

sys.path.append({place!r})
try:
    from runtime.cli.program import main
except ModuleNotFoundError:
    import site

    site.main()
    from runtime.cli.program import main
main()
'''


def main() -> int:
    """Write the script beside the interpreter, if it is not there yet; returns the exit code."""
    script = Path(sys.executable).with_name("hyper")
    project = importlib.util.find_spec("runtime")
    if project is None or project.origin is None or not script.is_file():
        print(f"launcher: the project is not installed for {sys.executable}: install it first", file=sys.stderr)
        return 1
    first_line = f"#!{sys.executable} -SP"
    if len(first_line) > LONGEST_FIRST_LINE or len(first_line.split()) != 2:
        return 0  # pip knows a way for such a path, which leaves no room for options
    text = TEXT.format(first_line=first_line, place=str(Path(project.origin).parent.parent))
    if script.read_text("utf-8") != text:
        staged = script.with_name(".hyper.new")
        staged.write_text(text, "utf-8")
        staged.chmod(0o755)
        staged.replace(script)
    return 0


if __name__ == "__main__":
    sys.exit(main())
