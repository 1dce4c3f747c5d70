"""`python -m dashboards --write`: write the dashboards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dashboards import generate


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="write the files")
    parser.add_argument("--out", type=Path, default=generate.GENERATED, help="directory to write to")
    arguments = parser.parse_args()
    try:
        for path in generate.write_all(arguments.out):
            sys.stdout.write(f"{path}\n")
    except OSError as err:
        sys.stderr.write(f"python -m dashboards: {err.filename}: {err.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
