"""Every dependency has a line that says why it is there, is locked, and is declared where it is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = ("collector", "exporter", "runtime", "dashboards", "alerts")
MODULES = {"yaml": "pyyaml", "starlette": "fastapi", "h11": "uvicorn"}  # the last two are what these are made of


def normal(name: str) -> str:
    """As in PEP 503."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \[;]", name)[0]).lower()


def project() -> dict[str, set[str]]:
    """Direct dependencies: of the programs, and of development and build."""
    parsed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    table = parsed["project"]
    develop = [*table["optional-dependencies"]["dev"], *parsed["build-system"]["requires"]]
    return {"run": {normal(name) for name in table["dependencies"]}, "develop": {normal(name) for name in develop}}


def explained(heading: str) -> set[str]:
    """First cells of the table below a heading of the page."""
    text = (ROOT / "docs/explanation/dependencies.md").read_text()
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)
    assert all(len(why) > 15 for _, why in rows)
    return {name for name, _ in rows}


@pytest.mark.parametrize(
    ("kind", "heading"), [("run", "Python, at run time"), ("develop", "Python, to develop and build")]
)
def test_each_python_dependency_says_why(kind: str, heading: str) -> None:
    assert {normal(name) for name in explained(heading)} == project()[kind]


def test_each_debian_package_says_why() -> None:
    lines = (ROOT / "scripts/packages").read_text().splitlines()
    packages = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert packages == explained("Debian packages")
    assert all(len(line.split()) > 1 for line in lines if line and not line.startswith("#"))


def test_each_dependency_is_locked_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = {normal(name): body for name, body in re.findall(r"^(\S+)==(.*(?:\n    .*)*)", lock, re.MULTILINE)}
    wanted = project()
    assert wanted["run"] | wanted["develop"] <= set(locked)
    assert [name for name, body in locked.items() if "--hash=sha256:" not in body] == []


def test_what_the_programs_import_is_declared() -> None:
    ours = set(CODE) | set(sys.stdlib_module_names)
    imported: dict[str, str] = {}
    for path in (file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            imported |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    declared = project()["run"]
    undeclared = {n: at for n, at in imported.items() if n not in ours and normal(MODULES.get(n, n)) not in declared}
    assert undeclared == {}
    used = {normal(MODULES.get(name, name)) for name in imported}
    assert declared - used == set(), "declared and never imported"
