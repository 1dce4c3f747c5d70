"""`pull`, `push`, `save`, `load`: images on their way, with progress."""

from __future__ import annotations

import contextlib
import os
import sys

from runtime.cli import output, registry
from runtime.cli.arguments import option, platform
from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from typing import IO, Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

BAR_WIDTH = 30
PIECE_BYTES = 1 << 20


def pull_arguments(parser: Parser) -> None:
    """`hyper pull`."""
    parser.add_argument("reference", metavar="IMAGE", help="such as nginx, host:5000/name:tag, name@sha256:…")
    parser.add_argument("--platform", type=option("--platform", platform), help="linux/amd64: there is no other")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    registry.add_options(parser)


def pull(args: argparse.Namespace, client: Client) -> int:
    """Fetch an image; prints its digest and canonical reference."""
    headers = registry.headers([registry.registry_of(args.reference)], args.authfile)
    more = registry.body(args)
    events = client.pull(args.reference, more.pop("tls_verify"), headers=headers, **more)
    image = follow(events, args.reference, "pull", quiet=args.quiet)["image"]
    if not args.quiet:
        print(f"Digest: {image['digest']}")
    print(output.clean(args.reference))
    return 0


def push_arguments(parser: Parser) -> None:
    """`hyper push`."""
    parser.add_argument("reference", metavar="IMAGE", help="host:5000/name:tag, as `hyper tag` has named it")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    registry.add_options(parser)


def push(args: argparse.Namespace, client: Client) -> int:
    """Send an image to its registry; prints its digest, which is the same there."""
    headers = registry.headers([registry.registry_of(args.reference)], args.authfile)
    body = {"reference": args.reference, **registry.body(args)}
    events = client.steps("/v1/images/push", body, headers)
    image = follow(events, args.reference, "push", quiet=args.quiet)["image"]
    if not args.quiet:
        print(f"Digest: {image['digest']}")
    print(output.clean(args.reference))
    return 0


def save_arguments(parser: Parser) -> None:
    """`hyper save`."""
    parser.add_argument("references", metavar="IMAGE", nargs="+", help="a reference, or the beginning of a digest")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout, if that is no terminal")
    parser.add_argument(
        "--format", choices=("docker-archive", "oci-archive"), default="docker-archive",
        help="docker-archive can be read as both (default)",
    )  # fmt: skip


def save(args: argparse.Namespace, client: Client) -> int:
    """Write images into an archive; the file is there when it is whole."""
    if args.output is None:
        if sys.stdout.isatty():
            raise ClientError("will not write an archive to a terminal; give -o FILE")
        for piece in client.save(args.references, args.format):
            sys.stdout.buffer.write(piece)
        return 0
    target = _target(args.output)
    staged = f"{target}.{os.getpid()}.tmp"
    pieces = client.save(args.references, args.format)
    try:
        first = next(pieces, b"")  # what cannot be saved is said here, before there is a file
        with open(staged, "xb") as file:  # noqa: PTH123 -- pathlib would slow every start
            file.write(first)
            for piece in pieces:
                file.write(piece)
        os.replace(staged, target)  # noqa: PTH105 -- as above
    except OSError as err:
        raise ClientError(f"--output {args.output}: it cannot be written: {err.strerror}") from err
    finally:
        with contextlib.suppress(OSError):
            os.unlink(staged)  # noqa: PTH108 -- as above
    return 0


def _target(path: str) -> str:
    """Where the archive goes, links followed: what is renamed to it would take the place of a link, or of a device.

    Raises:
        ClientError: what is there is no regular file.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 -- pathlib would slow every start
        raise ClientError(f"--output {path}: it is no regular file; name one, or leave -o out and redirect stdout")
    return os.path.realpath(path)


def load_arguments(parser: Parser) -> None:
    """`hyper load`."""
    parser.add_argument("-i", "--input", metavar="FILE", help="default: stdin, if that is no terminal")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def load(args: argparse.Namespace, client: Client) -> int:
    """Take in the images of an archive: tar, plain or compressed, of docker, podman, skopeo, or `hyper save`."""
    if args.input is None and sys.stdin.isatty():
        raise ClientError("there is no archive on a terminal; give -i FILE")
    try:
        with contextlib.ExitStack() as stack:
            source = sys.stdin.buffer
            if args.input is not None:
                source = stack.enter_context(open(args.input, "rb"))  # noqa: PTH123 -- pathlib would slow every start
            pieces = iter(lambda: source.read(PIECE_BYTES), b"")
            events = client.steps("/v1/images/load", upload=pieces)
            loaded = follow(events, args.input or "stdin", "load", quiet=args.quiet)["images"]
    except OSError as err:
        raise ClientError(f"--input {args.input or 'stdin'}: it cannot be read: {err.strerror}") from err
    for image in loaded:
        for reference in image["references"]:
            print(f"Loaded image: {output.clean(reference)}")
        if not image["references"]:
            print(f"Loaded image ID: {image['digest']}")
    return 0


def fetch(client: Client, reference: str, *, quiet: bool) -> dict[str, Any]:
    """Pull with what is configured, as `hyper run` does.

    Raises:
        ClientError: the pull failed.
    """
    events = client.pull(reference, headers=registry.headers([registry.registry_of(reference)], None))
    image: dict[str, Any] = follow(events, reference, "pull", quiet=quiet)["image"]
    return image


def follow(events: Iterator[dict[str, Any]], what: str, act: str, *, quiet: bool) -> dict[str, Any]:
    """Show progress on stderr: a bar on a terminal, a line for each step elsewhere. Returns the result.

    Raises:
        ClientError: it failed, or the daemon ended before the result.
    """
    result: dict[str, Any] | None = None
    shown = _Shown(what, sys.stderr, quiet=quiet)
    try:
        for event in events:
            if "status" in event:
                shown.show(event)
            else:
                result = event
    finally:
        shown.end()
    if result is None:
        raise ClientError(f"hyperd ended the {act} of {what} without a result; see its log")
    return result


class _Shown:
    """What was shown so far: on a terminal a bar for each layer under way, and below them one for the whole."""

    def __init__(self, reference: str, stream: IO[str], *, quiet: bool) -> None:
        self._reference = output.clean(reference)
        self._stream = stream
        self._quiet = quiet
        self._bar = stream.isatty()
        self._status = ""
        self._whole = ""
        self._layers: dict[str, str] = {}
        self._drawn = 0  # lines, the last of them without its end

    def show(self, event: Mapping[str, Any]) -> None:
        status, current, total = str(event.get("status")), event.get("current"), event.get("total")
        if event.get("text") is not None:  # a build's own words
            self._print(str(event["text"]))
        if self._quiet or event.get("text") is not None:
            return
        if event.get("layer"):
            self._layer(str(event["layer"]), status, current, total)
            return
        if self._bar:
            moving = status in ("downloading", "uploading")
            if not moving:
                self._layers.clear()
            self._whole = f"{self._reference}: {status}{_bar(current, total) if moving else ''}"
            self._draw()
        elif status != self._status:
            self._stream.write(f"{self._reference}: {status}\n")
            self._stream.flush()
        self._status = status

    def end(self) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = 0

    def _layer(self, layer: str, status: str, current: int | None, total: int | None) -> None:
        """One that is complete gets a line of its own, above all bars."""
        if not self._bar:
            return
        name = output.short_id(layer)
        if status == "downloaded":
            self._layers.pop(layer, None)
            self._print(f"{name}: {status}{'' if total is None else f' {output.decimal_size(total)}'}")
        else:
            self._layers[layer] = f"{name}: {status}{_bar(current, total)}"
        self._draw()

    def _print(self, line: str) -> None:
        if not self._quiet:
            self._stream.write(f"{self._begin()}{output.clean(line)}\n")
            self._stream.flush()
            self._drawn = 0

    def _draw(self) -> None:
        try:
            size = os.get_terminal_size(self._stream.fileno())
            columns, rows = size.columns or 80, size.lines or 24  # 0: nobody has told the terminal
        except OSError:
            columns, rows = 80, 24
        lines = [*list(self._layers.values())[: max(0, rows - 2)], *([self._whole] if self._whole else [])]
        self._stream.write(self._begin() + "\n".join(output.clean(line)[: columns - 1] for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def _begin(self) -> str:
        """What takes away all that is drawn."""
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        return f"\r{up}\x1b[J"


def _bar(current: int | None, total: int | None) -> str:
    if current is None or not total:
        return ""
    done = min(BAR_WIDTH, BAR_WIDTH * current // total)
    bar = "=" * done + ">" * (done < BAR_WIDTH)
    return f" [{bar:{BAR_WIDTH}}] {output.decimal_size(current)}/{output.decimal_size(total)}"
