"""What `--help` says: of every option something, and examples that are right."""

from __future__ import annotations

import argparse
import shlex

import pytest

from runtime.cli import completion, examples, main


def test_every_option_has_a_help_text() -> None:
    silent = [
        f"{name} {action.option_strings[-1]}"
        for name, parser in completion.parsers()
        for action in parser._actions
        if action.option_strings and not action.help
    ]
    assert silent == []


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_examples_are_shown_and_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = main.command(name)[1].format_help()
    for what, line in examples.EXAMPLES[name]:
        assert f"  {line}\n      {what}" in shown
        program, command, *words = shlex.split(line.partition(" < ")[0])
        assert (program, command) == ("hyper", name)
        assert isinstance(main.command(name)[1].parse_args(words), argparse.Namespace)
    assert "examples:" in main.command(f"{'image' if name == 'build' else 'container'} {name}")[1].format_help()
    assert "examples:" not in main.command("ps")[1].format_help()


def test_disks_are_said_to_be_of_the_host_too() -> None:
    shown = main.command("run")[1].format_help()
    assert "./DIR" in shown
    assert "type=bind" in shown
