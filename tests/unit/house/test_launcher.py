"""The script that starts `hyper`: without `site` where the project is found without it, and with it elsewhere."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from runtime.version import VERSION

ROOT = Path(__file__).parents[3]


class Environment:
    """A virtual environment with the project, and a script such as pip makes."""

    def __init__(self, place: Path, *, editable: bool) -> None:
        venv.create(place, symlinks=True, with_pip=False)
        self.python = place / "bin/python"
        self.script = place / "bin/hyper"
        [packages] = place.glob("lib/python3*/site-packages")
        self.project = place / "checkout" if editable else packages
        self.pth = packages / "_editable_impl_hyperpulse.pth"
        self.project.mkdir(exist_ok=True)
        (self.project / "runtime").symlink_to(ROOT / "runtime")
        if editable:
            self.pth.write_text(f"{self.project}\n")
        self.script.write_text(f"#!{self.python}\nfrom runtime.cli.program import main\nmain()\n")
        self.script.chmod(0o755)

    def write(self) -> subprocess.CompletedProcess[str]:
        return run(self.python, "-I", ROOT / "scripts/launcher.py")


def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(list(words), capture_output=True, text=True, env={**env, **more}, check=False)


def loads_site(script: Path) -> bool:
    done = run(script, "--version", PYTHONPROFILEIMPORTTIME="1")
    assert (done.returncode, done.stdout) == (0, f"hyper {VERSION}\n"), done.stderr
    return "site" in [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]


@pytest.mark.parametrize("editable", [False, True])
def test_it_starts_without_site(tmp_path: Path, *, editable: bool) -> None:
    made = Environment(tmp_path / "venv", editable=editable)
    assert loads_site(made.script)
    assert made.write().returncode == 0
    assert not loads_site(made.script)
    link = tmp_path / "hyper"
    link.symlink_to(made.script)
    assert not loads_site(link)
    before = made.script.stat()
    assert made.write().returncode == 0
    assert made.script.stat() == before
    assert before.st_mode & 0o777 == 0o755


def test_a_project_that_has_moved_is_found_by_site(tmp_path: Path) -> None:
    made = Environment(tmp_path / "venv", editable=True)
    assert made.write().returncode == 0
    made.project.rename(tmp_path / "elsewhere")
    made.pth.write_text(f"{tmp_path / 'elsewhere'}\n")
    assert loads_site(made.script)


def test_a_path_that_fits_no_first_line_is_left_to_pip(tmp_path: Path) -> None:
    made = Environment(tmp_path / "with a space", editable=False)
    before = made.script.read_text()
    assert made.write().returncode == 0
    assert made.script.read_text() == before


def test_without_the_project_it_says_what_to_do(tmp_path: Path) -> None:
    made = Environment(tmp_path / "venv", editable=True)
    made.pth.unlink()
    done = made.write()
    assert done.returncode == 1
    assert "install it first" in done.stderr


def test_what_installs_the_project_has_it_written() -> None:
    for script in ("setup", "install"):
        assert "/bin/python -I scripts/launcher.py" in (ROOT / "scripts" / script).read_text().replace('"', "")
