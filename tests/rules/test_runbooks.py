"""Whoever is woken at night can type what a runbook says: every command is one that there is, with its options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dashboards import generate
from runtime.cli import main
from runtime.client import ClientError

ROOT = Path(__file__).parents[2]
RUNBOOKS = {path.stem: path.read_text() for path in sorted((ROOT / "docs/runbooks").glob("Hyper*.md"))}
SERVICES = {"prometheus", "prometheus-alertmanager"} | {
    path.stem for path in (ROOT / "scripts/systemd").glob("*.service")
}


def code(text: str) -> list[str]:
    """Everything that stands as code in a page: lines of blocks, without their comments, and pieces of sentences."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    joined = [block.replace("\\\n", " ") for block in blocks]
    lines = [re.sub(r"\s#.*$", "", line) for block in joined for line in block.splitlines()]
    prose = re.sub(r"^ *```\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*lines, *(piece.replace("\n", " ") for piece in re.findall(r"`([^`]+)`", prose))]


def commands(text: str) -> list[list[str]]:
    """Every call of `hyper` in a page, as the shell would split it; those within `$(…)` too."""
    found = []
    for line in code(text):
        for call in re.findall(r"(?:^|\$\(|[;|&]\s*)\s*hyper (?=[a-z])((?:\$\([^)]*\)|'[^']*'|[^;|&)])*)", line):
            found += [shlex.split(re.sub(r"\$\([^)]*\)", "NAME", call))]
        found += [shlex.split(call) for call in re.findall(r"\$\(hyper ([^)]*)\)", line)]
    return found


def parse(words: list[str]) -> None:
    """Have the parser of `hyper` read it; nothing is run.

    Raises:
        ClientError: there is no such command or option, or something is missing.
    """
    name, *rest = words
    if name in main.GROUPS and rest:
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    if name in main.GROUPS:
        return
    _, parser = main.command(name)
    if rest or " " in name:  # a command that is only spoken of has no arguments
        parser.parse_args(rest)


@pytest.mark.parametrize("name", RUNBOOKS)
def test_the_cli_takes_every_command(name: str) -> None:
    for words in commands(RUNBOOKS[name]):
        try:
            parse(words)
        except ClientError as err:
            pytest.fail(f"hyper {shlex.join(words)}: {err}")


def test_the_reader_of_runbooks_finds_commands_and_the_parser_refuses_what_is_none() -> None:
    block = "```\nhyper start $(hyper ps -aq)  # hyper nothing\nfree; hyper logs -n 5 A | tail\n```\n"
    text = f"Try `hyper ps -a`; see\n{block}"
    assert commands(text) == [["start", "NAME"], ["ps", "-aq"], ["logs", "-n", "5", "A"], ["ps", "-a"]]
    assert sum(len(commands(text)) for text in RUNBOOKS.values()) > 150
    for wrong in (["stop", "--sometimes", "A"], ["remediation", "halt"], ["mend", "A"], ["logs", "-n", "x", "A"]):
        with pytest.raises(ClientError):
            parse(wrong)


def test_every_page_has_a_command_of_ours_and_services_that_there_are() -> None:
    for name, text in RUNBOOKS.items():
        assert commands(text), f"{name} does not say what to ask hyper"
        for line in code(text):
            units = re.findall(r"journalctl .*-u ([\w-]+)", line)
            units += re.findall(r"systemctl [a-z]+ ([\w-]+)", line)
            assert set(units) <= SERVICES, f"{name}: {line}"


def test_prometheus_can_read_what_it_is_to_be_asked(tmp_path: Path) -> None:
    asked = [
        (name, expr)
        for name, text in RUNBOOKS.items()
        for line in code(text)
        for expr in re.findall(r"promtool query .*'([^']*)'", line)
    ]
    assert len(asked) > 30
    rules = [{"record": f"runbook:{number}", "expr": expr} for number, (_, expr) in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


def test_panels_that_a_page_names_are_on_a_dashboard() -> None:
    known = " / ".join(re.findall(r'"title": "([^"]*)"', "".join(generate.contents().values())))
    for name, text in RUNBOOKS.items():
        for panel in re.findall(r"(?<![*\w])\*([A-Z][^*\n]*)\*(?!\*)", text):
            assert panel in known, f"{name}: no dashboard has a panel {panel}"
