"""`info` and `version`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.cli import output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from runtime.cli.arguments import Parser
    from runtime.client import Client


def info_arguments(parser: Parser) -> None:
    """`hyper info`."""
    parser.add_format()


def info(args: argparse.Namespace, client: Client) -> int:
    """Show the host as the daemon sees it."""
    return _show(client.info(), args.format)


def version_arguments(parser: Parser) -> None:
    """`hyper version`."""
    parser.add_format()


def version(args: argparse.Namespace, client: Client) -> int:
    """Show the versions of all parts."""
    return _show(client.version(), args.format)


def _show(answer: Any, form: str) -> int:
    if form == "json":
        output.print_json(answer)
    else:
        print("\n".join(lines(answer)))
    return 0


def lines(value: Any, indent: int = 0) -> Iterator[str]:
    """A JSON object as lines of `name: value`, nested by indentation."""
    for key, member in value.items():
        head = f"{' ' * indent}{output.clean(str(key).replace('_', ' '))}:"
        if isinstance(member, dict) and member:
            yield head
            yield from lines(member, indent + 2)
        elif isinstance(member, list) and any(isinstance(one, (dict, list)) for one in member):
            yield head
            for one in member:
                yield from lines(one if isinstance(one, dict) else {"-": one}, indent + 2)
        else:
            yield f"{head} {_plain(member)}"


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(output.clean(str(one)) for one in value)
    return output.clean(str(value))
