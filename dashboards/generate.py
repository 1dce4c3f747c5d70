"""Writes the dashboards; the committed ones are in `dashboards/generated`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dashboards.container import container_dashboard
from dashboards.fleet import fleet
from dashboards.host import host
from dashboards.images import images
from dashboards.remediation import remediation_dashboard
from dashboards.slo import slo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GENERATED: Final = Path(__file__).parent / "generated"

DASHBOARDS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "fleet": fleet,
    "host": host,
    "container": container_dashboard,
    "images": images,
    "remediation": remediation_dashboard,
    "slo": slo,
}
"""Every dashboard by the name of its file."""


def contents() -> dict[str, str]:
    """Text of every dashboard by its file's name."""
    return {
        f"{name}.json": json.dumps(make(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, make in DASHBOARDS.items()
    }


def write_all(directory: Path) -> list[Path]:
    """Write every dashboard into `directory`, which is made if need be, and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in contents().items():
        path = directory / name
        path.write_text(text)
        paths.append(path)
    return paths
