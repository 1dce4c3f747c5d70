"""`attach`, and standing for a container in the foreground: its output, our stdin, signals, the terminal."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

from runtime.cli import arguments, terminal
from runtime.cli.output import clean
from runtime.cli.streams import Writer, add_detach_keys, resize, returned, send_stdin
from runtime.client import ApiError, ClientError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from types import FrameType

    from runtime.client import Client, Records

INTERRUPTS_BEFORE_LEAVING = 3
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Attachment:
    """How we stand for a container. `tty` and `stdin` are what it has and we take part in."""

    def __init__(
        self,
        *,
        tty: bool,
        stdin: bool,
        close_stdin: bool = True,
        outputs: tuple[str, ...] = ("stdout", "stderr"),
        sig_proxy: bool = True,
        detach_keys: bytes = terminal.DEFAULT_DETACH_KEYS,
    ) -> None:
        self.tty = tty
        self.stdin = stdin
        self.close_stdin = close_stdin
        self.outputs = outputs
        self.sig_proxy = sig_proxy
        self.detach_keys = detach_keys


def attend(
    client: Client,
    ref: str,
    how: Attachment,
    *,
    start: Callable[[], object] | None = None,
    from_start: bool = False,
    to_vm_end: bool = True,
) -> int | None:
    """Stand for a container until it ends; returns its exit code, or None if the detach keys were typed.

    With `start` we are attached before that is called, so that no output is missed; `from_start` is for a container
    that was just started for the first time, and shows all that it wrote. Otherwise output is shown from now on.
    """
    check_stdin(how)
    writer = Writer(outputs=how.outputs)
    keys = terminal.KeyFilter(how.detach_keys) if how.tty else None
    current = client.attach(ref, 0 if from_start else None)
    if start is not None:
        start()

    def begin(offset: int | None) -> Records:
        nonlocal current
        current = current if offset is None else client.attach(ref, offset)
        return current

    # A container with a terminal gets its signals as keys.
    with (
        _passing_signals(client, ref, enabled=how.sig_proxy and not how.tty),
        terminal.raw(enabled=how.tty and how.stdin),
        terminal.following_size(
            lambda *size: resize(client.resize, ref, *size), enabled=how.tty, redraw=not from_start
        ),
    ):
        if how.stdin:
            send_stdin(
                lambda data: client.input(ref, data, close=how.close_stdin),
                keys,
                lambda: current.break_off(),
                client.ping if how.tty else None,
            )
        try:
            writer.follow(begin, over=lambda: keys is not None and keys.detached, to_vm_end=to_vm_end)
        except DaemonUnreachable:
            if keys is None or not keys.detached:
                raise
        if keys is not None and keys.detached:
            return None
        if writer.ended and not to_vm_end:
            return writer.exit_code
        ended = returned(lambda: client.wait(ref))
    if ended.get("error"):
        print(f"hyper: {clean(str(ended['error']))}", file=sys.stderr)
    code = ended.get("exit_code")
    if code is None:
        code = writer.exit_code
    return 125 if code is None else int(code)


def of_run(args: argparse.Namespace) -> Attachment:
    """What the options of `run` say.

    Raises:
        ClientError: they exclude each other, or our stdin is no terminal.
    """
    if args.detach and args.attach:
        raise ClientError("-d and -a exclude each other: leave one of them out")
    chosen = tuple(args.attach) or ("stdin", "stdout", "stderr")
    how = Attachment(
        tty=args.tty,
        stdin=args.interactive and "stdin" in chosen,
        outputs=tuple(name for name in ("stdout", "stderr") if name in chosen),
        sig_proxy=args.sig_proxy,
        detach_keys=args.detach_keys,
    )
    if not args.detach:
        check_stdin(how)
    return how


def output(text: str) -> str:
    """The name of a standard stream.

    Raises:
        ValueError: it is none.
    """
    name = text.lower()
    if name not in {"stdin", "stdout", "stderr"}:
        raise ValueError("write stdin, stdout or stderr")
    return name


def check_stdin(how: Attachment) -> None:
    """Refuse to treat as a terminal what is none.

    Raises:
        ClientError: it is none.
    """
    if how.tty and how.stdin and not os.isatty(0):
        raise ClientError("-t with -i needs a terminal as our stdin, and it is none: leave -t out")


def add_sig_proxy(parser: arguments.Parser) -> None:
    """`--sig-proxy`."""
    parser.add_switch("--sig-proxy", default=True, text="pass signals on to it (default; with -t keys do that)")


def attach_arguments(parser: arguments.Parser) -> None:
    """`hyper attach`."""
    parser.add_argument("--no-stdin", action="store_true", help="do not send our stdin to it")
    add_detach_keys(parser)
    add_sig_proxy(parser)
    parser.add_refs(many=False)


def attach(args: argparse.Namespace, client: Client) -> int:
    """Stand for a container that runs; ends with its exit code, or 0 after the detach keys."""
    found = client.container(args.ref)
    name = clean(str(found["name"]))
    if found["state"] == "paused":
        raise ClientError(f"{name} is paused: let it go on first (hyper unpause {name})")
    if found["state"] != "running":
        raise ClientError(f"{name} is not running: start it, and attach to it, with: hyper start -ai {name}")
    spec = found["spec"]
    how = Attachment(
        tty=spec["tty"],
        stdin=spec["stdin"] and not args.no_stdin,
        close_stdin=False,  # others may want to go on with it
        sig_proxy=args.sig_proxy,
        detach_keys=args.detach_keys,
    )
    return attend(client, found["id"], how) or 0


@contextmanager
def _passing_signals(client: Client, ref: str, *, enabled: bool) -> Iterator[None]:
    """Signals that we get are the container's; but the third Ctrl-C leaves it to itself."""
    if not enabled:
        yield
        return
    interrupts = 0

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        nonlocal interrupts
        interrupts += number in {signal.SIGINT, signal.SIGTERM}
        if interrupts >= INTERRUPTS_BEFORE_LEAVING:
            print(f"hyper: leaving it to run; stop it with: hyper stop {ref[:12]}", file=sys.stderr)
            raise KeyboardInterrupt
        import threading  # here: few need it

        # In a thread: the main one is in the middle of reading, perhaps holding a lock.
        threading.Thread(target=_signal, args=(client, ref, number), daemon=True).start()

    before = {number: signal.signal(number, forward) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(client: Client, ref: str, number: int) -> None:
    try:
        client.kill(ref, signal.Signals(number).name.removeprefix("SIG"))
    except ApiError as err:
        if err.status not in (404, 409):  # it ends just now
            print(f"hyper: the signal was not passed on: {clean(str(err))}", file=sys.stderr)
    except ClientError as err:
        print(f"hyper: the signal was not passed on: {err}", file=sys.stderr)
