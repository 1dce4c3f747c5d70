"""The completion of `hyper` as bash runs it: the script that is printed, a line that is typed, the words offered."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cli import completion, main
from tests.contract.fake_hyperd import Daemon, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
ID = "3f" * 32
CONTAINER: dict[str, Any] = {
    "id": ID, "name": "web", "image": "nginx", "args": ["nginx"], "state": "exited", "status": "Exited (0)",
    "health": "none", "created_at": 1.0, "labels": {}, "network": None,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "digest": "sha256:" + "ab" * 32, "references": ["docker.io/library/nginx:1.27", "docker.io/library/redis:7"],
    "created_at": None, "size_bytes": 1,
}  # fmt: skip
VOLUME: dict[str, Any] = {"name": "data", "size_bytes": 1, "used_bytes": 1, "created_at": 1.0, "containers": []}
# Prints what is offered for each line of stdin, whose last word is the one that is being typed.
DRIVER = """
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
eval "$SCRIPT"
while IFS= read -r COMP_LINE; do
    eval "COMP_WORDS=($(sed -e "s/ \\$/ ''/" -e 's/[=:]/ & /g' <<<"$COMP_LINE"))"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_POINT=${#COMP_LINE} COMPREPLY=()
    _hyper 2>&1
    (IFS=$'\t' && echo "${COMPREPLY[*]}")
done
"""


@pytest.fixture(scope="module")
def script() -> str:
    return completion.script()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "hyperd.sock") as daemon:
        daemon.answers["GET /v1/containers?all=true"] = [CONTAINER]
        daemon.answers["GET /v1/images"] = [IMAGE]
        daemon.answers["GET /v1/volumes"] = [VOLUME]
        daemon.answers["GET /v1/snapshots"] = [{**VOLUME, "name": "data-1", "volume": "data"}]
        yield daemon


@pytest.fixture
def offered(tmp_path: Path, script: str) -> Callable[..., list[list[str]]]:
    """What is offered at the end of each of the lines; a directory `site` and a file `env` are there."""
    program = tmp_path / "bin/hyper"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m runtime.cli.program "$@"\n')
    program.chmod(0o755)
    place = tmp_path / "here"
    (place / "site").mkdir(parents=True)
    (place / "env").touch()
    (place / "site" / "my archive.tar").touch()
    environment = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SCRIPT": script,
        "HYPER_STATE_DIR": str(tmp_path), "HYPER_CONFIG": "/none",
    }  # fmt: skip

    def drive(*lines: str) -> list[list[str]]:
        done = subprocess.run(
            ["bash", "--norc", "-c", DRIVER], input="".join(f"{line}\n" for line in lines), capture_output=True,
            text=True, timeout=60, env=environment, cwd=place, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return [line.split("\t") if line else [] for line in done.stdout.splitlines()]

    return drive


def test_commands_actions_and_options(offered: Any) -> None:
    top, begun, options, bare = offered("hyper ", "hyper sna", "hyper ps --no", "hyper run --sh")
    assert {*main.COMMANDS, "-H", "--help"} <= set(top)
    assert begun == ["snapshot"]
    assert (options, bare) == (["--no-trunc"], ["--shm-size"])
    groups = {"container": "ls", "image": "prune", "volume": "create", "snapshot": "create", "system": "df"}
    for (group, action), found in zip(groups.items(), offered(*(f"hyper {one} " for one in groups)), strict=True):
        assert {action, "--help"} <= set(found), group
    actions = offered("hyper volume p", "hyper container --", "hyper volume create --s", "hyper container ls --no")
    assert actions == [["prune"], ["--help"], ["--size", "--snapshot"], ["--no-trunc"]]


def test_every_command_offers_its_own_options(offered: Any) -> None:
    parsers = dict(completion.parsers())
    for (name, parser), found in zip(parsers.items(), offered(*(f"hyper {name} -" for name in parsers)), strict=True):
        own = {one for one in parser._option_string_actions if "=" not in one}
        assert own == set(found), name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hyper attach ", ["web"]),
        ("hyper container attach ", ["web"]),
        ("hyper diff ", ["web"]),
        ("hyper commit ", ["web"]),
        ("hyper exec -it -e A=1 ", ["web"]),
        ("hyper -H unix://{socket} rm -f job ", ["web"]),
        ("hyper stop 3f", [ID[:12]]),
        ("hyper commit web ", ["nginx:1.27", "redis:7"]),
        ("hyper run --rm --name=x -p 80:80 ", ["nginx:1.27", "redis:7"]),
        ("hyper run nginx:", ["1.27"]),
        ("hyper image rm redis:7 ngi", ["nginx:1.27"]),
        ("hyper update web --image re", ["redis:7"]),
        ("hyper inspect ", ["web", "nginx:1.27", "redis:7", "data"]),
        ("hyper volume rm ", ["data"]),
        ("hyper snapshot inspect ", ["data-1"]),
        ("hyper snapshot create --volume ", ["data"]),
        ("hyper volume create --snapshot=", ["data-1"]),
        ("hyper cp ", ["web:", "env", "site"]),
        ("hyper run -v ", ["data:", "env", "site"]),
    ],
)
def test_names_are_those_that_hyperd_has(
    offered: Any, daemon: Daemon, tmp_path: Path, line: str, words: list[str]
) -> None:
    assert offered(line.format(socket=tmp_path / "hyperd.sock")) == [words]
    assert daemon.asked


def test_values_of_options_and_files(offered: Any) -> None:
    sizes = ["S1", "S2", "S3", "S4", "M1", "M2", "M3", "L1", "L2", "L3"]
    lines = {
        "hyper run --size ": sizes,
        "hyper create --size=M": ["M1", "M2", "M3"],
        "hyper container run --size ": sizes,
        "hyper run --pull ": ["missing", "always", "never"],
        "hyper run --restart un": ["unless-stopped"],
        "hyper stats --sort m": ["mem"],
        "hyper completion ": ["bash", "zsh"],
        "hyper run --env-file ": ["env", "site"],
        "hyper load -i site/my": ["site/my archive.tar"],
        "hyper load --input=no": [],
        "hyper build -t x ": ["env", "site"],
        "hyper run nginx -": [],
        "hyper run nginx ": ["env", "site"],
        "hyper rename web ": [],
        "hyper attach web ": [],
        "hyper run --name ": [],
        "hyper nosuch ": [],
    }
    assert dict(zip(lines, offered(*lines), strict=True)) == lines
