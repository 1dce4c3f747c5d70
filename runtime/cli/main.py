"""Entry point: finds the subcommand, imports its module alone, turns every error into one line and an exit code.

Exit codes are Docker's: 125 an error of ours or of the daemon, 126 the program is not executable, 127 it is not found,
otherwise the container's own; 130 after Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from runtime.cli import arguments
from runtime.cli.output import clean
from runtime.client import Client, ClientError, socket_path

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED = 130
EXIT_DEFECT = 125


class Command(NamedTuple):
    """A subcommand: `MODULE.NAME_arguments(parser)` declares its options, `MODULE.NAME(args, client)` runs it."""

    module: str
    help: str


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
    "update": Command("lifecycle", "Change limits and restart policy of containers"),
    "port": Command("containers", "Show where a container's ports are published"),
    "top": Command("containers", "Show the processes of a container"),
    "redeploy": Command("lifecycle", "Give containers a fresh VM and fresh files from the same image"),
    "rm": Command("lifecycle", "Remove containers"),
    "wait": Command("lifecycle", "Wait until containers stop, and print their exit codes"),
    "inspect": Command("containers", "Show everything about containers or images"),
    "stats": Command("stats", "Show what containers use"),
    "pull": Command("images", "Fetch an image from its registry"),
    "push": Command("images", "Send an image to its registry"),
    "images": Command("imagelist", "List images"),
    "rmi": Command("imagelist", "Remove images"),
    "tag": Command("imagelist", "Give an image one more name"),
    "history": Command("imagelist", "Show the steps that made an image"),
    "image": Command("imagelist", "Remove images that no container uses"),
    "save": Command("images", "Write images into an archive"),
    "load": Command("images", "Take in the images of an archive"),
    "build": Command("build", "Build an image from a Containerfile"),
    "login": Command("login", "Keep credentials for a registry"),
    "logout": Command("login", "Forget credentials for a registry"),
    "search": Command("login", "Search a registry for images"),
    "cp": Command("files", "Copy files into and out of containers"),
    "diff": Command("files", "Show what a container has changed in its files"),
    "commit": Command("files", "Make an image of a container"),
    "volume": Command("volumes", "Make, list and remove volumes"),
    "snapshot": Command("volumes", "Keep a volume as it is, and make volumes of it"),
    "system": Command("volumes", "Show what takes room, and remove what nothing needs"),
    "events": Command("system", "Show what happens to containers and images"),
    "info": Command("system", "Show this host as the daemon sees it"),
    "version": Command("system", "Show versions"),
    "completion": Command("completion", "Print a completion script for bash or zsh"),
}

USAGE = "usage: hyper [-H unix:///path] COMMAND [OPTIONS] …"


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hyper`; returns the exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except ClientError as err:
        print(f"hyper: {clean(str(err))}", file=sys.stderr)
        return err.exit_code
    except BrokenPipeError:
        # whoever read us has seen enough; nothing more may be written when Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DEFECT
    else:
        return code


def _run(argv: list[str]) -> int:
    host = os.environ.get("HYPER_HOST") or None
    while argv and argv[0].startswith("-"):
        option = argv.pop(0)
        if option in ("-h", "--help"):
            print(help_text())
            return 0
        if option in ("-v", "--version"):
            argv.insert(0, "version")
            break
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
        return _run([*rest[:1], "--help"])
    if name not in COMMANDS:
        raise ClientError(f"there is no command {name!r}; see: hyper --help")
    module = importlib.import_module(f"runtime.cli.{COMMANDS[name].module}")
    parser = arguments.Parser(prog=f"hyper {name}", description=COMMANDS[name].help + ".")
    getattr(module, f"{name}_arguments")(parser)
    parsed = parser.parse_args(rest)
    return int(getattr(module, name)(parsed, Client(socket_path(host))))


def help_text() -> str:
    """What `hyper --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [USAGE, "", "Containers that run as micro-VMs.", "", "commands:"]
    lines += [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "options:", "  -H, --host  the daemon's socket, unix:///path (environment: HYPER_HOST)"]
    return "\n".join([*lines, "  -v, --version", "", "hyper COMMAND --help shows the options of a command."])


if __name__ == "__main__":
    sys.exit(main())
