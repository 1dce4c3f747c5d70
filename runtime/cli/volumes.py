"""`volume`, `snapshot` and `system`: disks that outlive containers, and what takes room."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import Parser, label, option, size
from runtime.cli.lifecycle import each
from runtime.cli.output import ago, binary_size, print_json, short_id, table, terminal_width
from runtime.client import ClientError

if TYPE_CHECKING:
    import argparse

    from runtime.client import Client

HEX_NAME = 64


def volume_arguments(parser: Parser) -> None:
    """`hyper volume`."""
    actions = _actions(parser)
    create = _action(actions, "create", "Make a volume, and print its name")
    create.add_argument("name", metavar="NAME", nargs="?", help="default: one of its own")
    create.add_argument("--size", type=option("--size", size), help="such as 2g (default: 10g; taken only as written)")
    create.add_argument("--snapshot", help="with what this snapshot holds")
    create.add_argument("-l", "--label", action="append", default=[], type=option("--label", label), help="NAME=VALUE")
    ls = _action(actions, "ls", "List volumes")
    ls.add_argument("-q", "--quiet", action="store_true", help="only names")
    ls.add_format()
    _names(_action(actions, "inspect", "Show everything about volumes"), "VOLUME")
    rm = _names(_action(actions, "rm", "Remove volumes"), "VOLUME")
    rm.add_argument("-f", "--force", action="store_true", help="no error for one that does not exist")
    prune = _action(actions, "prune", "Remove volumes that no container has")
    prune.add_argument("-a", "--all", action="store_true", help="those with a name too, not only anonymous ones")
    _add_force(prune)


def volume(args: argparse.Namespace, client: Client) -> int:
    """Volumes."""
    if args.action == "create":
        body = {"name": args.name, "size_bytes": args.size, "labels": dict(args.label), "snapshot": args.snapshot}
        print(client.call("POST", "/v1/volumes", body)["name"])
    elif args.action == "ls":
        _list(
            args,
            client.call("GET", "/v1/volumes"),
            _volume_row,
            ["VOLUME NAME", "SIZE", "USED", "IN USE BY", "CREATED"],
        )
    elif args.action == "inspect":
        print_json([client.call("GET", _path("volumes", name)) for name in args.names])
    elif args.action == "rm":
        return _remove(args, client, "volumes")
    else:
        what = "all volumes that no container has" if args.all else "all anonymous volumes that no container has"
        _confirm(args, what)
        done = client.call("POST", "/v1/volumes/prune", {"all": args.all})
        _pruned({"Deleted Volumes": done["removed"]}, done["freed_bytes"])
    return 0


def snapshot_arguments(parser: Parser) -> None:
    """`hyper snapshot`."""
    actions = _actions(parser)
    create = _action(actions, "create", "Keep a volume as it is now, also while a container uses it; print the name")
    create.add_argument("--volume", required=True, metavar="VOLUME")
    create.add_argument("name", metavar="SNAPSHOT", nargs="?", help="default: the volume's name and the time")
    ls = _action(actions, "ls", "List snapshots")
    ls.add_argument("-q", "--quiet", action="store_true", help="only names")
    ls.add_format()
    _names(_action(actions, "inspect", "Show everything about snapshots"), "SNAPSHOT")
    rm = _names(_action(actions, "rm", "Remove snapshots"), "SNAPSHOT")
    rm.add_argument("-f", "--force", action="store_true", help="no error for one that does not exist")


def snapshot(args: argparse.Namespace, client: Client) -> int:
    """Snapshots."""
    if args.action == "create":
        print(client.call("POST", "/v1/snapshots", {"volume": args.volume, "name": args.name})["name"])
    elif args.action == "ls":
        _list(
            args, client.call("GET", "/v1/snapshots"), _snapshot_row, ["SNAPSHOT", "VOLUME", "SIZE", "USED", "CREATED"]
        )
    elif args.action == "inspect":
        print_json([client.call("GET", _path("snapshots", name)) for name in args.names])
    else:
        return _remove(args, client, "snapshots")
    return 0


def system_arguments(parser: Parser) -> None:
    """`hyper system`."""
    actions = _actions(parser)
    _action(actions, "df", "Show what takes room").add_format()
    _add_force(_action(actions, "prune", "Remove containers that have ended, and anonymous volumes of none"))
    _action(actions, "info", "Show this host, as: hyper info").add_format()


def system(args: argparse.Namespace, client: Client) -> int:
    """Disk usage and pruning."""
    if args.action == "info":
        from runtime.cli import system as host  # here: only this needs it

        return host.info(args, client)
    if args.action == "df":
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
        print(table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows, width=terminal_width()))
        return 0
    _confirm(args, "all containers that have ended, and all anonymous volumes that no container has")
    done = client.call("POST", "/v1/system/prune")
    _pruned({"Deleted Containers": done["containers"], "Deleted Volumes": done["volumes"]}, done["freed_bytes"])
    return 0


def _actions(parser: Parser) -> Any:
    return parser.add_subparsers(dest="action", metavar="ACTION", required=True)


def _action(actions: Any, name: str, text: str) -> Parser:
    """A parser of our own kind for one action."""
    made = actions.add_parser(name, help=text, description=f"{text}.")
    return made if isinstance(made, Parser) else Parser(prog=name, description=text)


def _names(parser: Parser, what: str) -> Parser:
    parser.add_argument("names", metavar=what, nargs="+")
    return parser


def _add_force(parser: Parser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")


def _remove(args: argparse.Namespace, client: Client, kind: str) -> int:
    names = args.names
    if args.force:
        known = {one["name"] for one in client.call("GET", f"/v1/{kind}")}
        names = [name for name in names if name in known]
    return each(names, lambda name: client.call("DELETE", _path(kind, name)))


def _path(kind: str, name: str) -> str:
    from urllib.parse import quote  # here: the commands without a name need it not

    return f"/v1/{kind}/{quote(name, safe='')}"


def _confirm(args: argparse.Namespace, what: str) -> None:
    if args.force:
        return
    print(f"WARNING! This will remove {what}.", file=sys.stderr)
    print("Are you sure you want to continue? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ClientError("nothing was removed; --force does not ask")


def _pruned(kinds: dict[str, list[str]], freed_bytes: int) -> None:
    for title, names in kinds.items():
        if names:
            print(f"{title}:", *names, "", sep="\n")
    print(f"Total reclaimed space: {binary_size(freed_bytes)}")


def _list(args: argparse.Namespace, found: list[dict[str, Any]], row: Any, headers: list[str]) -> None:
    if args.format == "json":
        print_json(found)
    elif args.quiet:
        print(*(one["name"] for one in found), sep="\n", end="\n" if found else "")
    else:
        print(table(headers, [row(one) for one in found], width=terminal_width(), keep=headers[:1]))


def _volume_row(one: dict[str, Any]) -> list[str]:
    users = ", ".join(user["name"] + ("" if user["live"] else " (stopped)") for user in one["containers"])
    name = short_id(one["name"]) if one["anonymous"] and len(one["name"]) == HEX_NAME else one["name"]
    return [name, binary_size(one["size_bytes"]), binary_size(one["used_bytes"]), users, ago(one["created_at"])]


def _snapshot_row(one: dict[str, Any]) -> list[str]:
    sizes = [binary_size(one["size_bytes"]), binary_size(one["used_bytes"])]
    return [one["name"], one["volume"], *sizes, ago(one["created_at"])]
