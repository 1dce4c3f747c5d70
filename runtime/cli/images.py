"""`pull`, `images`, `rmi`."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, Any

from runtime.cli import output
from runtime.cli.lifecycle import each
from runtime.client import ClientError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from runtime.cli.arguments import Parser
    from runtime.client import Client

BAR_WIDTH = 30
HEADERS = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")


def pull_arguments(parser: Parser) -> None:
    """`hyper pull`."""
    parser.add_argument("reference", metavar="IMAGE", help="such as nginx, host:5000/name:tag, name@sha256:…")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    verify = parser.add_mutually_exclusive_group()
    verify.add_argument("--tls-verify", action="store_true", default=None, help="insist on a valid certificate")
    verify.add_argument(
        "--no-tls-verify", dest="tls_verify", action="store_false", help="take any certificate, and plain HTTP"
    )


def pull(args: argparse.Namespace, client: Client) -> int:
    """Fetch an image; prints its digest and canonical reference."""
    image = fetch(client, args.reference, quiet=args.quiet, tls_verify=args.tls_verify)
    if not args.quiet:
        print(f"Digest: {image['digest']}")
    print(output.clean(args.reference))
    return 0


def fetch(client: Client, reference: str, *, quiet: bool, tls_verify: bool | None = None) -> dict[str, Any]:
    """Pull, with the progress on stderr: a bar on a terminal, a line for each step elsewhere.

    Raises:
        ClientError: the pull failed.
    """
    image: dict[str, Any] | None = None
    shown = _Shown(reference, sys.stderr, quiet=quiet)
    try:
        for event in client.pull(reference, tls_verify):
            if "image" in event:
                image = event["image"]
            else:
                shown.show(event)
    finally:
        shown.end()
    if image is None:
        raise ClientError(f"hyperd ended the pull of {reference} without a result; see its log")
    return image


class _Shown:
    """What a pull has shown so far."""

    def __init__(self, reference: str, stream: IO[str], *, quiet: bool) -> None:
        self._reference = output.clean(reference)
        self._stream = stream
        self._quiet = quiet
        self._bar = stream.isatty()
        self._status = ""
        self._drawn = False

    def show(self, event: Mapping[str, Any]) -> None:
        status, current, total = str(event.get("status")), event.get("current"), event.get("total")
        if self._quiet or event.get("layer"):
            return
        if self._bar:
            text = f"{self._reference}: {status}"
            if status == "downloading" and current is not None and total:
                done = min(BAR_WIDTH, BAR_WIDTH * current // total)
                bar = "=" * done + ">" * (done < BAR_WIDTH)
                text += f" [{bar:{BAR_WIDTH}}] {output.decimal_size(current)}/{output.decimal_size(total)}"
            self._draw(text)
        elif status != self._status:
            self._stream.write(f"{self._reference}: {status}\n")
            self._stream.flush()
        self._status = status

    def end(self) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except OSError:
            columns = 80
        self._stream.write(f"\r\x1b[K{output.clean(text)[: columns - 1]}")
        self._stream.flush()
        self._drawn = True


def images_arguments(parser: Parser) -> None:
    """`hyper images`."""
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_argument("--digests", action="store_true", help="show whole digests")
    parser.add_format()


def images(args: argparse.Namespace, client: Client) -> int:
    """List images, a line for each reference."""
    found = client.images()
    if args.format == "json":
        output.print_json(found)
        return 0
    rows = []
    for image in found:
        identity = image["digest"] if args.no_trunc else output.short_id(image["digest"])
        if args.quiet:
            print(identity)
            continue
        for reference in image["references"] or [""]:
            repository, tag = split(reference)
            digest = [image["digest"]] if args.digests else []
            rows.append(
                [
                    repository,
                    tag,
                    *digest,
                    identity,
                    output.ago(image["created_at"]),
                    output.decimal_size(image["size_bytes"]),
                ]
            )
    if not args.quiet:
        headers = [*HEADERS[:2], *(["DIGEST"] if args.digests else []), *HEADERS[2:]]
        width = None if args.no_trunc else output.terminal_width()
        print(output.table(headers, rows, width=width, keep=("IMAGE ID", "DIGEST", "SIZE")))
    return 0


def split(reference: str) -> tuple[str, str]:
    """Repository and tag as Docker lists them: without `docker.io/library/`, `<none>` for what there is not."""
    if not reference:
        return "<none>", "<none>"
    name, at, _ = reference.partition("@")
    tag = "<none>"
    if not at:
        name, _, tag = reference.rpartition(":")
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/"), tag


def rmi_arguments(parser: Parser) -> None:
    """`hyper rmi`."""
    parser.add_argument("refs", metavar="IMAGE", nargs="+", help="a reference, or the beginning of a digest")


def rmi(args: argparse.Namespace, client: Client) -> int:
    """Remove images; the file goes when no container uses it."""
    return each(args.refs, client.remove_image)
