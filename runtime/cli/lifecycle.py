"""`start`, `stop`, `kill`, `restart`, `pause`, `rm`, `wait` and such: one call for each container that is named."""

from __future__ import annotations

import os
import sys

from runtime.cli.arguments import cpus, option, seconds, signal_name, size
from runtime.cli.arguments import restart as restart_policy
from runtime.cli.output import clean
from runtime.client import ApiError, ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from runtime.cli.arguments import Parser
    from runtime.client import Client


def each(refs: list[str], act: Callable[[str], object]) -> int:
    """Act on each; print those that went well, and an error for each other. The exit code is the first error's.

    What gives False has said itself that there was nothing to do.
    """
    code = 0
    for ref in refs:
        try:
            done = act(ref)
        except ApiError as err:
            print(f"hyper: {clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
        else:
            if done is not False:
                print(ref, flush=True)
    return code


def start_arguments(parser: Parser) -> None:
    """`hyper start`."""
    parser.add_refs()
    parser.add_argument("-a", "--attach", action="store_true", help="show what it writes, and end with its exit code")
    parser.add_argument("-i", "--interactive", action="store_true", help="send our stdin to it (made with -i); with -a")
    from runtime.cli import terminal  # here: this command alone

    parser.add_argument(
        "--detach-keys", type=option("--detach-keys", terminal.detach_keys), default=terminal.DEFAULT_DETACH_KEYS,
        metavar="KEYS", help="with -a, of one with a terminal: these keys leave it to run (default: ctrl-p,ctrl-q)",
    )  # fmt: skip


def start(args: argparse.Namespace, client: Client) -> int:
    """Start containers; with `-a` stand for the one."""
    if not args.attach and not args.interactive:
        return each(args.refs, client.start)
    if len(args.refs) > 1:
        raise ClientError("-a and -i take one container, as its streams are ours; leave out the others")
    from runtime.cli import run  # here: few need it

    return run.start_attached(args.refs[0], client, interactive=args.interactive, detach_keys=args.detach_keys)


def stop_arguments(parser: Parser) -> None:
    """`hyper stop`."""
    parser.add_refs()
    _add_stopping(parser)


def stop(args: argparse.Namespace, client: Client) -> int:
    """Stop containers."""
    return each(args.refs, lambda ref: client.stop(ref, args.time, args.signal))


def restart_arguments(parser: Parser) -> None:
    """`hyper restart`."""
    parser.add_refs()
    _add_stopping(parser)


def restart(args: argparse.Namespace, client: Client) -> int:
    """Restart containers."""
    return each(args.refs, lambda ref: client.restart(ref, args.time, args.signal))


def pause_arguments(parser: Parser) -> None:
    """`hyper pause`."""
    parser.add_refs()


def pause(args: argparse.Namespace, client: Client) -> int:
    """Pause containers."""
    return each(args.refs, client.pause)


def unpause_arguments(parser: Parser) -> None:
    """`hyper unpause`."""
    parser.add_refs()


def unpause(args: argparse.Namespace, client: Client) -> int:
    """Let paused containers go on."""
    return each(args.refs, client.unpause)


def rename_arguments(parser: Parser) -> None:
    """`hyper rename`."""
    parser.add_refs(many=False)
    parser.add_argument("name", metavar="NEW-NAME")


def rename(args: argparse.Namespace, client: Client) -> int:
    """Rename a container."""
    client.rename(args.ref, args.name)
    return 0


def update_arguments(parser: Parser) -> None:
    """`hyper update`."""
    parser.add_refs()
    parser.add_argument(
        "-m", "--memory", type=option("--memory", size), help="such as 256m; of one that is stopped: for its next start"
    )
    parser.add_argument(
        "--cpus", type=option("--cpus", cpus), help="such as 1.5; of one that runs: at most what it was started with"
    )
    parser.add_argument(
        "--restart", type=option("--restart", restart_policy), help="no, on-failure[:N], always, unless-stopped"
    )
    from runtime.cli import change  # here: this command alone

    change.add_change(parser)


def update(args: argparse.Namespace, client: Client) -> int:
    """Change limits and restart policy, or the image."""
    from runtime.cli import change  # here: this command alone

    given = {"memory_bytes": args.memory, "cpus": args.cpus, "restart": args.restart}
    changes = {name: value for name, value in given.items() if value is not None}
    if change.is_wanted(args):
        if changes:
            raise ClientError("--image changes the image alone: change limits and policy by a command of their own")
        return change.update_image(args, client)
    if not changes:
        raise ClientError("nothing to update: give --image, --memory, --cpus or --restart")
    return each(args.refs, lambda ref: client.update(ref, **changes))


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
    parser.add_argument("-v", "--volumes", action="store_true", help="with the anonymous volumes they have")


def rm(args: argparse.Namespace, client: Client) -> int:
    """Remove containers; with `--force` one that is not there is told, and no failure."""

    def remove(ref: str) -> bool:
        try:
            client.remove(ref, force=args.force, volumes=args.volumes)
        except ApiError as err:
            if not args.force or err.status != 404:
                raise
            print(f"hyper: {clean(str(err))}", file=sys.stderr)
            return False
        return True

    return each(args.refs, remove)


def wait_arguments(parser: Parser) -> None:
    """`hyper wait`."""
    parser.add_refs()


def wait(args: argparse.Namespace, client: Client) -> int:
    """Wait for containers; prints one exit code a line."""
    code = 0
    for ref in args.refs:
        try:
            print(client.wait(ref)["exit_code"] or 0, flush=True)  # of one that never ran too, as Docker has it
        except ApiError as err:
            print(f"hyper: {clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
    return code


def actor() -> str:
    """Who we are, for the audit log."""
    import pwd  # here: few commands need it

    try:
        return f"user:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"user:{os.getuid()}"


def _add_stopping(parser: Parser) -> None:
    parser.add_argument(
        "-s", "--signal", type=option("--signal", signal_name), help="instead of the container's stop signal"
    )
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        type=option("--timeout", seconds),
        help="seconds from the stop signal to the end (default: 10; -1: a day)",
    )
