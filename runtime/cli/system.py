"""`events`, `info` and `version`."""

from __future__ import annotations

import json
import time

from runtime.cli import output
from runtime.cli.arguments import option
from runtime.cli.moments import moment_ns
from runtime.client import ClientError, DaemonUnreachable
from runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

FILTERS = ("container", "event", "image", "label", "type")


def info_arguments(parser: Parser) -> None:
    """`hyper info`."""
    parser.add_template(short=True)


def info(args: argparse.Namespace, client: Client) -> int:
    """Show the host as the daemon sees it."""
    return _show(client.info(), args.format, "host")


def version_arguments(parser: Parser) -> None:
    """`hyper version`."""
    parser.add_template(short=True)


def version(args: argparse.Namespace, client: Client) -> int:
    """Show our own version and those of the daemon's parts; ours also where there is no daemon, before that is said."""
    try:
        answer = {"client": VERSION, **client.version()}
    except DaemonUnreachable:
        _show({"client": VERSION}, args.format, "versions")
        raise
    return _show(answer, args.format, "versions")


def events_arguments(parser: Parser) -> None:
    """`hyper events`."""
    parser.add_argument("--since", help="from then on, past ones too: seconds since 1970, 10m, or 2026-01-31T12:00:00Z")
    parser.add_argument("--until", help="up to then, then end: the same forms")
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help=f"{', '.join(FILTERS)}; may be repeated",
    )  # fmt: skip
    parser.add_template()


def events(args: argparse.Namespace, client: Client) -> int:
    """Show what happens, until Ctrl-C or `--until`."""
    query: dict[str, Any] = {}
    for text in args.filter:
        key, equals, value = text.partition("=")
        if not equals or not value or key not in FILTERS:
            raise ClientError(f"--filter {text!r}: write KEY=VALUE with KEY one of {', '.join(FILTERS)}")
        query.setdefault(key, []).append(value)
    for name in ("since", "until"):
        if getattr(args, name) is not None:
            seconds, nanoseconds = divmod(option(f"--{name}", moment_ns)(getattr(args, name)), 10**9)
            query[name] = f"{seconds}.{nanoseconds:09d}"
    template = None
    if args.format not in {"table", "json"}:
        from runtime.cli import template as templates  # here: few need it

        try:
            template = templates.Template(args.format)
        except ValueError as err:
            raise ClientError(f"--format: {err}") from err
    for event in client.events(query):
        if args.format == "json":
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif template is None:
            print(event_line(event), flush=True)
        else:
            try:
                print(templates.clean_lines(template.render(_event_fields(event))), flush=True)
            except ValueError as err:
                raise ClientError(f"--format: {err}") from err
    return 0


def event_line(event: Mapping[str, Any]) -> str:
    """An event as Docker writes it: time, kind, action, id, and in brackets what belongs to it."""
    attributes = ", ".join(f"{name}={value}" for name, value in sorted(event["attributes"].items()))
    return output.clean(f"{_time(event['time_ns'])} {event['type']} {event['action']} {event['id']} ({attributes})")


def _time(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, 10**9)
    zone = time.strftime("%z", time.localtime(seconds))
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09d}{zone[:3]}:{zone[3:]}"


def _event_fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Docker's members of an event, beside ours."""
    return {
        **event,
        "Type": event["type"],
        "Action": event["action"],
        "Status": event["action"],
        "ID": event["id"],
        "From": event["attributes"].get("image", ""),
        "Actor": {"ID": event["id"], "Attributes": event["attributes"]},
        "Time": event["time_ns"] // 10**9,
        "TimeNano": event["time_ns"],
    }


def _show(answer: Any, form: str, what: str) -> int:
    if form == "json":
        output.print_json(answer)
    elif form != "table":
        from runtime.cli import dockerlike  # here: few need it
        from runtime.cli.containers import show

        show(form, {}, [getattr(dockerlike, what)(answer)])
    else:
        print("\n".join(lines(answer)))
    return 0


def lines(value: Any, indent: int = 0) -> Iterator[str]:
    """A JSON object as lines of `name: value`, nested by indentation."""
    for key, member in value.items():
        head = f"{' ' * indent}{output.clean(str(key).replace('_', ' '))}:"
        if isinstance(member, dict) and member:
            yield head
            yield from lines(member, indent + 2)
        elif isinstance(member, list) and any(isinstance(one, (dict, list)) for one in member):
            yield head
            for one in member:
                yield from lines(one if isinstance(one, dict) else {"-": one}, indent + 2)
        else:
            yield f"{head} {_plain(member)}"


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(output.clean(str(one)) for one in value)
    return output.clean(str(value))
