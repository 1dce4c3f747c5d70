"""Writes the dashboards; the committed ones are in `dashboards/generated`."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.fleet import fleet

GENERATED = Path(__file__).parent / "generated"


def contents() -> dict[str, str]:
    """Text of every dashboard by its file's name."""
    return {"fleet.json": json.dumps(fleet(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"}


def write_all(directory: Path) -> list[Path]:
    """Write every dashboard into `directory`, which is made if need be, and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in contents().items():
        path = directory / name
        path.write_text(text)
        paths.append(path)
    return paths
