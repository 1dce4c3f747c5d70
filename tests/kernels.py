"""The guest kernels that are on this machine: what tests are run over, so that none needs one that is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.vm.kernel import OURS
from tests.host import KERNELS

if TYPE_CHECKING:
    from pathlib import Path


def present() -> list[Path]:
    """One distribution's kernel and one built by `make kernel`, the last by name of each; the latter may be missing."""
    found = sorted(KERNELS.glob("[!.]*/vmlinuz"))
    ours = [path for path in found if path.parent.name.endswith(OURS)]
    return [*[path for path in found if path not in ours][-1:], *ours[-1:]]


def name(path: Path) -> str:
    """How a test that is run with it is called."""
    return "ours" if path.parent.name.endswith(OURS) else "distribution"
