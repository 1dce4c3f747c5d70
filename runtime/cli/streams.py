"""`logs` and `exec`: what containers write, apart on stdout and stderr, and what they read."""

from __future__ import annotations

import os
import sys
import time

from runtime.cli import arguments, terminal
from runtime.client import ApiError, ClientError, DaemonUnreachable
from runtime.logs import EVENT, HEADER, STDERR, Decoder, LogRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO, TypeVar

    from runtime.client import Client, Records

    T = TypeVar("T")

READ_BYTES = 48 << 10  # hyperd takes so much at once, and sees meanwhile whether we are still there
RETURN_TIMEOUT_S = 60.0
RETURN_POLL_S = 0.1


class Writer:
    """Writes records to stdout and stderr as raw bytes; remembers the exit code that the last of them tells.

    `ended`: the guest said that the container has ended, which is the last that it says.
    """

    def __init__(self, *, timestamps: bool = False, outputs: Iterable[str] = ("stdout", "stderr")) -> None:
        given = {"stdout": (False, sys.stdout.buffer), "stderr": (True, sys.stderr.buffer)}
        self._outputs: dict[bool, BinaryIO] = dict(given[name] for name in outputs)
        self._timestamps = timestamps
        self._at_line_start = {True: True, False: True}
        self._missed = 0
        self.exit_code: int | None = None
        self.ended = False
        self.offset: int | None = None

    def copy(self, records: Records, *, to_vm_end: bool = True) -> None:
        """Write all records; each piece that has come is flushed. `offset` is kept at what has been written."""
        decoder = Decoder()
        received, self._missed = 0, 0
        for piece in records:
            received += len(piece)
            for record in decoder.feed(piece):
                self._take(record)
            for stream in self._outputs.values():
                stream.flush()
            if records.offset is not None:
                self.offset = records.offset + received + self._missed - decoder.pending
            if self.ended and not to_vm_end:
                return

    def follow(
        self,
        begin: Callable[[int | None], Records],
        *,
        over: Callable[[], bool] = lambda: False,
        to_vm_end: bool = True,
    ) -> None:
        """Write a log as it grows. If hyperd goes away, wait until it is back, and go on where it broke off.

        Without `to_vm_end` it is enough that the container has `ended`; its VM then goes on for some milliseconds.

        Raises:
            DaemonUnreachable: it does not come back in time, or `over` says that this is no accident.
        """
        records = begin(None)
        while True:
            self.offset = records.offset
            try:
                self.copy(records, to_vm_end=to_vm_end)
            except DaemonUnreachable:
                if over() or self.offset is None:
                    raise
                print("hyper: hyperd has gone; waiting for it to come back", file=sys.stderr)
                records = returned(lambda: begin(self.offset))
            else:
                return

    def _take(self, record: LogRecord) -> None:
        if record.kind != EVENT:
            if (record.kind == STDERR) in self._outputs:
                self._write(record.kind == STDERR, record.payload, record.time_ns)
            return
        event = record.event()
        code, missed = event.get("exit_code"), event.get("bytes")
        if event.get("event") == "exited" and isinstance(code, int):
            self.exit_code = code
            self.ended = event.get("error") is None
        elif event.get("event") == "cut" and isinstance(missed, int):
            self._missed += missed - HEADER.size - len(record.payload)
            print(f"hyper: {missed} bytes of the log were cut away before they could be read", file=sys.stderr)

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


def returned(ask: Callable[[], T]) -> T:
    """What hyperd answers as soon as it is there again."""
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    while True:
        try:
            return ask()
        except DaemonUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETURN_POLL_S)


def _lines(payload: bytes) -> Iterator[bytes]:
    """Lines with their newlines; unlike `splitlines`, a carriage return ends none."""
    begin = 0
    while begin < len(payload):
        end = payload.find(b"\n", begin) + 1 or len(payload)
        yield payload[begin:end]
        begin = end


def logs_arguments(parser: arguments.Parser) -> None:
    """`hyper logs`."""
    from runtime.cli import moments  # here: only this command has them

    parser.add_refs(many=False)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the container stops")
    parser.add_argument(
        "-n",
        "--tail",
        type=arguments.option("--tail", arguments.count),
        help="only the last so many lines (default: all)",
    )
    for name, what in (("--since", "only what was written since"), ("--until", "only what was written until")):
        parser.add_argument(
            name, type=arguments.option(name, moments.seconds), metavar="TIME",
            help=f"{what}: 2026-01-31T12:00:00Z, 10m (ago), or seconds since 1970",
        )  # fmt: skip
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin each line with its time (UTC)")


def logs(args: argparse.Namespace, client: Client) -> int:
    """Show what a container wrote."""

    def begin(offset: int | None) -> Records:
        if offset is None:
            return client.logs(args.ref, follow=args.follow, tail=args.tail, since=args.since, until=args.until)
        return client.logs(args.ref, follow=args.follow, until=args.until, offset=offset)

    Writer(timestamps=args.timestamps).follow(begin)
    return 0


def exec_arguments(parser: arguments.Parser) -> None:
    """`hyper exec`."""
    parser.add_argument("-i", "--interactive", action="store_true", help="send our stdin to it")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="leave it to run; what it writes is thrown away")
    add_detach_keys(parser)
    add_environment(parser)
    add_process(parser)
    parser.add_refs(many=False)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("args", metavar="ARG", nargs="...")


def exec(args: argparse.Namespace, client: Client) -> int:  # noqa: A001 -- the subcommand's name
    """Run a command in a container; ends with its exit code."""
    rows, cols = terminal.size()
    if args.detach and args.interactive:
        raise ClientError("-d and -i exclude each other: nobody would send it anything")
    if args.tty and args.interactive and not os.isatty(0):
        raise ClientError("-t with -i needs a terminal as our stdin, and it is none: leave -t out")
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
    if args.detach:
        client.leave_session(session)
        return 0
    writer = Writer()
    records = client.session_output(session)
    keys = terminal.KeyFilter(args.detach_keys) if args.tty else None
    with (
        terminal.raw(enabled=args.tty and args.interactive),
        terminal.following_size(lambda *size: resize(client.session_resize, session, *size), enabled=args.tty),
    ):
        if args.interactive:
            send_stdin(lambda data: client.session_input(session, data), keys, records.break_off)
        try:
            writer.copy(records)
        except DaemonUnreachable:
            if keys is None or not keys.detached:
                raise
    if keys is not None and keys.detached:
        return 0
    if writer.exit_code is None:
        raise ClientError("the connection to the command was lost before it ended; it may still be running")
    return writer.exit_code


def resize(call: Callable[[str, int, int], None], ref: str, rows: int, cols: int) -> None:
    """Pass the size of our terminal on; what has just ended, or has not begun, has none."""
    try:
        call(ref, rows, cols)
    except ClientError:
        return  # the end of the output says the same, and better


def send_stdin(
    send: Callable[[Iterator[bytes]], None],
    keys: terminal.KeyFilter | None = None,
    detach: Callable[[], None] = lambda: None,
    again: Callable[[], object] | None = None,
) -> threading.Thread:
    """Send our stdin in the background, to its end or ours; call `detach` when the detach keys were typed.

    With `again`, which asks whether hyperd is there, we go on when it has come back: what was on its way then is lost,
    which is for whoever types, not for files.
    """
    import threading  # here: few need it

    def run() -> None:
        while True:
            try:
                send(_stdin(keys))
            except _Detached:
                detach()
            except ApiError as err:
                if err.status not in (404, 409, 502):  # it has ended and wants no more
                    print(f"hyper: stdin: {err}", file=sys.stderr)
            except ClientError:
                if again is not None:
                    returned(again)
                    continue
                # Without `again` the output breaks off as well, and says so.
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class _Detached(Exception):  # noqa: N818 -- no error, but the way out of sending
    """The detach keys were typed: stdin is left open."""


def _stdin(keys: terminal.KeyFilter | None) -> Iterator[bytes]:
    while data := _read():
        passed = data if keys is None else keys.feed(data)
        if passed:
            yield passed
        if keys is not None and keys.detached:
            raise _Detached


def _read() -> bytes:
    try:
        return os.read(0, READ_BYTES)
    except OSError as err:  # a terminal that has gone, or what is open for writing alone: nothing comes
        print(f"hyper: stdin cannot be read: {err.strerror}", file=sys.stderr)
        return b""


def add_detach_keys(parser: arguments.Parser) -> None:
    """`--detach-keys`."""
    parser.add_argument(
        "--detach-keys", default=terminal.DEFAULT_DETACH_KEYS, metavar="KEYS",
        type=arguments.option("--detach-keys", terminal.detach_keys),
        help="with -t, these keys leave it to run (default: ctrl-p,ctrl-q)",
    )  # fmt: skip


def add_environment(parser: arguments.Parser) -> None:
    """`-e` and `--env-file`."""
    parser.add_argument(
        "-e", "--env", action="append", default=[], type=arguments.option("--env", arguments.variable_or_name),
        help="NAME=VALUE, or NAME for our own value of it",
    )  # fmt: skip
    parser.add_argument(
        "--env-file", action="append", default=[], type=arguments.option("--env-file", arguments.variables),
        help="file of such lines",
    )  # fmt: skip


def add_process(parser: arguments.Parser) -> None:
    """Where a program runs, and as whom."""
    directory = arguments.option("--workdir", arguments.directory)
    parser.add_argument("-w", "--workdir", type=directory, help="directory to start in")
    user = arguments.option("--user", arguments.user)
    parser.add_argument("-u", "--user", type=user, help="NAME or UID, and :GROUP or :GID")


def environment(args: argparse.Namespace) -> list[str]:
    """The variables of both options; `-e` wins over files. With `-t` our own TERM, as the terminal is ours.

    A name alone, of which we have no value, is to be taken away.
    """
    given = [value for file in args.env_file for value in file] + args.env
    if args.tty and os.environ.get("TERM"):
        given.insert(0, f"TERM={os.environ['TERM']}")
    return list({value.partition("=")[0]: value for value in given}.values())
