"""`remediation ls`, `stop`, `resume` and `approve`: what hyper-remediation decided, and what people tell it."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import time
import urllib.parse

from runtime.cli import output
from runtime.cli.arguments import option, whole
from runtime.client import ClientError, setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

DEFAULT_LISTEN = "127.0.0.1:9721"
DEFAULT_DATA_DIR = "/var/lib/hyper"
TIMEOUT_S = 10.0
ANSWER_LIMIT_BYTES = 64 << 20
MAX_LINES = 1000
HEADERS = ("ID", "TIME", "CONTAINER", "DECISION", "ACTION", "REASON", "OUTCOME", "DETAIL")
SHORT_ID = 8


def remediation_ls_arguments(parser: Parser) -> None:
    """`hyper remediation ls`."""
    parser.add_argument(
        "-n", "--limit", type=option("--limit", whole), default=20, metavar="N", help="so many at most (default: 20)"
    )
    parser.add_argument("--container", metavar="NAME", help="of this container alone")
    parser.add_argument("--waiting", action="store_true", help="only what waits for a person's approval")
    parser.add_format()


def remediation_ls(args: argparse.Namespace, client: Client) -> int:
    """Show decisions with their outcomes, the newest first."""
    del client  # the controller knows, not the daemon
    if args.waiting:
        lines = _call("GET", "/waiting")
    else:
        query = {"limit": MAX_LINES} | ({"container": args.container} if args.container else {})
        lines = _call("GET", f"/audit?{urllib.parse.urlencode(query)}")
    outcomes = {line["id"]: line for line in lines if line["kind"] == "outcome"}
    decisions = [
        {**line, "outcome": outcomes.get(line["id"])}
        for line in lines
        if line["kind"] == "decision" and args.container in (None, line["container"])
    ][: args.limit]
    if args.format == "json":
        output.print_json(decisions)
    else:
        rows = [_row(one) for one in decisions]
        print(output.table(HEADERS, rows, width=output.terminal_width(), keep=HEADERS[:-1]))
    return 0


def remediation_stop_arguments(parser: Parser) -> None:
    """`hyper remediation stop`."""
    parser.add_argument("--reason", default="", help="stands in the audit")


def remediation_stop(args: argparse.Namespace, client: Client) -> int:
    """Set the stop switch: nothing is done from now on, what is under way ends."""
    del client
    _call("POST", "/stop", {"actor": _user(), "reason": args.reason})
    return 0


def remediation_resume_arguments(parser: Parser) -> None:
    """`hyper remediation resume`."""
    remediation_stop_arguments(parser)


def remediation_resume(args: argparse.Namespace, client: Client) -> int:
    """Lift the stop switch."""
    del client
    _call("POST", "/resume", {"actor": _user(), "reason": args.reason})
    return 0


def remediation_approve_arguments(parser: Parser) -> None:
    """`hyper remediation approve`."""
    parser.add_argument("id", metavar="ID", help="of a decision that waits, or the beginning of it")


def remediation_approve(args: argparse.Namespace, client: Client) -> int:
    """Have done what a dry run proposed."""
    del client
    intent = _call("POST", f"/approve/{urllib.parse.quote(args.id, safe='')}", {"actor": _user()})
    print(f"{intent['id']} {output.clean(str(intent['action']))} {output.clean(str(intent['container']))}")
    return 0


def _row(one: dict[str, Any]) -> list[str]:
    outcome = one["outcome"] or {}
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["time"]))
    detail = outcome.get("detail") or one["detail"]
    words = (
        one["id"][:SHORT_ID], began, one["container"] or "-", one["verdict"], one["action"] or "-", one["reason"],
        outcome.get("outcome") or "-", detail,
    )  # fmt: skip
    return [output.clean(str(word)) for word in words]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _call(method: str, path: str, body: dict[str, str] | None = None) -> Any:
    listen = setting("remediation_listen", DEFAULT_LISTEN)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ClientError(f"remediation_listen {listen!r} is not host:port")
    headers = {"Content-Type": "application/json"}
    token_file = setting("remediation_token_file", "")
    if token_file:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=TIMEOUT_S)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        answer = json.loads(response.read(ANSWER_LIMIT_BYTES))
        if response.status >= 300:
            raise ClientError(f"hyper-remediation: {answer['error']['message']}")
    except (OSError, http.client.HTTPException) as err:
        switch = f"{setting('data_dir', DEFAULT_DATA_DIR)}/remediation.stop"
        raise ClientError(
            f"hyper-remediation cannot be reached at {listen} ({err or type(err).__name__}); start it with:"
            f" hyper-remediation. Its stop switch is a file: touch {switch}"
        ) from err
    except (ValueError, KeyError, TypeError) as err:
        raise ClientError(f"the answer of {listen} is not that of hyper-remediation: check remediation_listen") from err
    finally:
        connection.close()
    return answer


def _token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:  # noqa: PTH123 -- pathlib would slow every start
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ClientError(f"remediation_token_file {path} cannot be read: {err}") from err
