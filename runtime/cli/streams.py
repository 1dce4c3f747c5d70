"""`logs` and `exec`: what containers write, apart on stdout and stderr, and what they read."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from runtime.cli import arguments
from runtime.client import ApiError, ClientError
from runtime.logs import EVENT, STDERR, Decoder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from runtime.client import Client

READ_BYTES = 32 << 10


class Writer:
    """Writes records to stdout and stderr as raw bytes; remembers the exit code that the last of them tells."""

    def __init__(self, *, timestamps: bool = False) -> None:
        self._outputs: dict[bool, BinaryIO] = {True: sys.stderr.buffer, False: sys.stdout.buffer}
        self._timestamps = timestamps
        self._at_line_start = {True: True, False: True}
        self.exit_code: int | None = None

    def copy(self, pieces: Iterable[bytes]) -> None:
        """Write all records; each piece that has come is flushed."""
        decoder = Decoder()
        for piece in pieces:
            for record in decoder.feed(piece):
                if record.kind == EVENT:
                    event = record.event()
                    code = event.get("exit_code")
                    if event.get("event") == "exited" and isinstance(code, int):
                        self.exit_code = code
                else:
                    self._write(record.kind == STDERR, record.payload, record.time_ns)
            for stream in self._outputs.values():
                stream.flush()

    def _write(self, is_error: bool, payload: bytes, time_ns: int) -> None:
        if self._timestamps:
            payload = self._stamp(is_error, payload, time_ns)
        self._outputs[is_error].write(payload)

    def _stamp(self, is_error: bool, payload: bytes, time_ns: int) -> bytes:
        """Begin each line with the time of the read in which it began."""
        seconds, nanoseconds = divmod(time_ns, 10**9)
        try:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        except (OverflowError, ValueError, OSError):  # a time that only a hostile guest has
            text = "9999-12-31T23:59:59"
        stamp = f"{text}.{nanoseconds:09d}Z ".encode()
        parts = []
        for line in _lines(payload):
            if self._at_line_start[is_error]:
                parts.append(stamp)
            parts.append(line)
            self._at_line_start[is_error] = line.endswith(b"\n")
        return b"".join(parts)


def _lines(payload: bytes) -> Iterator[bytes]:
    """Lines with their newlines; unlike `splitlines`, a carriage return ends none."""
    begin = 0
    while begin < len(payload):
        end = payload.find(b"\n", begin) + 1 or len(payload)
        yield payload[begin:end]
        begin = end


def logs_arguments(parser: arguments.Parser) -> None:
    """`hyper logs`."""
    parser.add_refs(many=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container stops")
    parser.add_argument(
        "-n",
        "--tail",
        type=arguments.option("--tail", arguments.count),
        help="only the last so many lines (default: all)",
    )
    parser.add_argument("--since", type=arguments.option("--since", arguments.seconds), help="seconds since 1970")
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin each line with its time (UTC)")


def logs(args: argparse.Namespace, client: Client) -> int:
    """Show what a container wrote."""
    pieces = client.logs(args.ref, follow=args.follow, tail=args.tail, since=args.since)
    Writer(timestamps=args.timestamps).copy(pieces)
    return 0


def exec_arguments(parser: arguments.Parser) -> None:
    """`hyper exec`."""
    parser.add_argument("-i", "--interactive", action="store_true", help="send our stdin to it")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    add_environment(parser)
    parser.add_argument("-w", "--workdir", help="directory to start in")
    parser.add_argument("-u", "--user", help="NAME or UID, and :GROUP or :GID")
    parser.add_refs(many=False)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("args", metavar="ARG", nargs="...")


def exec(args: argparse.Namespace, client: Client) -> int:  # noqa: A001 -- the subcommand's name
    """Run a command in a container; ends with its exit code."""
    rows, cols = terminal_size()
    spec = {
        "args": [args.command, *args.args],
        "env": environment(args),
        "cwd": args.workdir,
        "user": args.user,
        "tty": args.tty,
        "stdin": args.interactive,
        "rows": rows,
        "cols": cols,
    }
    session = client.exec(args.ref, spec)
    writer = Writer()
    with raw_terminal(enabled=args.tty and args.interactive):
        if args.interactive:
            send_stdin(lambda data: client.session_input(session, data))
        writer.copy(client.session_output(session))
    if writer.exit_code is None:
        raise ClientError("the connection to the command was lost before it ended; it may still be running")
    return writer.exit_code


def send_stdin(send: Callable[[Iterator[bytes]], None]) -> None:
    """Send our stdin in the background, to its end or ours."""

    def run() -> None:
        try:
            send(_stdin())
        except ApiError as err:
            if err.status not in (404, 409):  # it has ended and wants no more
                print(f"hyper: stdin: {err}", file=sys.stderr)
        except ClientError:
            return  # the output's end says the same, and better

    threading.Thread(target=run, daemon=True).start()


def _stdin() -> Iterator[bytes]:
    while data := os.read(0, READ_BYTES):
        yield data


@contextmanager
def raw_terminal(*, enabled: bool) -> Iterator[None]:
    """Pass every key on as it is, Ctrl-C as well; only where stdin is a terminal."""
    if not enabled or not os.isatty(0):
        yield
        return
    import termios  # here: few need them
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of our terminal; 24 and 80 if we have none."""
    for descriptor in (0, 1, 2):
        try:
            size = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if size.lines > 0 and size.columns > 0:
            return size.lines, size.columns
    return 24, 80


def add_environment(parser: arguments.Parser) -> None:
    """`-e` and `--env-file`."""
    parser.add_argument(
        "-e", "--env", action="append", default=[], type=arguments.option("--env", arguments.variable),
        help="NAME=VALUE, or NAME for our own value of it",
    )  # fmt: skip
    parser.add_argument(
        "--env-file", action="append", default=[], type=arguments.option("--env-file", arguments.variables),
        help="file of such lines",
    )  # fmt: skip


def environment(args: argparse.Namespace) -> list[str]:
    """The variables of both options; `-e` wins over files."""
    given = [value for file in args.env_file for value in file] + [value for value in args.env if value is not None]
    return list({value.partition("=")[0]: value for value in given}.values())
