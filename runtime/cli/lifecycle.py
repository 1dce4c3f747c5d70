"""`start`, `stop`, `kill`, `restart`, `redeploy`, `rm`, `wait`: one call for each container that is named."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from runtime.cli.arguments import option, seconds, signal_name
from runtime.cli.output import clean
from runtime.client import ApiError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from runtime.cli.arguments import Parser
    from runtime.client import Client


def each(refs: list[str], act: Callable[[str], object]) -> int:
    """Act on each; print those that went well, and an error for each other. The exit code is the first error's."""
    code = 0
    for ref in refs:
        try:
            act(ref)
        except ApiError as err:
            print(f"hyper: {clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
        else:
            print(ref, flush=True)
    return code


def start_arguments(parser: Parser) -> None:
    """`hyper start`."""
    parser.add_refs()


def start(args: argparse.Namespace, client: Client) -> int:
    """Start containers."""
    return each(args.refs, client.start)


def stop_arguments(parser: Parser) -> None:
    """`hyper stop`."""
    parser.add_refs()
    _add_timeout(parser)


def stop(args: argparse.Namespace, client: Client) -> int:
    """Stop containers."""
    return each(args.refs, lambda ref: client.stop(ref, args.time))


def restart_arguments(parser: Parser) -> None:
    """`hyper restart`."""
    parser.add_refs()
    _add_timeout(parser)


def restart(args: argparse.Namespace, client: Client) -> int:
    """Restart containers."""
    return each(args.refs, lambda ref: client.restart(ref, args.time))


def kill_arguments(parser: Parser) -> None:
    """`hyper kill`."""
    parser.add_refs()
    parser.add_argument("-s", "--signal", default="KILL", type=option("--signal", signal_name), help="default: KILL")


def kill(args: argparse.Namespace, client: Client) -> int:
    """Signal containers."""
    return each(args.refs, lambda ref: client.kill(ref, args.signal))


def redeploy_arguments(parser: Parser) -> None:
    """`hyper redeploy`."""
    parser.add_refs()
    parser.add_argument("--reason", default="asked for on the command line", help="goes into the audit log")


def redeploy(args: argparse.Namespace, client: Client) -> int:
    """Redeploy containers."""
    return each(args.refs, lambda ref: client.redeploy(ref, actor(), args.reason))


def rm_arguments(parser: Parser) -> None:
    """`hyper rm`."""
    parser.add_refs()
    parser.add_argument("-f", "--force", action="store_true", help="also those that run")


def rm(args: argparse.Namespace, client: Client) -> int:
    """Remove containers."""
    return each(args.refs, lambda ref: client.remove(ref, force=args.force))


def wait_arguments(parser: Parser) -> None:
    """`hyper wait`."""
    parser.add_refs()


def wait(args: argparse.Namespace, client: Client) -> int:
    """Wait for containers; prints one exit code a line."""
    for ref in args.refs:
        print(client.wait(ref)["exit_code"], flush=True)
    return 0


def actor() -> str:
    """Who we are, for the audit log."""
    import pwd  # here: few commands need it

    try:
        return f"user:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"user:{os.getuid()}"


def _add_timeout(parser: Parser) -> None:
    parser.add_argument(
        "-t", "--time", type=option("--time", seconds), help="seconds from the stop signal to the end (default: 10)"
    )
