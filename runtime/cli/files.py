"""`cp`, `diff` and `commit`: a container's files.

Archives are a stranger's: what comes from a container is unpacked below the place that was named and nowhere else,
without devices and without the bits that give rights; what goes to one is packed by us.
"""
# ruff: noqa: PTH100, PTH101, PTH103, PTH108, PTH112, PTH113, PTH114, PTH118, PTH119, PTH120, PTH208, PTH211 -- pathlib slows a start

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile

from runtime.cli.output import clean, print_json
from runtime.client import ApiError, Chunks, ClientError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

_CHUNK = 64 << 10
_MAX_LINKS = 40  # behind one another: as many as Linux follows
# ValueError: a NUL in a name, a number that is none; OverflowError: a time or an owner that cannot be.
_WRONG_ARCHIVE = (tarfile.TarError, ValueError, OverflowError, RecursionError)
_KINDS = {"added": "A", "changed": "C", "deleted": "D"}


def cp_arguments(parser: Parser) -> None:
    """`hyper cp`."""
    parser.add_argument("-a", "--archive", action="store_true", help="keep owners")
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what the link leads to that SOURCE is")
    parser.add_argument("-q", "--quiet", action="store_true", help="accepted as Docker has it; nothing is shown anyway")
    parser.add_argument("source", metavar="SOURCE", help="PATH, CONTAINER:PATH, or - for a tar archive from stdin")
    parser.add_argument("target", metavar="TARGET", help="PATH, CONTAINER:PATH, or - for a tar archive to stdout")


def cp(args: argparse.Namespace, client: Client) -> int:
    """Copy files; one side is a container's."""
    source, target = _split(args.source), _split(args.target)
    if (source[0] is None) == (target[0] is None):
        raise ClientError("one of the two, and only one, must be of a container: CONTAINER:PATH")
    if source[0] is not None:
        _from_container(args, client, source[0], source[1])
    elif target[0] is not None:
        _to_container(args, client, target[0], target[1])
    return 0


def _split(text: str) -> tuple[str | None, str]:
    """Container and path; a path with a colon is a container's, unless it begins with `/` or `.`, as Docker has it."""
    container, colon, path = text.partition(":")
    if text == "-" or not colon or text.startswith(("/", ".")):
        return None, text
    if not container:
        raise ClientError(f"{text!r} has no container before the colon; a file of the host is written ./{text}")
    return container, path if path.startswith("/") else f"/{path}"


def _url(container: str, path: str) -> str:
    return f"/v1/containers/{quote(container)}/archive?path={quote(path)}"


# --- out of a container


def _from_container(args: argparse.Namespace, client: Client, container: str, path: str) -> None:
    source = _followed(client, container, path) if args.follow_link else path
    pieces = iter(client.stream("GET", _url(container, source)))
    if args.target == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    target = args.target.rstrip("/") or "/"
    into = os.path.isdir(target)
    parent = target if into else os.path.dirname(target) or "."
    if not os.path.isdir(parent):
        raise ClientError(f"there is no directory {parent}: make it first")
    # The name is the one that was asked for, not the one that the guest gives.
    asked = os.path.basename(path.rstrip("/"))
    content_only = asked in ("", ".", "..")
    name = os.path.basename(target) if not into else None if content_only else asked
    try:
        with _opened(pieces) as tar:
            if args.target.endswith("/") and not into and (os.path.lexists(target) or not _is_directory(tar)):
                raise ClientError(f"there is no directory {args.target}")  # one is made for a directory alone
            _unpack(tar, parent, name, keep_owner=args.archive)
    except _WRONG_ARCHIVE as err:
        raise ClientError(f"what {container} sent is refused: {err}") from err
    except OSError as err:
        raise ClientError(f"{err.filename or target} cannot be written: {err.strerror or err}") from err


def _followed(client: Client, container: str, path: str) -> str:
    """Where the links at a path of the container lead, as far as it is not on the way: the guest follows that itself.

    Raises:
        ClientError: to nothing, or they do not end.
    """
    for _ in range(_MAX_LINKS):
        pieces = client.stream("GET", _url(container, path))
        try:
            with _opened(pieces) as tar:
                first = tar.next()
        except _WRONG_ARCHIVE as err:
            raise ClientError(f"what {container} sent is refused: {err}") from err
        pieces.close()  # type: ignore[attr-defined]  # it is a generator
        if first is None or not first.issym():
            return path
        path = os.path.join(os.path.dirname(path.rstrip("/")), first.linkname)
    raise ClientError(f"the links at {path} in {container} do not end")


def _opened(pieces: Iterator[bytes]) -> tarfile.TarFile:
    stream: Any = _Reader(pieces)  # tarfile reads it, and asks for no more
    return tarfile.open(fileobj=stream, mode="r|")


def _is_directory(tar: tarfile.TarFile) -> bool:
    """Whether it holds a directory, which then comes first; nothing of it is skipped."""
    first = tar.next()
    return first is not None and first.isdir()


def _unpack(tar: tarfile.TarFile, parent: str, name: str | None, *, keep_owner: bool) -> None:
    """Unpack; the first part of each name becomes `name`. Without one, it is the content of a directory.

    Raises:
        tarfile.TarError: an entry would be written outside.
    """
    root = os.path.realpath(parent)
    directories = []
    for member in tar:
        path = _inside(root, _renamed(member.name, name))
        if path == root:
            continue
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            print(f"hyper: {clean(member.name)} is left out: it is a device or a pipe", file=sys.stderr)
            continue
        # A file gives way to what is copied over it: nothing is ever written through a link.
        if os.path.islink(path) or (os.path.isfile(path) and not member.isdir()):
            os.unlink(path)
        if member.isdir():
            os.makedirs(path, exist_ok=True)
            directories.append((path, member))
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            os.link(_inside(root, _renamed(member.linkname, name)), path, follow_symlinks=False)
            continue  # owner and mode are those of the file
        else:
            _write(tar, member, path)
        if keep_owner:
            os.lchown(path, member.uid, member.gid)
        if member.isreg():
            _settle(path, member)
    for path, member in reversed(directories):
        _settle(path, member)


def _inside(root: str, name: str) -> str:
    """The path of an entry below the root; the links on the way to it lead nowhere else."""
    path = os.path.normpath(os.path.join(root, name)) if name else root
    above = os.path.realpath(os.path.dirname(path)) if path != root else root
    if ".." in name.split("/") or os.path.commonpath([root, above]) != root:
        raise tarfile.TarError(f"{name!r} leads out of {root}")
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    content = tar.extractfile(member)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123 -- a descriptor
        while content is not None and (piece := content.read(_CHUNK)):
            file.write(piece)


def _settle(path: str, member: tarfile.TarInfo) -> None:
    """Mode and time; the bits that give rights stay behind."""
    os.chmod(path, member.mode & 0o777)  # no link: it was made just now, or is a directory
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _renamed(text: str, name: str | None) -> str:
    first, _, rest = text.strip("/").partition("/")
    if first == ".":  # the content of a directory
        return f"{name}/{rest}".rstrip("/") if name else rest
    if name is None:
        raise tarfile.TarError(f"{text!r} is not what was asked for")
    return f"{name}/{rest}".rstrip("/")


class _Reader:
    """A file to read from, of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._left += piece
        found, self._left = self._left[:size], self._left[size:]
        return found


# --- into a container


def _to_container(args: argparse.Namespace, client: Client, container: str, path: str) -> None:
    if args.source == "-":
        client.call("PUT", _url(container, path), Chunks(iter(lambda: os.read(0, _CHUNK), b"")))
        return
    source = args.source
    content_only = source.endswith("/.") or source in (".", "..")
    base = os.path.basename(os.path.abspath(source))  # also of what a link leads to its own, as Docker has it
    if args.follow_link:
        source = os.path.realpath(source) + ("/." if source.endswith("/.") else "")
    if not os.path.lexists(source):
        raise ClientError(f"there is no file {source}")
    if args.source.endswith("/") and not os.path.isdir(source):
        raise ClientError(f"{args.source} is not a directory")
    directory, name = _place(
        client, container, path, base, is_directory=os.path.isdir(source), content_only=content_only
    )
    client.call("PUT", _url(container, directory), Chunks(_pack(source, name, keep_owner=args.archive)))


def _place(
    client: Client, container: str, path: str, base: str, *, is_directory: bool, content_only: bool
) -> tuple[str, str]:
    """Where to unpack, and under what name: Docker's rules for a target that exists, or does not."""
    kind = _kind_of(client, container, path)
    if kind == "directory":
        return path, "." if content_only else base
    if kind is None and path.endswith("/") and not is_directory:
        raise ClientError(f"there is no directory {path} in {container}")
    if kind == "file" and is_directory:
        raise ClientError(f"{path} in {container} is a file: a directory cannot be copied over it")
    parent, _, name = path.rstrip("/").rpartition("/")
    return parent or "/", name


def _kind_of(client: Client, container: str, path: str) -> str | None:
    """What there is at a path in the container, links followed; None for nothing."""
    for asked, kind in ((f"{path.rstrip('/')}/.", "directory"), (path.rstrip("/") or "/", "file")):
        pieces = client.stream("GET", _url(container, asked))
        try:
            next(iter(pieces), None)
        except ApiError as err:
            if err.status != 404:
                raise
        else:
            pieces.close()  # type: ignore[attr-defined]  # it is a generator
            return kind
    return None


def _pack(source: str, name: str, *, keep_owner: bool) -> Iterator[bytes]:
    """A tar archive of a file or directory under another name, piece by piece."""
    # Only its headers are tarfile's: it would hold the whole of a large file.
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as tar:
        for path, inside in _walk(source, name):
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    continue
                info = tar.gettarinfo(path, inside)
                if not keep_owner:
                    info.uid = info.gid = 0
                info.uname = info.gname = ""
                yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                if info.isreg():
                    yield from _content(path, info.size)
            except OSError as err:
                raise ClientError(f"{path} cannot be read: {err.strerror}") from err
    yield bytes(2 * tarfile.BLOCKSIZE)


def _content(path: str, size: int) -> Iterator[bytes]:
    """As many bytes as the header has said, whatever becomes of the file meanwhile."""
    left = size
    with open(path, "rb") as file:  # noqa: PTH123 -- pathlib would slow every start
        while left:
            piece = file.read(min(_CHUNK, left)) or bytes(min(_CHUNK, left))
            left -= len(piece)
            yield piece
    if size % tarfile.BLOCKSIZE:
        yield bytes(-size % tarfile.BLOCKSIZE)


def _walk(source: str, name: str) -> Iterator[tuple[str, str]]:
    yield source, name
    if os.path.isdir(source) and not (os.path.islink(source.rstrip("/")) and not source.endswith("/.")):
        for entry in sorted(os.listdir(source)):
            yield from _walk(os.path.join(source, entry), f"{name}/{entry}")


# --- diff and commit


def diff_arguments(parser: Parser) -> None:
    """`hyper diff`."""
    parser.add_refs(many=False)
    parser.add_format()


def diff(args: argparse.Namespace, client: Client) -> int:
    """Changes of a container's files: A added, C changed, D deleted."""
    found = client.call("GET", f"/v1/containers/{quote(args.ref)}/changes")
    if args.format == "json":
        print_json(found)
    else:
        for one in found:
            print(f"{_KINDS[one['kind']]} {clean(one['path'])}")
    return 0


def commit_arguments(parser: Parser) -> None:
    """`hyper commit`."""
    parser.add_argument("-a", "--author", default="", help="who made it")
    parser.add_argument("-m", "--message", default="", help="what it is for")
    parser.add_argument(
        "-c", "--change", action="append", default=[], metavar="INSTRUCTION",
        help='an instruction of a Dockerfile, such as: CMD ["nginx"]',
    )  # fmt: skip
    parser.add_switch("-p", "--pause", default=True, text="what writes to its files waits meanwhile (default)")
    parser.add_argument("--no-pause", dest="pause", action="store_false", default=True, help="as --pause=false")
    parser.add_refs(many=False)
    parser.add_argument("name", metavar="IMAGE", nargs="?", help="its name (default: none)")


def commit(args: argparse.Namespace, client: Client) -> int:
    """Make an image of a container; prints its digest."""
    body = {
        "reference": args.name,
        "author": args.author,
        "message": args.message,
        "changes": args.change,
        "pause": args.pause,
    }
    print(client.call("POST", f"/v1/containers/{quote(args.ref)}/commit", body)["digest"])
    return 0
