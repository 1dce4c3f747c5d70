"""`container prune`, `image prune`, `system prune`: remove what nothing needs, after a question."""

from __future__ import annotations

import sys

from runtime.cli import output
from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client


def container_prune_arguments(parser: Parser) -> None:
    """`hyper container prune`."""
    add_force(parser)


def container_prune(args: argparse.Namespace, client: Client) -> int:
    """Remove containers that have ended."""
    confirm("all containers that have ended", force=args.force)
    done = client.call("POST", "/v1/system/prune", {"images": "none"})
    return _show(done)


def image_prune_arguments(parser: Parser) -> None:
    """`hyper image prune`."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that have a name, and all unused layers")
    add_force(parser)


def image_prune(args: argparse.Namespace, client: Client) -> int:
    """Remove images without a name, or all, that no container uses."""
    what = "all images without a container" if args.all else "all images without a name and a container"
    confirm(what, force=args.force)
    removed = client.call("POST", "/v1/images/prune", {"all": args.all})
    print_removed(removed)
    print(f"Total reclaimed space: {output.decimal_size(removed['freed_bytes'])}")
    return failed(removed)


def system_prune_arguments(parser: Parser) -> None:
    """`hyper system prune`."""
    parser.add_argument("-a", "--all", action="store_true", help="also images that have a name, and what builds keep")
    parser.add_argument("--volumes", action="store_true", help="also anonymous volumes that no container has")
    add_force(parser)


def system_prune(args: argparse.Namespace, client: Client) -> int:
    """Remove containers that have ended, images that nothing needs, and with `--volumes` anonymous volumes."""
    images = "all images without a container" if args.all else "all images without a name and a container"
    volumes = ", all anonymous volumes that no container has" if args.volumes else ""
    confirm(f"all containers that have ended{volumes}, and {images}", force=args.force)
    body = {"images": "all" if args.all else "dangling", "volumes": args.volumes}
    return _show(client.call("POST", "/v1/system/prune", body))


def add_force(parser: Parser) -> None:
    """`-f`."""
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")


def confirm(what: str, *, force: bool) -> None:
    """Ask on the terminal, or take the answer from stdin, as in `yes | hyper system prune`.

    Raises:
        ClientError: the answer was not yes, or there was none.
    """
    if force:
        return
    if sys.stdin.isatty():
        print(f"WARNING! This will remove {what}.", file=sys.stderr)
        print("Are you sure you want to continue? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        raise ClientError(f"nobody answers whether to remove {what}; give --force, which does not ask")
    if answer.strip().lower() not in ("y", "yes"):
        raise ClientError("nothing was removed, as the answer was not yes; give --force to be asked nothing")


def pruned(kinds: Mapping[str, list[str]], freed_bytes: int) -> None:
    """What was removed, by kind, and what that gave."""
    for title, names in kinds.items():
        if names:
            print(f"{title}:", *names, "", sep="\n")
    print(f"Total reclaimed space: {output.binary_size(freed_bytes)}")


def print_removed(removed: Mapping[str, Any]) -> None:
    """Names and images that went, as Docker tells of them."""
    for reference in removed["untagged"]:
        print(f"Untagged: {output.clean(reference)}")
    for digest in removed["deleted"]:
        print(f"Deleted: {digest}", flush=True)


def failed(done: Mapping[str, Any]) -> int:
    """Say what could not be removed; the exit code."""
    for text in done["failed"]:
        print(f"hyper: {output.clean(text)}", file=sys.stderr)
    return ClientError.exit_code if done["failed"] else 0


def _show(done: Mapping[str, Any]) -> int:
    images = [f"untagged: {output.clean(name)}" for name in done["images"]["untagged"]]
    images += [f"deleted: {digest}" for digest in done["images"]["deleted"]]
    kinds = {"Deleted Containers": done["containers"], "Deleted Volumes": done["volumes"], "Deleted Images": images}
    pruned(kinds, done["freed_bytes"])
    return failed(done)
