"""`build`: send a Containerfile and its context to the daemon, and show what the build prints."""

from __future__ import annotations

import json
import os
import stat
import sys
import tarfile
from pathlib import Path

from runtime.cli import output, registry
from runtime.cli.arguments import label, option, platform, variable
from runtime.cli.ignore import Ignored
from runtime.cli.images import follow
from runtime.client import ClientError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from runtime.cli.arguments import Parser
    from runtime.client import Client

PIECE_BYTES = 1 << 20
NAMES = ("Containerfile", "Dockerfile")
CONTAINERFILE_LIMIT_BYTES = 1 << 20


def build_arguments(parser: Parser) -> None:
    """`hyper build`."""
    parser.add_argument("context", metavar="CONTEXT", help="a directory, or - for a Containerfile on stdin without one")
    parser.add_argument("-t", "--tag", action="append", default=[], help="name of the result; may be repeated")
    parser.add_argument("-f", "--file", help="default: CONTEXT/Containerfile, CONTEXT/Dockerfile; - is stdin")
    parser.add_argument(
        "--build-arg", action="append", default=[], type=option("--build-arg", variable), metavar="NAME[=VALUE]",
        help="a value for ARG (kept in the image's record: no secrets); may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--label", action="append", default=[], type=option("--label", label), metavar="NAME[=VALUE]",
        help="may be repeated",
    )  # fmt: skip
    parser.add_argument("--target", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument("--iidfile", metavar="FILE", help="write the digest of the result into it")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but the digest")
    parser.add_argument("--platform", type=option("--platform", platform), help="linux/amd64: there is no other")
    registry.add_options(parser)


def build(args: argparse.Namespace, client: Client) -> int:
    """Build an image."""
    containerfile, directory = _sources(args)
    options = {
        "tags": args.tag,
        "args": dict(one.split("=", 1) for one in args.build_arg if one is not None),
        "labels": dict(args.label),
        "target": args.target,
        "no_cache": args.no_cache,
        **registry.body(args),
    }
    path = f"/v1/images/build?options={quote(json.dumps(options))}"
    headers = registry.headers(None, args.authfile)
    try:
        events = client.steps(path, headers=headers, upload=_archive(containerfile, directory))
        image = follow(events, "build", "build", quiet=args.quiet)["image"]
        if args.iidfile is not None:
            Path(args.iidfile).write_text(image["digest"])
    except OSError as err:
        raise ClientError(f"{err.filename}: {err.strerror}") from err
    print(image["digest"])
    if not args.quiet:
        for name in image["references"]:
            print(output.clean(f"Tagged: {name}"))
    return 0


def _sources(args: argparse.Namespace) -> tuple[bytes, Path | None]:
    """The Containerfile, and the directory of the context.

    Raises:
        ClientError: one is not there.
    """
    directory = None if args.context == "-" else Path(args.context)
    if directory is not None and not directory.is_dir():
        raise ClientError(f"the context {args.context} is not a directory")
    if args.file == "-" or (directory is None and args.file is None):
        return _limited(sys.stdin.buffer.read(CONTAINERFILE_LIMIT_BYTES + 1), "stdin"), directory
    if args.file is not None:
        candidates = [Path(args.file)]
    else:
        assert directory is not None  # noqa: S101 -- for the type checker: without it the file is given, or is stdin
        candidates = [directory / name for name in NAMES]
    for path in candidates:
        if path.is_file():
            try:
                with path.open("rb") as file:
                    return _limited(file.read(CONTAINERFILE_LIMIT_BYTES + 1), str(path)), directory
            except OSError as err:
                raise ClientError(f"{path} cannot be read: {err.strerror}") from err
    raise ClientError(f"there is no {' and no '.join(map(str, candidates))}; name it with --file")


def _limited(content: bytes, name: str) -> bytes:
    if not content.strip():
        raise ClientError(f"the Containerfile {name} is empty")
    if len(content) > CONTAINERFILE_LIMIT_BYTES:
        raise ClientError(f"the Containerfile {name} is larger than {CONTAINERFILE_LIMIT_BYTES} bytes")
    return content


def _archive(containerfile: bytes, directory: Path | None) -> Iterator[bytes]:
    """What the daemon takes: `Containerfile` and `context/…` as tar, owners left out."""
    yield _header("Containerfile", tarfile.REGTYPE, 0o644, len(containerfile))
    yield containerfile + bytes(-len(containerfile) % tarfile.BLOCKSIZE)
    if directory is not None:
        ignored = Ignored.of(directory)
        for path, name in _walk(directory, "", ignored):
            yield from _entry(path, f"context/{name}")
    yield bytes(2 * tarfile.BLOCKSIZE)


def _walk(directory: Path, prefix: str, ignored: Ignored) -> Iterator[tuple[Path, str]]:
    for path in sorted(directory.iterdir()):
        name = f"{prefix}{path.name}"
        is_directory = path.is_dir() and not path.is_symlink()
        if not ignored.covers(name):
            yield path, name
        elif not (is_directory and ignored.has_exceptions):
            continue
        if is_directory:
            yield from _walk(path, f"{name}/", ignored)


def _entry(path: Path, name: str) -> Iterator[bytes]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        yield _header(name, tarfile.SYMTYPE, 0o777, 0, os.readlink(path), found.st_mtime)  # noqa: PTH115 -- as it stands
    elif stat.S_ISDIR(found.st_mode):
        yield _header(name, tarfile.DIRTYPE, stat.S_IMODE(found.st_mode), 0, "", found.st_mtime)
    elif stat.S_ISREG(found.st_mode):
        left = found.st_size
        yield _header(name, tarfile.REGTYPE, stat.S_IMODE(found.st_mode), left, "", found.st_mtime)
        with path.open("rb") as file:
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise ClientError(f"{path} became shorter while it was read; try again")
                left -= len(piece)
                yield piece
        yield bytes(-found.st_size % tarfile.BLOCKSIZE)
    elif not stat.S_ISSOCK(found.st_mode):
        raise ClientError(f"{path} is no file, directory or link; name it in .dockerignore")


def _header(name: str, kind: bytes, mode: int, size: int, link: str = "", mtime: float = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, size, link, int(mtime)
    return info.tobuf(tarfile.PAX_FORMAT)
