"""`docs/reference/docker.md` tells the truth about the commands and options that `hyper` has."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from runtime.cli import main, refused
from runtime.client import ClientError

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/docker.md"
WORDS = re.compile(r"`([^`]+)`")
KINDS = {"same", "different", "ours", "not offered"}


def rows(text: str) -> list[tuple[list[str], str, str]]:
    """The names in the first cell of each row, and the other two cells."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:3] == "| `"]
    return [(WORDS.findall(row[0]), row[1].strip("| "), row[2] if len(row) > 2 else "") for row in cells]


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, those of groups by both words."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name in main.COMMANDS:
        if name in main.GROUPS:
            found |= {f"{name} {action}": main.command(f"{name} {action}")[1] for action in main.GROUPS[name]}
            continue
        parser = main.command(name)[1]
        actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        found |= {f"{name} {action}": one for group in actions for action, one in group.choices.items()}
        if not actions:
            found[name] = parser
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All ways to write an option, but for help and for values that are a part of a name."""
    return {name for name in parser._option_string_actions if "=" not in name} - {"--help"} - helps(parser)


def helps(parser: argparse.ArgumentParser) -> set[str]:
    return {name for name, action in parser._option_string_actions.items() if isinstance(action, argparse._HelpAction)}


COMMANDS = commands()
_head, _, _rest = PAGE.read_text().partition("## Options")
COMMAND_ROWS = rows(_head)
SECTIONS = [
    (WORDS.findall(section.partition("\n")[0]), rows(section))
    for section in _rest.partition("## Output")[0].split("### ")[1:]
]


def told(command: str, *, offered: bool) -> dict[str, str]:
    """What the page says of a command's options: the reason by option."""
    return {
        name: why
        for titles, lines in SECTIONS
        for names, kind, why in lines
        for name in names
        if command in titles and (kind != "not offered") == offered
    }


def documented(command: str) -> str:
    """`ps` of `container ls`: where the options of a command that has another name stand."""
    group, _, action = command.partition(" ")
    aliases = {"list": f"{group} ls", "remove": f"{group} rm"}
    return main.GROUPS.get(group, {}).get(action) or aliases.get(action, command)


def test_every_row_is_of_a_kind_and_says_why() -> None:
    for _, lines in [([], COMMAND_ROWS), *SECTIONS]:
        for names, kind, why in lines:
            assert names
            assert kind in KINDS, names
            assert why or kind == "same", names


def test_commands_are_those_that_there_are() -> None:
    listed = [(name, kind) for names, kind, _ in COMMAND_ROWS for name in names]
    assert len(listed) == len(dict(listed)), "none stands twice"
    assert {name for name, kind in listed if kind != "not offered"} == set(COMMANDS)
    for name, kind in listed:
        if kind == "not offered":
            assert name not in main.COMMANDS
            assert name not in COMMANDS


def test_a_command_that_is_not_offered_is_refused_with_the_reason_that_the_page_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = {
        name: why.replace("`", "") for names, kind, why in COMMAND_ROWS for name in names if kind == "not offered"
    }
    assert reasons == refused.NO_COMMANDS
    for name, why in reasons.items():
        assert main.main([*name.split(), "--some", "thing"]) == 125
        assert capsys.readouterr().err == f"hyper: {name} of docker is not offered: {why}\n"
    for name in ("nonsense", "container nonsense", "volume nonsense"):
        assert main.main(name.split()) == 125
        group = "".join(f"{word} " for word in name.split()[:-1])
        assert capsys.readouterr().err == f"hyper: there is no command {name!r}; see: hyper {group}--help\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if not name.startswith("snapshot ")])
def test_options_are_those_that_there_are(command: str) -> None:
    own = documented(command)
    has = options(COMMANDS[command])
    ours = ("rebuild", "redeploy", "rollback", "quarantine", "completion", "image packages")
    if command in ours or command.startswith("remediation "):
        assert not told(command, offered=True), "ours stand in the reference of hyper"
        return
    assert set(told(own, offered=True)) == has
    assert not set(told(own, offered=False)) & has


@pytest.mark.parametrize("command", [name for name in COMMANDS if documented(name) == name])
def test_what_is_not_offered_is_refused_with_the_reason_that_the_page_gives(command: str) -> None:
    reasons = told(command, offered=False)
    assert reasons == refused.spellings(refused.COMMANDS.get(command, {}))
    words = command.split()
    run = words if len(words) == 2 and words[0] in main.GROUPS else words[:1]
    parser = main.command(" ".join(run))[1]
    for option, reason in reasons.items():
        with pytest.raises(ClientError, match=re.escape(f"{option} of docker is not offered: {reason}")):
            parser.parse_args([*words[len(run) :], option, "x"])


def test_every_section_is_of_a_command() -> None:
    for titles, lines in SECTIONS:
        assert set(titles) <= set(COMMANDS), titles
        assert lines, titles
    assert set(refused.COMMANDS) <= set(COMMANDS)
