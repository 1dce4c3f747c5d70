"""`create` and `run`: an unknown image is pulled first; in the foreground we stand for the container.

In the foreground its output is ours, signals are passed on, and its exit code is ours. `--rm` is then done by us
after the last output, so that none is lost; with `-d` it is the daemon's.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from runtime.cli import arguments, streams
from runtime.cli.images import fetch
from runtime.cli.output import clean
from runtime.client import ApiError, ClientError

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from runtime.client import Client

INTERRUPTS_BEFORE_LEAVING = 3


def create_arguments(parser: arguments.Parser) -> None:
    """`hyper create`."""
    parser.add_argument("--name", help="a name for it")
    streams.add_environment(parser)
    parser.add_argument(
        "-p", "--publish", action="append", default=[], type=arguments.option("--publish", arguments.port),
        metavar="[IP:][HOST-PORT:]PORT[/PROTOCOL]", help="publish a port on the host",
    )  # fmt: skip
    parser.add_argument("-P", "--publish-all", action="store_true", help="publish all ports that the image exposes")
    parser.add_argument(
        "-l",
        "--label",
        action="append",
        default=[],
        type=arguments.option("--label", arguments.label),
        help="NAME=VALUE",
    )
    parser.add_argument("-m", "--memory", type=arguments.option("--memory", arguments.size), help="such as 256m")
    parser.add_argument("--cpus", type=arguments.option("--cpus", arguments.cpus), help="such as 1.5")
    parser.add_argument("-w", "--workdir", help="directory to start in")
    parser.add_argument("-u", "--user", help="NAME or UID, and :GROUP or :GID")
    parser.add_argument("--hostname", help="its host name (default: its id)")
    parser.add_argument("--entrypoint", help="program to run instead of the image's")
    parser.add_argument("--stop-signal", type=arguments.option("--stop-signal", arguments.signal_name))
    parser.add_argument("-i", "--interactive", action="store_true", help="keep its stdin open, and send ours to it")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("--rm", action="store_true", help="remove it when it stops")
    parser.add_argument("--pull", choices=("missing", "always", "never"), default="missing", help="default: missing")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress of a pull")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("args", metavar="ARG", nargs="...", help="instead of the image's command")


def create(args: argparse.Namespace, client: Client) -> int:
    """Create a container and print its id."""
    print(_create(args, client, auto_remove=args.rm)["id"])
    return 0


def run_arguments(parser: arguments.Parser) -> None:
    """`hyper run`."""
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it; print its id")
    create_arguments(parser)


def run(args: argparse.Namespace, client: Client) -> int:
    """Create and start a container."""
    ref = _create(args, client, auto_remove=args.rm and args.detach)["id"]
    try:
        client.start(ref)
    except ApiError:
        # Docker leaves a container that never ran; nobody asked for one.
        _remove(client, ref)
        raise
    if args.detach:
        print(ref)
        return 0
    try:
        return _attend(args, client, ref)
    finally:
        if args.rm and not _runs(client, ref):
            _remove(client, ref)


def _create(args: argparse.Namespace, client: Client, *, auto_remove: bool) -> dict[str, Any]:
    if args.pull == "always":
        fetch(client, args.image, quiet=args.quiet)
    spec = {
        "image": args.image,
        "name": args.name,
        "args": args.args or None,
        "entrypoint": None if args.entrypoint is None else [args.entrypoint] if args.entrypoint else [],
        "env": streams.environment(args),
        "cwd": args.workdir,
        "user": args.user,
        "tty": args.tty,
        "stdin": args.interactive,
        "labels": dict(args.label),
        "hostname": args.hostname,
        "ports": args.publish,
        "memory_bytes": args.memory,
        "cpus": args.cpus,
        "auto_remove": auto_remove,
        "stop_signal": args.stop_signal,
    }
    try:
        made = client.create(_publish_all(args, client, spec))
    except ApiError as err:
        if err.code != "image_unknown" or args.pull != "missing":
            raise
        print(f"Unable to find image {clean(args.image)!r} locally", file=sys.stderr)
        fetch(client, args.image, quiet=args.quiet)
        made = client.create(_publish_all(args, client, spec))
    for warning in made.get("warnings") or ():
        print(f"WARNING: {clean(warning)}", file=sys.stderr)
    return dict(made)


def _publish_all(args: argparse.Namespace, client: Client, spec: dict[str, Any]) -> dict[str, Any]:
    """With `-P`, add every port that the image exposes and `-p` does not name."""
    if not args.publish_all:
        return spec
    named = {(port["container_port"], port["protocol"]) for port in args.publish}
    exposed = [arguments.port(text) for text in client.image(args.image)["config"]["ExposedPorts"]]
    return {
        **spec,
        "ports": args.publish + [port for port in exposed if (port["container_port"], port["protocol"]) not in named],
    }


def _attend(args: argparse.Namespace, client: Client, ref: str) -> int:
    """Stand for a running container until it ends."""
    interrupts = 0

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        nonlocal interrupts
        interrupts += 1
        if interrupts >= INTERRUPTS_BEFORE_LEAVING:
            print(f"hyper: leaving it to run; stop it with: hyper stop {ref[:12]}", file=sys.stderr)
            raise KeyboardInterrupt
        # In a thread: the main one is in the middle of reading, perhaps holding a lock.
        threading.Thread(target=_signal, args=(client, ref, number), daemon=True).start()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    writer = streams.Writer()
    try:
        with streams.raw_terminal(enabled=args.tty and args.interactive):
            if args.interactive:
                streams.send_stdin(lambda data: client.input(ref, data))
            writer.copy(client.logs(ref, follow=True))
            ended = client.wait(ref)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended.get("error"):
        print(f"hyper: {clean(str(ended['error']))}", file=sys.stderr)
    code = ended.get("exit_code")
    if code is None:
        code = writer.exit_code
    return 125 if code is None else int(code)


def _signal(client: Client, ref: str, number: int) -> None:
    try:
        client.kill(ref, signal.Signals(number).name.removeprefix("SIG"))
    except ApiError as err:
        if err.status not in (404, 409):  # it ends just now
            print(f"hyper: the signal was not passed on: {clean(str(err))}", file=sys.stderr)
    except ClientError as err:
        print(f"hyper: the signal was not passed on: {err}", file=sys.stderr)


def _runs(client: Client, ref: str) -> bool:
    """Whether it still runs: we were told to leave it."""
    try:
        return client.container(ref)["state"] in ("starting", "running", "paused", "stopping")
    except ClientError:
        return False


def _remove(client: Client, ref: str) -> None:
    try:
        client.remove(ref, force=True)
    except ApiError as err:
        if err.status != 404:
            print(f"hyper: it could not be removed: {clean(str(err))}", file=sys.stderr)
