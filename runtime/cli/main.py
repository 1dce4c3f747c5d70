"""Entry point: finds the subcommand, imports its module alone, turns every error into one line and an exit code.

Exit codes are Docker's: 125 an error of ours or of the daemon, 126 the program is not executable, 127 it is not found,
otherwise the container's own; 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib
import io
import os
import sys

from runtime.cli import arguments
from runtime.cli.output import clean
from runtime.client import Client, ClientError, socket_path
from runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_INTERRUPTED = 130
EXIT_DEFECT = 125


class Command:
    """A subcommand: `MODULE.NAME_arguments(parser)` declares its options, `MODULE.NAME(args, client)` runs it."""

    def __init__(self, module: str, help: str) -> None:  # noqa: A002 -- argparse's word
        self.module = module
        self.help = help


COMMANDS = {
    "run": Command("run", "Create a container, start it, and show what it writes"),
    "create": Command("run", "Create a container without starting it"),
    "start": Command("lifecycle", "Start containers"),
    "ps": Command("containers", "List containers"),
    "attach": Command("attach", "Stand for a running container: its output, our keys"),
    "logs": Command("streams", "Show what a container wrote"),
    "exec": Command("streams", "Run a command in a running container"),
    "stop": Command("lifecycle", "Stop containers"),
    "kill": Command("lifecycle", "Send a signal to containers"),
    "restart": Command("lifecycle", "Stop and start containers, keeping their files"),
    "pause": Command("lifecycle", "Stop all that runs in containers, until unpause"),
    "unpause": Command("lifecycle", "Let paused containers go on"),
    "rename": Command("lifecycle", "Give a container another name"),
    "update": Command("lifecycle", "Change image, limits and restart policy of containers"),
    "rollback": Command("change", "Go back to the image that a container had before, or to another of its history"),
    "quarantine": Command("change", "Keep containers from working as they are, until start or unpause"),
    "port": Command("containers", "Show where a container's ports are published"),
    "top": Command("containers", "Show the processes of a container"),
    "redeploy": Command("lifecycle", "Give containers a fresh VM and fresh files from the same image"),
    "rm": Command("lifecycle", "Remove containers"),
    "wait": Command("lifecycle", "Wait until containers stop, and print their exit codes"),
    "inspect": Command("containers", "Show everything about containers, images or volumes"),
    "stats": Command("stats", "Show what containers use"),
    "pull": Command("images", "Fetch an image from its registry"),
    "push": Command("images", "Send an image to its registry"),
    "images": Command("imagelist", "List images"),
    "rmi": Command("imagelist", "Remove images"),
    "tag": Command("imagelist", "Give an image one more name"),
    "history": Command("imagelist", "Show the changes of a container, or the steps that made an image"),
    "save": Command("images", "Write images into an archive"),
    "load": Command("images", "Take in the images of an archive"),
    "build": Command("build", "Build an image from a Containerfile"),
    "rebuild": Command("rebuild", "Build images again from what they were built from, and change containers to them"),
    "login": Command("login", "Keep credentials for a registry"),
    "logout": Command("login", "Forget credentials for a registry"),
    "search": Command("login", "Search a registry for images"),
    "container": Command("", "Commands of containers, as: hyper container ls"),
    "image": Command("", "Commands of images, as: hyper image ls"),
    "cp": Command("files", "Copy files into and out of containers"),
    "diff": Command("files", "Show what a container has changed in its files"),
    "commit": Command("files", "Make an image of a container"),
    "volume": Command("volumes", "Make, list and remove volumes"),
    "snapshot": Command("volumes", "Keep a volume as it is, and make volumes of it"),
    "system": Command("volumes", "Show what takes room, and remove what nothing needs"),
    "remediation": Command("", "See and steer what heals by itself, as: hyper remediation ls"),
    "events": Command("system", "Show what happens to containers and images"),
    "info": Command("system", "Show this host as the daemon sees it"),
    "version": Command("system", "Show the versions of this program and of the daemon's parts"),
    "completion": Command("completion", "Print a completion script for bash or zsh"),
}

# Docker's longer spellings: each action of a group is one of the commands above, or one of those below.
ACTIONS = {
    "container inspect": Command("containers", "Show everything about containers"),
    "container prune": Command("prune", "Remove containers that have ended"),
    "image history": Command("imagelist", "Show the steps that made an image"),
    "image inspect": Command("containers", "Show everything about images"),
    "image packages": Command("imagelist", "Show which packages an image has installed"),
    "remediation ls": Command("remediation", "Show what hyper-remediation decided, and how it ended"),
    "remediation stop": Command("remediation", "Let hyper-remediation do nothing more"),
    "remediation resume": Command("remediation", "Let hyper-remediation act again"),
    "remediation approve": Command("remediation", "Have done what a dry run proposed"),
    "image prune": Command("prune", "Remove images that no container uses"),
}
GROUPS = {
    "remediation": {name: f"remediation {name}" for name in ("ls", "stop", "resume", "approve")},
    "container": {
        "ls": "ps", "list": "ps", "ps": "ps", "inspect": "container inspect", "prune": "container prune",
        **{name: name for name in (
            "attach", "commit", "cp", "create", "diff", "exec", "kill", "logs", "pause", "port", "rename", "restart",
            "rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait",
        )}, "remove": "rm",
    },
    "image": {
        "ls": "images", "list": "images", "rm": "rmi", "remove": "rmi", "inspect": "image inspect",
        "prune": "image prune", "history": "image history", "packages": "image packages",
        **{name: name for name in ("build", "load", "pull", "push", "save", "tag")},
    },
}  # fmt: skip

USAGE = "usage: hyper [-H unix:///path] COMMAND [OPTIONS] …"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hyper`; returns the exit code."""
    try:
        _hold_places()
        _write_any_text()
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ClientError as err:
        print(f"hyper: {clean(str(err))}", file=sys.stderr)
        return err.exit_code
    except OSError as err:
        if not isinstance(err, BrokenPipeError):  # whoever read us has seen enough
            what = f"{err.filename}: " if err.filename else "the output cannot be written: "
            print(f"hyper: {clean(f'{what}{err.strerror or err}')}", file=sys.stderr)
        # nothing more may be written when Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DEFECT
    else:
        return code


def _hold_places() -> None:
    """Put /dev/null where a standard stream was closed before we began: the next socket would be taken for it.

    Raises:
        ClientError: it is stdout: what we print would be lost, such as the id of what was made.
    """
    missing = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 -- pathlib would slow every start
    if missing:
        raise ClientError("stdout is closed: open it, as with >/dev/null")


def _write_any_text() -> None:
    """Let a character that stdout or stderr cannot encode be a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(argv: list[str]) -> int:
    host = os.environ.get("HYPER_HOST") or None
    while argv and argv[0].startswith("-"):
        option = argv.pop(0)
        if option in ("-h", "--help"):
            print(help_text())
            return 0
        if option in ("-v", "--version"):
            print(f"hyper {VERSION}")
            return 0
        name, equals, value = option.partition("=")
        if name not in ("-H", "--host"):
            raise ClientError(f"unknown option {option}; see: hyper --help")
        if not equals and not argv:
            raise ClientError(f"{name} needs a value: unix:///path/to/hyperd.sock")
        host = value if equals else argv.pop(0)
    if not argv:
        print(help_text(), file=sys.stderr)
        return EXIT_DEFECT
    name, *rest = argv
    if name == "help":
        return _run([*rest[:2], "--help"] if rest[:1] and rest[0] in GROUPS else [*rest[:1], "--help"])
    if name in GROUPS:
        if not rest or rest[0] in ("-h", "--help"):
            print(group_text(name), file=sys.stdout if rest else sys.stderr)
            return 0 if rest else EXIT_DEFECT
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    run, parser = command(name)
    parsed = parser.parse_args(rest)
    return int(run(parsed, Client(socket_path(host))))


def command(name: str) -> tuple[Callable[..., int], arguments.Parser]:
    """What runs a command, and its parser; `name` is `ps`, or with its group `container ls`.

    Raises:
        ClientError: there is none.
    """
    group, _, action = name.partition(" ")
    own = GROUPS[group].get(action, name) if action else name
    found = COMMANDS.get(own) or ACTIONS.get(own)
    if found is None:
        from runtime.cli import refused  # here: few need it

        raise refused.command(name)
    module = importlib.import_module(f"runtime.cli.{found.module}")
    parser = arguments.Parser(
        prog=f"hyper {name}", description=found.help + ".", short_help=own not in ("run", "create")
    )
    word = own.replace(" ", "_")
    getattr(module, f"{word}_arguments")(parser)
    return getattr(module, word), parser


def group_text(group: str) -> str:
    """What `hyper container --help` prints."""
    lines = [f"usage: hyper {group} COMMAND [OPTIONS] …", "", "commands:"]
    for action, own in GROUPS[group].items():
        lines.append(f"  {action:8}  {(COMMANDS.get(own) or ACTIONS[own]).help}")
    return "\n".join(lines)


def help_text() -> str:
    """What `hyper --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [USAGE, "", "Containers that run as micro-VMs.", "", "commands:"]
    lines += [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "options:", "  -H, --host  the daemon's socket, unix:///path (environment: HYPER_HOST)"]
    return "\n".join([*lines, "  -v, --version", "", "hyper COMMAND --help shows the options of a command."])
