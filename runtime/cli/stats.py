"""`stats`: what containers use, from the exporter."""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.parse

from runtime.cli import output
from runtime.client import ClientError, setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

DEFAULT_URL = "http://127.0.0.1:9720"
TIMEOUT_S = 10.0
REFRESH_S = 2.0
ANSWER_LIMIT_BYTES = 64 << 20
NO_VALUE = "--"
HEADERS = (
    "CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS", "OVERHEAD",
)  # fmt: skip

SORTED_BY = {
    "cpu": ("cpu_ratio",), "mem": ("memory_bytes",), "net": ("network_rx_bytes", "network_tx_bytes"),
    "block": ("block_read_bytes", "block_write_bytes"), "pids": ("pids",), "overhead": ("overhead_bytes",),
}  # fmt: skip

FIELDS = {
    "Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
    "Overhead": "OVERHEAD",
}  # fmt: skip


def stats_arguments(parser: Parser) -> None:
    """`hyper stats`."""
    parser.description = (
        "Show what containers use. OVERHEAD is the memory that the VM takes beside its container:\n"
        "the guest's kernel and QEMU, without what it shares with its template."
    )
    parser.add_argument("refs", metavar="CONTAINER", nargs="*", help="name, id, or beginning of an id (default: all)")
    parser.add_argument("-a", "--all", action="store_true", help="also those that do not run")
    parser.add_argument("--no-stream", action="store_true", help="once, instead of again and again")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_argument(
        "--sort", choices=("name", *SORTED_BY), default="name", metavar="COLUMN",
        help=f"the most first, by {', '.join(SORTED_BY)}; or by name (default)",
    )  # fmt: skip
    parser.add_template()


def stats(args: argparse.Namespace, client: Client) -> int:
    """Show what containers use, once or until Ctrl-C."""
    del client  # the exporter knows, not the daemon
    url = setting("exporter_url", DEFAULT_URL)
    while True:
        found = _ranked(_choose(_fetch(url), args.refs, everything=args.all), args.sort)
        if args.format == "json":
            output.print_json({"containers": found})
        elif args.format != "table":
            from runtime.cli.containers import show  # here: few need templates

            show(args.format, FIELDS, [_fields(one, full=args.no_trunc) for one in found])
            sys.stdout.flush()
        else:
            width = None if args.no_trunc else output.terminal_width()
            rows = [_row(one, full=args.no_trunc) for one in found]
            text = output.table(HEADERS, rows, width=width, keep=("CONTAINER ID", "CPU %", "MEM USAGE / LIMIT"))
            again = not args.no_stream and sys.stdout.isatty()
            print(f"\x1b[H\x1b[2J{text}" if again else text, flush=True)
        if args.no_stream:
            return 0
        time.sleep(REFRESH_S)


def _fetch(url: str) -> list[dict[str, Any]]:
    wrong = ClientError(f"exporter_url {url!r} is not http://host:port")
    try:
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
    except (ValueError, http.client.InvalidURL) as err:  # a port that is none, a blank in the name
        raise wrong from err
    if parts.scheme != "http" or not parts.hostname:
        raise wrong
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/stats")
        response = connection.getresponse()
        content = response.read(ANSWER_LIMIT_BYTES)
        if response.status != 200:
            raise ClientError(f"the exporter at {url} answered {response.status} {response.reason}; see its log")
        return list(json.loads(content)["containers"])
    except (OSError, http.client.HTTPException) as err:
        raise ClientError(
            f"hyper-exporter cannot be reached at {url} ({err or type(err).__name__});"
            " start it with: systemctl start hyper-exporter, or: hyper-exporter"
        ) from err
    except (ValueError, KeyError, TypeError) as err:
        raise ClientError(f"the answer of {url}/stats is not that of hyper-exporter: check exporter_url") from err
    finally:
        connection.close()


def _choose(found: list[dict[str, Any]], refs: list[str], *, everything: bool) -> list[dict[str, Any]]:
    if not refs:
        return [one for one in found if everything or one["state"] in ("running", "paused", "stopping")]
    chosen = []
    for ref in refs:
        matching = [one for one in found if one["name"] == ref] or [one for one in found if one["id"].startswith(ref)]
        if not matching:
            raise ClientError(f"the exporter knows no container {ref}; see: hyper ps -a")
        if len(matching) > 1:
            raise ClientError(f"{len(matching)} containers have an id that begins with {ref}: write more of it")
        chosen += matching
    return chosen


def _ranked(found: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """The containers with the most first; those of which it is not known last."""
    members = SORTED_BY.get(column)
    if members is None:
        return found

    def amount(one: Mapping[str, Any]) -> float:
        known = [one[member] for member in members if one.get(member) is not None]
        return sum(known) if known else -1.0

    return sorted(found, key=amount, reverse=True)


def _row(one: Mapping[str, Any], *, full: bool) -> list[str]:
    used, limit = one.get("memory_bytes"), one.get("memory_limit_bytes")
    return [
        one["id"] if full else output.short_id(one["id"]),
        one["name"],
        _percent(one.get("cpu_ratio")),
        f"{_binary(used)} / {_binary(limit)}",
        _percent(used / limit if used is not None and limit else None),
        f"{_decimal(one.get('network_rx_bytes'))} / {_decimal(one.get('network_tx_bytes'))}",
        f"{_decimal(one.get('block_read_bytes'))} / {_decimal(one.get('block_write_bytes'))}",
        NO_VALUE if one.get("pids") is None else str(int(one["pids"])),
        _binary(one.get("overhead_bytes")),
    ]


def _fields(one: Mapping[str, Any], *, full: bool) -> dict[str, Any]:
    identity, *rest = _row(one, full=full)
    return {**dict(zip(FIELDS, [one["name"], identity, *rest], strict=True)), "Name": one["name"]}


def _percent(ratio: float | None) -> str:
    return NO_VALUE if ratio is None else f"{ratio * 100:.2f}%"


def _binary(size_bytes: float | None) -> str:
    return NO_VALUE if size_bytes is None else output.binary_size(size_bytes)


def _decimal(size_bytes: float | None) -> str:
    return NO_VALUE if size_bytes is None else output.decimal_size(size_bytes)
