"""`create` and `run`: an unknown image is pulled first; in the foreground we stand for the container.

In the foreground its output is ours, signals are passed on, and its exit code is ours. `--rm` is then done by us
after the last output, so that none is lost; with `-d` it is the daemon's.
"""

from __future__ import annotations

import os
import sys
import time

from runtime.cli import arguments, attach, mounts, streams, terminal
from runtime.cli.output import clean
from runtime.client import ApiError, ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from typing import Any

    from runtime.client import Client


def create_arguments(parser: arguments.Parser) -> None:
    """`hyper create`."""
    parser.add_argument("--name", help="a name for it")
    streams.add_environment(parser)
    parser.add_argument(
        "-p", "--publish", action="append", default=[], type=arguments.option("--publish", arguments.ports),
        metavar="[IP:][HOST-PORT:]PORT[/PROTOCOL]", help="publish a port on the host, or a range of ports",
    )  # fmt: skip
    parser.add_argument("-P", "--publish-all", action="store_true", help="publish all ports that the image exposes")
    parser.add_argument(
        "--expose", action="append", default=[], type=arguments.option("--expose", arguments.ports),
        metavar="PORT[/PROTOCOL]", help="with -P, publish this port as well",
    )  # fmt: skip
    parser.add_argument(
        "-l",
        "--label",
        action="append",
        default=[],
        type=arguments.option("--label", arguments.label),
        help="NAME=VALUE",
    )
    parser.add_argument(
        "--label-file", action="append", default=[], type=arguments.option("--label-file", arguments.labels),
        help="file of such lines",
    )  # fmt: skip
    parser.add_argument("-m", "--memory", type=arguments.option("--memory", arguments.size), help="such as 256m")
    parser.add_argument("--cpus", type=arguments.option("--cpus", arguments.cpus), help="such as 1.5")
    parser.add_argument(
        "--size", choices=("S1", "S2", "S3", "S4", "M1", "M2", "M3", "L1", "L2", "L3"),
        help="CPUs and memory at once: S1 (1 CPU, 64 MB) to L3 (8 CPUs, 16 GB); -m and --cpus win over it",
    )  # fmt: skip
    parser.add_argument(
        "--restart", default=arguments.restart("no"), type=arguments.option("--restart", arguments.restart),
        metavar="POLICY", help="start it again when it ends: no (default), on-failure[:N], always, unless-stopped",
    )  # fmt: skip
    parser.add_argument("--read-only", action="store_true", help="mount its root read-only")
    parser.add_argument(
        "--tmpfs", action="append", default=[], type=arguments.option("--tmpfs", mounts.tmpfs),
        metavar="PATH[:OPTIONS]", help="a file system in memory, such as /run:size=64m",
    )  # fmt: skip
    parser.add_argument(
        "--mount", action="append", default=[], type=arguments.option("--mount", mounts.mount), metavar="OPTIONS",
        help="type=volume,source=data,target=/data[,readonly]; type=bind,source=/srv/site,target=/srv of this host;"
        " type=tmpfs,target=/run[,tmpfs-size=64m]",
    )  # fmt: skip
    parser.add_argument(
        "--shm-size", type=arguments.option("--shm-size", arguments.size), metavar="SIZE", help="of /dev/shm (64m)"
    )
    _add_health(parser)
    parser.add_argument(
        "-v", "--volume", action="append", default=[], type=arguments.option("--volume", mounts.volume),
        metavar="[NAME:]PATH[:ro]",
        help="a volume at a path of the container, made if it is new; with ./DIR for NAME a directory of this host",
    )  # fmt: skip
    streams.add_process(parser)
    parser.add_argument("-h", "--hostname", help="its host name (default: its id)")
    parser.add_argument("--entrypoint", help="program to run instead of the image's")
    parser.add_argument(
        "--stop-signal", type=arguments.option("--stop-signal", arguments.signal_name), metavar="SIGNAL",
        help="what stop sends to it (default: the image's, else TERM)",
    )  # fmt: skip
    parser.add_argument(
        "--stop-timeout", type=arguments.option("--stop-timeout", arguments.seconds),
        help="seconds from the stop signal to the end (default: 10; -1: a day)",
    )  # fmt: skip
    parser.add_argument("--cidfile", help="write its id to this file, which must not be there yet")
    parser.add_argument("-i", "--interactive", action="store_true", help="keep its stdin open, and send ours to it")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument(
        "--init", action="store_true",
        help="process 1 passes signals on and waits for orphans; the program is its child",
    )  # fmt: skip
    parser.add_argument("--rm", action="store_true", help="remove it when it stops")
    parser.add_argument("--pull", choices=("missing", "always", "never"), default="missing", help="default: missing")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress of a pull")
    parser.add_argument(
        "--platform", type=arguments.option("--platform", arguments.platform), help="linux/amd64: there is no other"
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("args", metavar="ARG", nargs="...", help="instead of the image's command")


def _add_health(parser: arguments.Parser) -> None:
    parser.add_argument("--health-cmd", metavar="LINE", help="a shell line whose exit code says how it is")
    for name, what in (
        ("interval", "from one check to the next (default: 30s)"),
        ("timeout", "that a check may take (default: 30s)"),
        ("start-period", "in which failures do not count (default: 0s)"),
    ):
        flag = f"--health-{name}"
        parser.add_argument(flag, type=arguments.option(flag, arguments.duration), metavar="TIME", help=f"time {what}")
    parser.add_argument(
        "--health-retries", type=arguments.option("--health-retries", arguments.whole), metavar="N",
        help="failures in a row that make it unhealthy (default: 3)",
    )  # fmt: skip
    parser.add_argument("--no-healthcheck", action="store_true", help="no check, whatever the image says")


def create(args: argparse.Namespace, client: Client) -> int:
    """Create a container and print its id."""
    print(_create(args, client)["id"])
    return 0


def run_arguments(parser: arguments.Parser) -> None:
    """`hyper run`."""
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it; print its id")
    parser.add_argument(
        "-a", "--attach", action="append", default=[], type=arguments.option("--attach", attach.output),
        metavar="STREAM", help="only this one: stdin, stdout or stderr; may be given again",
    )  # fmt: skip
    streams.add_detach_keys(parser)
    attach.add_sig_proxy(parser)
    create_arguments(parser)


def run(args: argparse.Namespace, client: Client) -> int:
    """Create and start a container."""
    how = attach.of_run(args)
    ref = _create(args, client, removed_by="daemon" if args.detach else "client")["id"]
    try:
        client.start(ref)
    except ApiError:
        # Docker leaves a container that never ran; nobody asked for one.
        _remove(client, ref)
        if args.cidfile is not None:
            _unlink(args.cidfile)
        raise
    if args.detach:
        print(ref)
        return 0
    if not how.outputs:
        print(ref, flush=True)  # as Docker does: who only sends has something to ask by
    code = None
    try:
        # The removal does not wait for the VM to end by itself.
        code = attach.attend(client, ref, how, from_start=True, to_vm_end=not args.rm)
        return code or 0
    finally:
        if args.rm and (code is not None or not _runs(client, ref)):
            _remove(client, ref)


def start_attached(ref: str, client: Client, *, interactive: bool, detach_keys: bytes) -> int:
    """Start a container that is there unless it runs, and stand for it until it ends."""
    one = client.container(ref)
    runs = one["state"] in ("starting", "running", "stopping")
    spec = one["spec"]
    how = attach.Attachment(
        tty=spec["tty"],
        # One that was made without stdin is attached to without, as Docker does.
        stdin=interactive and spec["stdin"],
        close_stdin=not runs,  # as for attach
        detach_keys=detach_keys,
    )
    return attach.attend(client, one["id"], how, start=None if runs else lambda: client.start(ref)) or 0


def _health(args: argparse.Namespace) -> dict[str, Any] | None:
    given = {
        "test": ["CMD-SHELL", args.health_cmd] if args.health_cmd else None,
        "interval_s": args.health_interval,
        "timeout_s": args.health_timeout,
        "start_period_s": args.health_start_period,
        "retries": args.health_retries,
    }
    members = {name: value for name, value in given.items() if value is not None}
    if args.no_healthcheck:
        if members:
            raise ClientError("--no-healthcheck and --health-… exclude each other: leave one of them out")
        return {"test": ["NONE"]}
    return members or None


class _IdFile:
    """The file of `--cidfile`: made before anything else, so that what cannot be written creates nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        if path is not None:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError as err:
                raise ClientError(f"--cidfile {path}: it is there already; remove it, or name another file") from err
            except OSError as err:
                raise ClientError(f"--cidfile {path}: it cannot be written: {err.strerror}") from err

    def fill(self, identity: str) -> None:
        if self._path is not None:
            with open(self._path, "w", encoding="ascii") as file:  # noqa: PTH123 -- pathlib would slow every start
                file.write(identity)

    def drop(self) -> None:
        """There is no container after all."""
        if self._path is not None:
            _unlink(self._path)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 -- pathlib would slow every start
    except OSError as err:
        print(f"hyper: --cidfile {path}: it cannot be removed: {err.strerror}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """What is wrong with the options as a whole.

    Raises:
        ClientError: two of them exclude each other.
    """
    if args.rm and args.restart["policy"] != "no":
        raise ClientError("--rm and --restart exclude each other: leave one of them out")


def _create(args: argparse.Namespace, client: Client, removed_by: str = "daemon") -> dict[str, Any]:
    _check(args)
    health = _health(args)
    identity = _IdFile(args.cidfile)
    try:
        made = _create_checked(args, client, health, removed_by)
    except BaseException:
        identity.drop()
        raise
    identity.fill(made["id"])
    return made


def _create_checked(
    args: argparse.Namespace, client: Client, health: dict[str, Any] | None, removed_by: str
) -> dict[str, Any]:
    pulled_s = _fetch(args, client) if args.pull == "always" else None
    spec = {
        "image": args.image,
        "name": args.name,
        "args": args.args or None,
        "entrypoint": None if args.entrypoint is None else [args.entrypoint] if args.entrypoint else [],
        "env": streams.environment(args),
        "cwd": args.workdir,
        "user": args.user,
        "tty": args.tty,
        "terminal_size": terminal.size() if args.tty else None,
        "stdin": args.interactive,
        **({"init": True} if args.init else {}),
        "labels": dict([*(label for file in args.label_file for label in file), *args.label]),
        "hostname": args.hostname,
        "ports": _flat(args.publish),
        "memory_bytes": args.memory,
        "cpus": args.cpus,
        "auto_remove": args.rm,
        **({"removed_by": removed_by} if args.rm and removed_by != "daemon" else {}),
        "stop_signal": args.stop_signal,
        "volumes": args.volume + [entry for member, entry in args.mount if member == "volumes"],
        "stop_timeout_s": args.stop_timeout,
        **({"restart": args.restart} if args.restart["policy"] != "no" else {}),
        "size": args.size,
        "read_only": args.read_only,
        "tmpfs": _tmpfs(args),
        "health": health,
    }
    try:
        made = client.create(_publish_all(args, client, spec), pulled_s)
    except ApiError as err:
        if err.code != "image_unknown" or args.pull != "missing":
            raise
        print(f"Unable to find image {clean(args.image)!r} locally", file=sys.stderr)
        pulled_s = _fetch(args, client)
        made = client.create(_publish_all(args, client, spec), pulled_s)
    for warning in made.get("warnings") or ():
        print(f"WARNING: {clean(warning)}", file=sys.stderr)
    return dict(made)


def _fetch(args: argparse.Namespace, client: Client) -> float:
    """Pull the image; how long that took, in seconds."""
    from runtime.cli import images  # here: few need it

    began = time.monotonic()
    images.fetch(client, args.image, quiet=args.quiet)
    return time.monotonic() - began


def _publish_all(args: argparse.Namespace, client: Client, spec: dict[str, Any]) -> dict[str, Any]:
    """With `-P`, add every port that the image exposes and `-p` does not name."""
    if not args.publish_all:
        return spec
    published = _flat(args.publish)
    named = {(port["container_port"], port["protocol"]) for port in published}
    for port in [*_exposed(client.image(args.image)["config"]["ExposedPorts"]), *_flat(args.expose)]:
        if (port["container_port"], port["protocol"]) not in named:
            named.add((port["container_port"], port["protocol"]))
            published.append(port)
    return {**spec, "ports": published}


def _exposed(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The ports that an image says; what cannot be published is told of, as the image may be a stranger's."""
    for text in texts:
        try:
            yield from arguments.ports(text)
        except ValueError as err:
            print(f"WARNING: the image's port {clean(text)} is not published: {clean(str(err))}", file=sys.stderr)


def _flat(given: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [port for ports in given for port in ports]


def _tmpfs(args: argparse.Namespace) -> list[dict[str, str]]:
    found: list[dict[str, str]] = args.tmpfs + [entry for member, entry in args.mount if member == "tmpfs"]
    if args.shm_size is not None:  # over the usual one
        found.append({"path": "/dev/shm", "options": f"mode=1777,size={args.shm_size}"})  # noqa: S108 -- the guest's
    return found


def _runs(client: Client, ref: str) -> bool:
    """Whether it still runs: we were told to leave it."""
    try:
        return client.container(ref)["state"] in ("starting", "running", "paused", "stopping")
    except ClientError:
        return False


def _remove(client: Client, ref: str) -> None:
    try:
        client.remove(ref, force=True, volumes=True)
    except ApiError as err:
        if err.status != 404:
            print(f"hyper: it could not be removed: {clean(str(err))}", file=sys.stderr)
