"""`ps` and `inspect`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from runtime.cli import output
from runtime.client import ApiError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from runtime.cli.arguments import Parser
    from runtime.client import Client

COMMAND_WIDTH = 20
HEADERS = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")


def ps_arguments(parser: Parser) -> None:
    """`hyper ps`."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_format()


def ps(args: argparse.Namespace, client: Client) -> int:
    """List containers."""
    found = client.containers(everything=args.all)
    if args.quiet:
        for one in found:
            print(one["id"] if args.no_trunc else output.short_id(one["id"]))
    elif args.format == "json":
        output.print_json(found)
    else:
        rows = [_row(one, full=args.no_trunc) for one in found]
        width = None if args.no_trunc else output.terminal_width()
        print(output.table(HEADERS, rows, width=width, keep=("CONTAINER ID", "NAMES")))
    return 0


def _row(one: Mapping[str, Any], *, full: bool) -> list[str]:
    command = " ".join(one.get("args") or ())
    if not full and len(command) > COMMAND_WIDTH:
        command = command[: COMMAND_WIDTH - 1] + "…"
    return [
        one["id"] if full else output.short_id(one["id"]),
        one["image"],
        f'"{command}"',
        output.ago(one["created_at"]),
        status(one),
        ports((one.get("network") or {}).get("ports") or (one.get("spec") or {}).get("ports") or ()),
        one["name"],
    ]


def status(one: Mapping[str, Any]) -> str:
    """The daemon's own words, or the state where it has none."""
    return str(one.get("status") or one["state"])


def ports(published: Sequence[Mapping[str, Any]]) -> str:
    """`0.0.0.0:8080->80/tcp`, as Docker writes them."""
    return ", ".join(
        f"{port['host_ip']}:{port['host_port']}->{port['container_port']}/{port['protocol']}" for port in published
    )


def inspect_arguments(parser: Parser) -> None:
    """`hyper inspect`."""
    parser.add_refs("NAME")
    parser.add_argument("--type", choices=("container", "image"), help="look for this kind only")
    parser.add_argument("--format", choices=("json",), default="json", help="always json")


def inspect(args: argparse.Namespace, client: Client) -> int:
    """Print containers or images, whole, as one JSON list."""
    found = []
    code = 0
    for ref in args.refs:
        try:
            found.append(_find(ref, args.type, client))
        except ApiError as err:
            print(f"hyper: {output.clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
    output.print_json(found)
    return code


def _find(ref: str, kind: str | None, client: Client) -> Any:
    if kind == "image":
        return client.image(ref)
    try:
        return client.container(ref)
    except ApiError as err:
        if err.status != 404 or kind == "container":
            raise
    try:
        return client.image(ref)
    except ApiError as err:
        if err.status not in (400, 404):
            raise
        raise ApiError(
            404, "not_found", f"there is no container and no image {ref}; see: hyper ps -a, hyper images"
        ) from err
