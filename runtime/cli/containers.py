"""`ps`, `inspect`, `port`, `top`."""

from __future__ import annotations

import sys

from runtime.cli import output
from runtime.cli.arguments import option, template, whole
from runtime.client import ApiError, ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

COMMAND_WIDTH = 20
HEADERS = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")
# Fields of a template for ps, and their headings.
FIELDS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
    "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Names": "NAMES", "Labels": "LABELS",
    "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Health": "HEALTH",
}  # fmt: skip
# Filters that ask for containers that do not run.
FINDS_ENDED = ("status=", "exited=")


def ps_arguments(parser: Parser) -> None:
    """`hyper ps`."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("-n", "--last", type=option("--last", whole), metavar="N", help="the N newest, in any state")
    parser.add_argument("-l", "--latest", action="store_true", help="the newest, in any state")
    parser.add_argument("-s", "--size", action="store_true", help="show what they take of the disk")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="name, id, label, status, exited, health, ancestor, publish, expose, volume, before, since; repeatable",
    )  # fmt: skip
    parser.add_template()


def ps(args: argparse.Namespace, client: Client) -> int:
    """List containers."""
    last = 1 if args.latest else args.last
    everything = args.all or last is not None or any(text.startswith(FINDS_ENDED) for text in args.filter)
    form = args.format
    size = args.size or ".Size" in form
    if args.filter:
        from runtime.cli import choosing  # here: few need it

        wanted = choosing.parse(args.filter)
        found = client.containers(everything=everything, size=size)
        # What to compare with may have ended.
        known = client.containers(everything=True) if wanted.keys() & {"before", "since"} and not everything else None
        found = choosing.choose(found, wanted, known)[:last]
    else:
        found = client.containers(everything=everything, size=size)[:last]
    if args.quiet:
        for one in found:
            print(one["id"] if args.no_trunc else output.short_id(one["id"]))
    elif form == "json":
        output.print_json(found)
    elif form != "table":
        show(form, FIELDS, [_fields(one, full=args.no_trunc) for one in found])
    else:
        rows = [_row(one, full=args.no_trunc, size=args.size) for one in found]
        width = None if args.no_trunc else output.terminal_width()
        headers = [*HEADERS, *(["SIZE"] if args.size else [])]
        print(output.table(headers, rows, width=width, keep=("CONTAINER ID", "NAMES")))
    return 0


def show(form: str, headings: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows by a template: a line each, or a table if `table ` stands before it.

    Raises:
        ClientError: the template is wrong.
    """
    from runtime.cli import template as templates  # here: few need it

    as_table = form.startswith("table ")
    text = form.removeprefix("table ")
    try:
        if not as_table:
            print("".join(f"{line}\n" for line in templates.lines(text, rows)), end="")
            return
        cells = [line.split("\t") for line in templates.lines(text, [templates.titles(headings), *rows])]
    except ValueError as err:
        raise ClientError(f"--format: {err}") from err
    widest = max(len(row) for row in cells)
    heading, *rest = [row + [""] * (widest - len(row)) for row in cells]
    print(output.table(heading, rest))


def _fields(one: Mapping[str, Any], *, full: bool) -> dict[str, Any]:
    labels = one.get("labels") or {}
    identity, image, command, _, now, published, name = _row(one, full=full, size=False)
    return {
        "ID": identity,
        "Image": image,
        "Command": command,
        "CreatedAt": output.moment(one["created_at"]),
        "RunningFor": output.ago(one["created_at"]),
        "Ports": published,
        "State": state(one),
        "Status": now,
        "Size": _size(one),
        "Names": name,
        "Labels": ",".join(f"{key}={value}" for key, value in labels.items()),
        "Mounts": ",".join(
            str(mount["source"] or mount["target"]) for mount in (one.get("spec") or {}).get("volumes") or ()
        ),
        "Networks": "bridge",  # all are in the one there is
        "LocalVolumes": str(
            sum(not str(mount["source"]).startswith("/") for mount in (one.get("spec") or {}).get("volumes") or ())
        ),
        "Health": one.get("health", "none"),
        "Label": lambda name: labels.get(name, ""),
    }


def _row(one: Mapping[str, Any], *, full: bool, size: bool) -> list[str]:
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
        *([_size(one)] if size else []),
    ]


def _size(one: Mapping[str, Any]) -> str:
    if one.get("size_bytes") is None:
        return ""
    return f"{output.decimal_size(one['size_bytes'])} (virtual {output.decimal_size(one['size_root_bytes'])})"


def state(one: Mapping[str, Any]) -> str:
    """The state in Docker's words."""
    return "restarting" if one.get("retry_at") is not None else str(one["state"])


def status(one: Mapping[str, Any]) -> str:
    """The daemon's own words, or the state where it has none."""
    return str(one.get("status") or one["state"])


def ports(published: Sequence[Mapping[str, Any]]) -> str:
    """`0.0.0.0:8080->80/tcp`, as Docker writes them; nothing of one that hyperd has yet to choose."""
    return ", ".join(
        f"{port['host_ip']}:{port['host_port']}->{port['container_port']}/{port['protocol']}"
        for port in published
        if port["host_port"]
    )


def inspect_arguments(parser: Parser) -> None:
    """`hyper inspect`."""
    parser.add_argument("--type", choices=("container", "image", "volume"), help="look for this kind only")
    parser.add_argument("-s", "--size", action="store_true", help="also what a container takes of the disk")
    _add_inspected(parser)


def container_inspect_arguments(parser: Parser) -> None:
    """`hyper container inspect`."""
    parser.set_defaults(type="container")
    parser.add_argument("-s", "--size", action="store_true", help="also what it takes of the disk")
    _add_inspected(parser)


def image_inspect_arguments(parser: Parser) -> None:
    """`hyper image inspect`."""
    parser.set_defaults(type="image")
    _add_inspected(parser)


def _add_inspected(parser: Parser) -> None:
    parser.add_refs("NAME")
    parser.add_argument(
        "-f", "--format", type=template, default="json", metavar="FORMAT",
        help="json, or a template such as '{{.State.Status}}', with Docker's members or ours",
    )  # fmt: skip


def inspect(args: argparse.Namespace, client: Client) -> int:
    """Print containers, images or volumes: whole, as one JSON list, or by a template."""
    if args.format == "table":
        raise ClientError("--format: inspect has no table; write json or a template such as '{{.State.Status}}'")
    found = []
    code = 0
    for ref in args.refs:
        try:
            found.append(_find(ref, args, client))
        except ApiError as err:
            print(f"hyper: {output.clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
    if args.format == "json":
        output.print_json(found)
    else:
        from runtime.cli import dockerlike  # here: few need it

        show(args.format, {}, [dockerlike.shown(one) for one in found])
    return code


container_inspect = image_inspect = inspect


def _find(ref: str, args: argparse.Namespace, client: Client) -> Any:
    kind = args.type
    if kind == "image":
        return client.image(ref)
    if kind == "volume":
        return client.volume(ref)
    try:
        return client.container(ref, size=args.size)
    except ApiError as err:
        if err.status != 404 or kind == "container":
            raise
    for find in (client.image, client.volume):
        try:
            return find(ref)
        except ApiError as err:
            if err.status not in (400, 404):
                raise
    raise ApiError(
        404, "not_found",
        f"there is no container, no image and no volume {ref}; see: hyper ps -a, hyper images, hyper volume ls",
    )  # fmt: skip


def port_arguments(parser: Parser) -> None:
    """`hyper port`."""
    parser.add_format()
    parser.add_refs(many=False)
    parser.add_argument("port", metavar="PORT[/PROTOCOL]", nargs="?", help="one port of the container (default: all)")


def port(args: argparse.Namespace, client: Client) -> int:
    """Show where a container's ports are published."""
    number, _, protocol = (args.port or "0").partition("/")
    if not number.isascii() or not number.isdigit() or protocol not in ("", "tcp", "udp"):
        raise ClientError(f"the port {args.port!r} is none: write 80 or 80/udp")
    found = (client.container(args.ref).get("network") or {}).get("ports") or []
    if args.port is not None:
        found = [one for one in found if (one["container_port"], one["protocol"]) == (int(number), protocol or "tcp")]
        if not found:
            raise ClientError(f"{args.ref} publishes no port {number}/{protocol or 'tcp'}; see: hyper port {args.ref}")
    if args.format == "json":
        output.print_json(found)
        return 0
    for one in found:
        inside = f"{one['container_port']}/{one['protocol']} -> " if args.port is None else ""
        print(f"{inside}{one['host_ip']}:{one['host_port']}")
    return 0


def top_arguments(parser: Parser) -> None:
    """`hyper top`."""
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")
    parser.add_refs(many=False)
    parser.add_argument(
        "options", metavar="PS-OPTION", nargs="...", help="such as -ef, aux, or -o pid,user,rss,comm (default: -ef)"
    )


def top(args: argparse.Namespace, client: Client) -> int:
    """Show the processes of a container; ids are those inside its micro-VM."""
    answer = client.top(args.ref, args.options)
    if args.format == "json":
        output.print_json(answer)
    else:
        print(output.table(answer["titles"], answer["processes"], width=output.terminal_width(), keep=("PID", "PPID")))
    return 0
