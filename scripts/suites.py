"""Fails if a suite of real components ran nothing or skipped something: `python -m scripts.suites build/junit.xml`.

A test that skips where QEMU or Prometheus is missing would let a broken machine pass. Silent when all is well, so that
the closing line of pytest stays the last one.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

DEMANDED = ("tests/contract", "tests/e2e", "tests/rules")
"""Folders whose tests all have to run."""


def verdict(report: Path, demanded: tuple[str, ...] = DEMANDED) -> list[str]:
    """What is wrong with the run that pytest's JUnit file tells of; empty if nothing is."""
    ran: Counter[str] = Counter()
    wrong = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 -- pytest has just written it
        folder = "/".join(case.get("classname", "").split(".")[:2])
        if folder not in demanded:
            continue
        skipped = case.find("skipped")
        if skipped is None:
            ran[folder] += 1
        elif skipped.get("type") != "pytest.xfail":
            wrong.append(f"{folder}: {case.get('name')} was skipped: {skipped.get('message')}")
    wrong += [f"{folder}: no test ran" for folder in demanded if not ran[folder]]
    return wrong


def main() -> int:
    """Command line."""
    if len(sys.argv) != 2:
        print("usage: python -m scripts.suites JUNIT_XML", file=sys.stderr)
        return 2
    wrong = verdict(Path(sys.argv[1]))
    for line in wrong:
        print(f"suites: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
