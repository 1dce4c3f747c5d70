"""`update --image`, `rollback`, `quarantine`, and `history` of a container: what a name stands for, and its changes.

A change is followed by asking hyperd for its steps; whoever stops following does not stop it. A request has an id of
its own, so that it can be made again when hyperd goes away in the middle, and is still carried out once.
"""

from __future__ import annotations

import sys
import time

from runtime.cli import output
from runtime.cli.arguments import duration, option
from runtime.client import ApiError, ClientError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

TRIGGERS = ("unhealthy", "exit", "worse")
DEFAULT_WATCH_S = 60.0  # where something to roll back on is named, and no time for it
AWAY_S = 60.0  # how long hyperd may be away in the middle of a change
EXIT_NOT_DONE = 1
_POLL_S = 0.2
_LINE_INTERVAL_S = 5.0
HISTORY_FIELDS = {
    "Revision": "REV", "Change": "CHANGE", "Image": "IMAGE", "Digest": "DIGEST", "Outcome": "OUTCOME", "Good": "GOOD",
    "Health": "HEALTH", "Since": "WHEN", "At": "AT", "Actor": "BY", "Reason": "WHY", "ContainerID": "CONTAINER",
    "RequestID": "REQUEST", "Compared": "COMPARED",
}  # fmt: skip
_COLUMNS = ("Revision", "Change", "Digest", "Outcome", "Good", "Health", "Since", "Actor", "Reason")
_KEPT = ("REV", "CHANGE", "DIGEST", "OUTCOME", "GOOD")


def add_change(parser: Parser) -> None:
    """The options of `hyper update` that are about an image."""
    parser.add_argument(
        "--image", metavar="IMAGE", help="a new container of this image takes the name and the ports, once it is well"
    )
    add_rollout(parser, "with --image: ")
    parser.add_argument(
        "--pull", choices=("missing", "always", "never"), help="with --image: get the image first (default: missing)"
    )
    parser.add_argument("--reason", help="with --image: why, for the history and the audit log")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")


def add_rollout(parser: Parser, when: str) -> None:
    """The options of a change of image, whoever makes it; `when` is where they are of use."""
    seconds = "such as 30s or 10m"
    for name, what in (
        ("--canary", f"old and new run side by side for so long and are compared first, {seconds}"),
        ("--watch", "for so long after the change it is undone by itself on what --rollback-on names"),
        ("--timeout", "how long the new container may take to be well (default: 2m)"),
        ("--drain", "how long connections of the old container may take to end (default: 10s)"),
    ):
        parser.add_argument(name, type=option(name, duration), metavar="TIME", help=f"{when}{what}")
    parser.add_argument(
        "--rollback-on", type=option("--rollback-on", _triggers), action="append", metavar="WHAT",
        help=f"{when}unhealthy, exit, worse (than the old one, with --canary), or several with commas; default:"
        " all. Without --canary it means --watch 1m",
    )  # fmt: skip


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether `hyper update` was asked to change an image.

    Raises:
        ClientError: options of a change are given, and no image.
    """
    if args.image is not None:
        return True
    given = [name for name in ("canary", "watch", "timeout", "drain", "rollback_on", "pull", "reason")
             if getattr(args, name) is not None]  # fmt: skip
    if given:
        raise ClientError(f"--{given[0].replace('_', '-')} goes with --image: name the image to change to")
    return False


def update_image(args: argparse.Namespace, client: Client) -> int:
    """Change the image of containers, one after the other; the first that is not changed is the last."""
    _have_image(args, client)
    return _each(args, client, "change", {"image": args.image, **rollout_body(args)})


def rollout_body(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_rollout` say, as members of the API's body."""
    triggers = [one for group in args.rollback_on or [] for one in group]
    watch_s = args.watch
    if watch_s is None:
        watch_s = DEFAULT_WATCH_S if triggers and not args.canary else 0.0
    return {
        "canary_s": args.canary or 0.0,
        "watch_s": watch_s,
        **({} if args.timeout is None else {"timeout_s": args.timeout}),
        **({} if args.drain is None else {"drain_s": args.drain}),
        **({"rollback_on": sorted(set(triggers))} if triggers else {}),
    }


def rollback_arguments(parser: Parser) -> None:
    """`hyper rollback`."""
    parser.add_refs()
    parser.add_argument("--to", metavar="DIGEST", help="an image of its history; default: the last that proved good")
    parser.add_argument("--reason", help="why, for the history and the audit log")
    parser.add_format()


def rollback(args: argparse.Namespace, client: Client) -> int:
    """Go back to an earlier image."""
    return _each(args, client, "rollback", {"to_digest": None})


def quarantine_arguments(parser: Parser) -> None:
    """`hyper quarantine`."""
    parser.add_refs()
    parser.add_argument("--reason", default="asked for on the command line", help="goes into the audit log")


def quarantine(args: argparse.Namespace, client: Client) -> int:
    """Put containers into quarantine."""
    from runtime.cli.lifecycle import actor, each

    return each(
        args.refs,
        lambda ref: client.container_call(ref, "quarantine", {"actor": actor(), "reason": args.reason}),
    )


def history(args: argparse.Namespace, changes: list[dict[str, Any]]) -> int:
    """Show what a container's name has stood for, the newest first."""
    if args.format == "json":
        output.print_json(changes)
        return 0
    rows = [_history_row(one, full=args.no_trunc, human=args.human) for one in changes]
    if args.quiet:
        print("".join(f"{row['Digest']}\n" for row in rows), end="")
    elif args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, HISTORY_FIELDS, rows)
    else:
        width = None if args.no_trunc else output.terminal_width()
        columns = (*_COLUMNS, "Compared") if args.no_trunc else _COLUMNS
        cells = [[row[name] for name in columns] for row in rows]
        print(output.table([HISTORY_FIELDS[name] for name in columns], cells, width=width, keep=_KEPT))
    return 0


def _history_row(one: Mapping[str, Any], *, full: bool, human: bool) -> dict[str, str]:
    before, after = one["health_before"], one["health_after"]
    return {
        "Revision": str(one["revision"]),
        "Change": one["kind"],
        "Image": one["image"],
        "Digest": one["digest"] if full else output.short_id(one["digest"]),
        "Outcome": one["outcome"],
        "Good": "yes" if one["good"] else "no",
        "Health": f"{before} → {after}" if before and after else after or before or "-",
        "Since": output.ago(one["time"]) if human else output.moment(one["time"]),
        "At": output.moment(one["time"]),
        "Actor": one["actor"],
        "Reason": one["reason"] or "-",
        "ContainerID": one["container_id"] if full else output.short_id(one["container_id"]),
        "RequestID": one["request_id"] or "-",
        "Compared": "; ".join(
            f"{row['signal']} {row['old']} → {row['new']}: {_verdict(row)}" for row in one.get("comparison", ())
        )
        or "-",
    }


def _verdict(row: Mapping[str, Any]) -> str:
    """What follows of one signal, and why if it says nothing."""
    why = row.get("why")
    return f"{row['verdict']} ({why})" if why else str(row["verdict"])


def _have_image(args: argparse.Namespace, client: Client) -> None:
    """Pull the image if it is to be."""
    from runtime.cli.images import fetch

    if args.pull == "always":
        fetch(client, args.image, quiet=False)
        return
    try:
        client.image(args.image)
    except ApiError as err:
        if err.code != "image_unknown" or args.pull == "never":
            raise
        print(f"Unable to find image {output.clean(args.image)!r} locally", file=sys.stderr)
        fetch(client, args.image, quiet=False)


def carry_out(
    client: Client, name: str, call: str, body: Mapping[str, Any], *, reason: str | None, quiet: bool
) -> dict[str, Any]:
    """Make one change and follow it; unless `quiet` its verdict is printed. Returns the rollout."""
    from runtime.cli.lifecycle import actor

    wanted = {**body, "actor": actor(), "reason": reason or "asked for on the command line"}
    rollout = _Change(client, name, call, wanted).follow()
    if not quiet:
        _print(rollout)
    return rollout


def _each(args: argparse.Namespace, client: Client, call: str, body: Mapping[str, Any]) -> int:
    found = []
    for ref in args.refs:
        name = client.container(ref)["name"]
        wanted = dict(body)
        if call == "rollback" and args.to is not None:
            wanted["to_digest"] = _digest(client, name, args.to)
        rollout = carry_out(client, name, call, wanted, reason=args.reason, quiet=args.format == "json")
        found.append(rollout)
        if rollout["state"] != "done":
            break
    if args.format == "json":
        output.print_json(found)
    return 0 if all(one["state"] == "done" for one in found) else EXIT_NOT_DONE


def _digest(client: Client, name: str, text: str) -> str:
    """The digest in the history that begins so."""
    wanted = text.removeprefix("sha256:")
    digests = {one["digest"] for one in client.container_call(name, "history", method="GET")}
    found = [digest for digest in digests if wanted and digest.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1:
        what = "several digests of its history begin so" if found else "no digest of its history begins so"
        raise ClientError(f"--to {text}: {what}; see: hyper history {name}")
    return str(found[0])


class _Change:
    """A call that goes on for a while, and what is shown of it on stderr."""

    def __init__(self, client: Client, name: str, call: str, body: dict[str, Any]) -> None:
        import secrets  # here: this alone needs it

        self._client = client
        self._name = name
        self._call = call
        self._body = {**body, "request_id": f"cli-{secrets.token_hex(8)}"}
        self._rollout: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._shown = 0
        self._next_line = 0.0

    def follow(self) -> dict[str, Any]:
        """Make the call and show its steps until it has ended; returns the rollout.

        Raises:
            ClientError: nothing was begun, or hyperd stayed away.
        """
        import threading  # here: this alone needs it

        caller = threading.Thread(target=self._make, daemon=True)
        caller.start()
        try:
            while caller.is_alive():
                caller.join(_POLL_S)
                self._show(self._state())
        except KeyboardInterrupt:
            print(f"hyper: it goes on; see: hyper history {self._name}", file=sys.stderr)
            raise
        if self._error is not None:
            raise self._error
        assert self._rollout is not None  # noqa: S101 -- the call ends with one or the other
        self._show(self._rollout)
        return self._rollout

    def _make(self) -> None:
        """The call; made again with the same id while hyperd is away, which finishes or undoes what was begun."""
        deadline = None
        while True:
            try:
                self._rollout = self._client.container_call(self._name, self._call, self._body)
            except DaemonUnreachable as err:
                now = time.monotonic()
                if deadline is None:
                    print("hyper: hyperd has gone away; waiting for it to come back", file=sys.stderr)
                    deadline = now + AWAY_S
                if now > deadline:
                    self._error = err
                    return
                time.sleep(_POLL_S)
            except Exception as err:  # noqa: BLE001 -- raised where it is waited for
                self._error = err
                return
            else:
                return

    def _state(self) -> dict[str, Any] | None:
        try:
            found = self._client.container_call(self._name, "rollouts", method="GET")
        except ClientError:
            return None
        return next((one for one in found if one["request_id"] == self._body["request_id"]), None)

    def _show(self, rollout: Mapping[str, Any] | None) -> None:
        if rollout is None:
            return
        for step in rollout["steps"][self._shown :]:
            self._say(step["text"])
            self._next_line = time.monotonic() + _LINE_INTERVAL_S
        self._shown = max(self._shown, len(rollout["steps"]))
        if rollout["state"] in {"observing", "watching"} and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_INTERVAL_S
            total_s = rollout["canary_s"] if rollout["state"] == "observing" else rollout["watch_s"]
            done_s = rollout["observed_s"]
            if rollout["state"] == "watching":
                done_s = max(0.0, total_s - ((rollout["watch_until"] or 0.0) - time.time()))
            self._say(f"{rollout['state']} {done_s:.0f} s of {total_s:.0f} s")

    def _say(self, text: str) -> None:
        print(f"{output.clean(self._name)}: {output.clean(text)}", file=sys.stderr, flush=True)


def _print(rollout: Mapping[str, Any]) -> None:
    """The comparison and the verdict."""
    if rollout["comparison"]:
        rows = [[one["signal"], one["old"], one["new"], _verdict(one)] for one in rollout["comparison"]]
        print(output.table(("SIGNAL", "OLD", "NEW", "VERDICT"), rows, width=output.terminal_width(), keep=("VERDICT",)))
    name = output.clean(rollout["name"])
    old, new = (output.short_id(rollout[side]["digest"]) for side in ("from", "to"))
    words = {
        "done": f"{name} has changed from {old} to {new}",
        "rolled_back": f"{name} was changed to {new} and back to {old}",
    }
    verdict = words.get(rollout["state"], f"{name} stays with {old} ({rollout['state']})")
    print(verdict + (f": {output.clean(rollout['detail'])}" if rollout["detail"] else ""))
    for path in rollout.get("evidence", ()):
        print(f"what was thrown away is kept as it was in {output.clean(path)}")


def _triggers(text: str) -> list[str]:
    found = text.split(",")
    for one in found:
        if one not in TRIGGERS:
            raise ValueError(f"there is no {one!r}; write {', '.join(TRIGGERS)}")
    return found
