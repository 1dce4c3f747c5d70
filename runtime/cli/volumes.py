"""`volume`, `snapshot` and `system`: disks that outlive containers, and what takes room."""

from __future__ import annotations

import sys

from runtime.cli.arguments import Parser, label, option, size, template
from runtime.cli.choosing import has_label
from runtime.cli.lifecycle import each
from runtime.cli.output import ago, binary_size, clean, moment, print_json, table, terminal_width
from runtime.cli.prune import add_force, confirm, failed, pruned, system_prune, system_prune_arguments
from runtime.client import ApiError, ClientError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from runtime.client import Client

VOLUME_FIELDS = {
    "Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Size": "SIZE",
    "Used": "USED", "Links": "LINKS", "CreatedAt": "CREATED AT", "Labels": "LABELS",
}  # fmt: skip
SNAPSHOT_FIELDS = {
    "Name": "SNAPSHOT", "Volume": "VOLUME", "Size": "SIZE", "Used": "USED", "CreatedAt": "CREATED AT",
}  # fmt: skip
DF_FIELDS = {
    "Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
}  # fmt: skip


def volume_arguments(parser: Parser) -> None:
    """`hyper volume`."""
    actions = _actions(parser)
    create = _action(actions, "create", "Make a volume, and print its name")
    create.add_argument("name", metavar="NAME", nargs="?", help="default: one of its own")
    create.add_argument("--size", type=option("--size", size), help="such as 2g (default: 10g; taken only as written)")
    create.add_argument("--snapshot", metavar="SNAPSHOT", help="with what this snapshot holds")
    create.add_argument("-d", "--driver", choices=("local",), default="local", help="local: there is no other")
    create.add_argument("-l", "--label", action="append", default=[], type=option("--label", label), help="NAME=VALUE")
    ls = _action(actions, "ls", "List volumes")
    ls.add_argument("-q", "--quiet", action="store_true", help="only names")
    ls.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="dangling=true|false, name=PART, label=NAME[=VALUE], driver=local; may be repeated",
    )  # fmt: skip
    ls.add_template()
    _add_inspect_format(_names(_action(actions, "inspect", "Show everything about volumes"), "VOLUME"))
    rm = _names(_action(actions, "rm", "Remove volumes"), "VOLUME")
    rm.add_argument("-f", "--force", action="store_true", help="no error for one that does not exist")
    prune = _action(actions, "prune", "Remove volumes that no container has")
    prune.add_argument("-a", "--all", action="store_true", help="those with a name too, not only anonymous ones")
    add_force(prune)


def volume(args: argparse.Namespace, client: Client) -> int:
    """Volumes."""
    if args.action == "create":
        body = {"name": args.name, "size_bytes": args.size, "labels": dict(args.label), "snapshot": args.snapshot}
        print(client.call("POST", "/v1/volumes", body)["name"])
    elif args.action == "ls":
        _check_filters(args.filter)
        found = _chosen(client.call("GET", "/v1/volumes"), args.filter)
        _list(args, found, _volume_row, ["VOLUME NAME", "SIZE", "USED", "IN USE BY", "CREATED"], VOLUME_FIELDS)
    elif args.action == "inspect":
        return _inspect(args, client, "volumes")
    elif args.action == "rm":
        return _remove(args, client, "volumes")
    else:
        what = "all volumes that no container has" if args.all else "all anonymous volumes that no container has"
        confirm(what, force=args.force)
        done = client.call("POST", "/v1/volumes/prune", {"all": args.all})
        pruned({"Deleted Volumes": done["removed"]}, done["freed_bytes"])
        return failed(done)
    return 0


def snapshot_arguments(parser: Parser) -> None:
    """`hyper snapshot`."""
    actions = _actions(parser)
    create = _action(actions, "create", "Keep a volume as it is now, also while a container uses it; print the name")
    create.add_argument("--volume", required=True, metavar="VOLUME", help="the volume to keep")
    create.add_argument("name", metavar="SNAPSHOT", nargs="?", help="default: the volume's name and the time")
    ls = _action(actions, "ls", "List snapshots")
    ls.add_argument("-q", "--quiet", action="store_true", help="only names")
    ls.add_template()
    _add_inspect_format(_names(_action(actions, "inspect", "Show everything about snapshots"), "SNAPSHOT"))
    rm = _names(_action(actions, "rm", "Remove snapshots"), "SNAPSHOT")
    rm.add_argument("-f", "--force", action="store_true", help="no error for one that does not exist")


def snapshot(args: argparse.Namespace, client: Client) -> int:
    """Snapshots."""
    if args.action == "create":
        print(client.call("POST", "/v1/snapshots", {"volume": args.volume, "name": args.name})["name"])
    elif args.action == "ls":
        headers = ["SNAPSHOT", "VOLUME", "SIZE", "USED", "CREATED"]
        _list(args, client.call("GET", "/v1/snapshots"), _snapshot_row, headers, SNAPSHOT_FIELDS)
    elif args.action == "inspect":
        return _inspect(args, client, "snapshots")
    else:
        return _remove(args, client, "snapshots")
    return 0


def system_arguments(parser: Parser) -> None:
    """`hyper system`."""
    actions = _actions(parser)
    df = _action(actions, "df", "Show what takes room")
    df.add_argument("-v", "--verbose", action="store_true", help="each image, container and volume")
    df.add_template()
    text = "Remove containers that have ended, and what else nothing needs"
    system_prune_arguments(_action(actions, "prune", text))
    from runtime.cli import system as host  # here: only these need it

    host.info_arguments(_action(actions, "info", "Show this host, as: hyper info"))
    host.events_arguments(_action(actions, "events", "Show what happens, as: hyper events"))


def system(args: argparse.Namespace, client: Client) -> int:
    """Disk usage and pruning."""
    if args.action in ("info", "events"):
        from runtime.cli import system as host  # here: only these need it

        return (host.info if args.action == "info" else host.events)(args, client)
    if args.action == "prune":
        return system_prune(args, client)
    if args.verbose:
        return _each_size(args, client)
    found = client.call("GET", "/v1/system/df")
    if args.format == "json":
        print_json(found)
        return 0
    names = {"images": "Images", "containers": "Containers", "volumes": "Local Volumes", "snapshots": "Snapshots"}
    rows = []
    for key, name in names.items():
        row = found[key]
        share = f" ({100 * row['reclaimable_bytes'] // row['bytes']}%)" if row["bytes"] else ""
        reclaimable = binary_size(row["reclaimable_bytes"]) + share
        rows.append([name, str(row["count"]), str(row["active"]), binary_size(row["bytes"]), reclaimable])
    if args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, DF_FIELDS, [dict(zip(DF_FIELDS, row, strict=True)) for row in rows])
    else:
        print(table(list(DF_FIELDS.values()), rows, width=terminal_width()))
    return 0


def _each_size(args: argparse.Namespace, client: Client) -> int:
    """Images, containers, volumes and snapshots one by one, with the commands that list them."""
    from runtime.cli.main import command  # here: only this needs other commands

    if args.format == "json":
        everything = {
            "images": client.images(),
            "containers": client.containers(everything=True, size=True),
            "volumes": client.call("GET", "/v1/volumes"),
            "snapshots": client.call("GET", "/v1/snapshots"),
        }
        print_json(everything)
        return 0
    if args.format != "table":
        raise ClientError("--verbose has no template: write --format json, or see hyper images, ps -as, volume ls")
    listings = {
        "Images": "images", "Containers": "ps -as", "Local Volumes": "volume ls", "Snapshots": "snapshot ls",
    }  # fmt: skip
    for title, line in listings.items():
        print(f"{title} space usage:", "", sep="\n")
        name, *words = line.split()
        run, parser = command(name)
        run(parser.parse_args(words), client)
        print()
    return 0


def _actions(parser: Parser) -> Any:
    return parser.add_subparsers(dest="action", metavar="ACTION", required=True)


def _action(actions: Any, name: str, text: str) -> Parser:
    """A parser of our own kind for one action."""
    aliases = {"ls": ["list"], "rm": ["remove"]}.get(name, [])
    made: Parser = actions.add_parser(name, aliases=aliases, help=text, description=f"{text}.")
    made.set_defaults(action=name)  # whichever of its names was written
    return made


def _names(parser: Parser, what: str) -> Parser:
    parser.add_argument("names", metavar=what, nargs="+")
    return parser


def _remove(args: argparse.Namespace, client: Client, kind: str) -> int:
    names = args.names
    if args.force:
        known = {one["name"] for one in client.call("GET", f"/v1/{kind}")}
        names = [name for name in names if name in known]
    return each(names, lambda name: client.call("DELETE", _path(kind, name)))


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{quote(name)}"


def _add_inspect_format(parser: Parser) -> None:
    parser.add_argument(
        "-f", "--format", type=template, default="json", metavar="FORMAT", help="json, or a template: '{{.Name}}'"
    )


def _inspect(args: argparse.Namespace, client: Client, kind: str) -> int:
    """Print what there is, and an error for each that is not."""
    found, code = [], 0
    for name in args.names:
        try:
            found.append(client.call("GET", _path(kind, name)))
        except ApiError as err:
            print(f"hyper: {clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
    if args.format in ("json", "table"):
        print_json(found)
    else:
        from runtime.cli import dockerlike  # here: few need templates
        from runtime.cli.containers import show

        show(args.format, {}, [{**one, **dockerlike.volume(one)} for one in found])
    return code


def _check_filters(filters: list[str]) -> None:
    """Look at the filters of `volume ls`.

    Raises:
        ClientError: there is no such filter, or its value is wrong.
    """
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in ("dangling", "driver", "label", "name") or not equals or not value:
            raise ClientError(f"--filter {text!r}: write KEY=VALUE; there are: dangling, driver, label, name")
        if key == "dangling" and value not in ("true", "false", "1", "0"):
            raise ClientError(f"--filter {text!r}: write dangling=true or dangling=false")


def _chosen(found: list[dict[str, Any]], filters: list[str]) -> list[dict[str, Any]]:
    """Volumes that have any value of one key, all keys, and all labels."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, _, value = text.partition("=")
        wanted.setdefault(key, []).append(value)
    return [
        one for one in found
        if all(
            (all if key == "label" else any)(_passes(one, key, value) for value in values)
            for key, values in wanted.items()
        )
    ]  # fmt: skip


def _passes(one: dict[str, Any], key: str, value: str) -> bool:
    if key == "dangling":
        return (not one["containers"]) == (value in ("true", "1"))
    if key == "label":
        return has_label(one["labels"], value)
    return value in one["name"] if key == "name" else value == "local"


def _list(
    args: argparse.Namespace, found: list[dict[str, Any]], row: Any, headers: list[str], fields: Mapping[str, str]
) -> None:
    if args.format == "json":
        print_json(found)
    elif args.quiet:
        print(*(one["name"] for one in found), sep="\n", end="\n" if found else "")
    elif args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, fields, [_fields(one) for one in found])
    else:
        print(table(headers, [row(one) for one in found], width=terminal_width(), keep=headers[:1]))


def _volume_row(one: dict[str, Any]) -> list[str]:
    users = ", ".join(user["name"] + ("" if user["live"] else " (stopped)") for user in one["containers"])
    return [one["name"], binary_size(one["size_bytes"]), binary_size(one["used_bytes"]), users, ago(one["created_at"])]


def _snapshot_row(one: dict[str, Any]) -> list[str]:
    sizes = [binary_size(one["size_bytes"]), binary_size(one["used_bytes"])]
    return [one["name"], one["volume"], *sizes, ago(one["created_at"])]


def _fields(one: dict[str, Any]) -> dict[str, Any]:
    labels = one.get("labels") or {}
    return {
        "Name": one["name"],
        "Driver": "local",
        "Scope": "local",
        "Volume": one.get("volume", ""),
        "Mountpoint": one.get("file", ""),
        "Size": binary_size(one["size_bytes"]),
        "Used": binary_size(one["used_bytes"]),
        "Links": str(len(one.get("containers") or ())),
        "CreatedAt": moment(one["created_at"]),
        "Labels": ",".join(f"{key}={value}" for key, value in labels.items()),
        "Label": lambda name: labels.get(name, ""),
    }
