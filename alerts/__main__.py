"""`python -m alerts`: write the rules and routes, or show what can be set."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from alerts import generate
from alerts.errors import AlertsFault
from alerts.receivers import load
from alerts.thresholds import override


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m alerts", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the files; without it the settings are shown")
    parser.add_argument("--out", type=Path, default=generate.GENERATED, help="directory to write to")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set a threshold or a route")
    parser.add_argument("--receivers", type=Path, metavar="FILE", help="TOML file that says who is told")
    arguments = parser.parse_args()
    try:
        thresholds, routing = override(arguments.set)
        receivers = load(arguments.receivers) if arguments.receivers else None
        if not arguments.write:
            for name, value in {**asdict(thresholds), **asdict(routing)}.items():
                sys.stdout.write(f"{name}={value}\n")
            return 0
        for path in generate.write_all(arguments.out, thresholds, routing, receivers):
            sys.stdout.write(f"{path}\n")
    except AlertsFault as err:
        sys.stderr.write(f"python -m alerts: {err}\n")
        return err.exit_code
    except OSError as err:
        sys.stderr.write(f"python -m alerts: {err.filename}: {err.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
