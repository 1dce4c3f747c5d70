"""`images`, `rmi`, `tag`, `history`, `image packages`: what is here, by which name, and what is in it."""

from __future__ import annotations

import fnmatch
import sys

from runtime.cli import choosing, output
from runtime.cli.prune import print_removed
from runtime.client import ApiError, ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

HEADERS = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")
FIELDS = {
    "ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
}  # fmt: skip
HISTORY_FIELDS = {
    "ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE",
    "Comment": "COMMENT",
}  # fmt: skip
FILTERS = ("before", "dangling", "label", "reference", "since")
CREATED_BY_WIDTH = 45
PACKAGE_HEADERS = ("NAME", "VERSION", "SOURCE", "SOURCE_VERSION")


def images_arguments(parser: Parser) -> None:
    """`hyper images`."""
    parser.add_argument("name", metavar="REPOSITORY[:TAG]", nargs="?", help="only this one; * and ? stand for anything")
    parser.add_argument("-a", "--all", action="store_true", help="as Docker has it; all are listed anyway")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_argument("--digests", action="store_true", help="show whole digests")
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
        help="dangling=true|false, label=NAME[=VALUE], reference=PATTERN, before=IMAGE, since=IMAGE; may be repeated",
    )  # fmt: skip
    parser.add_template()


def images(args: argparse.Namespace, client: Client) -> int:
    """List images, a line for each reference."""
    filters = _filters(args.filter)
    found = _chosen(client.images(), filters, args.name)
    if args.format == "json":
        output.print_json([image for image, _ in _together(found)])
        return 0
    if args.quiet:
        for image, _ in _together(found):
            print(image["digest"] if args.no_trunc else output.short_id(image["digest"]))
        return 0
    if args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, FIELDS, [_fields(*one, full=args.no_trunc) for one in found])
        return 0
    headers = [*HEADERS[:2], *(["DIGEST"] if args.digests else []), *HEADERS[2:]]
    rows = []
    for one in found:
        row = _fields(*one, full=args.no_trunc)
        digest = [row["Digest"]] if args.digests else []
        rows.append([row["Repository"], row["Tag"], *digest, row["ID"], row["CreatedSince"], row["Size"]])
    width = None if args.no_trunc else output.terminal_width()
    print(output.table(headers, rows, width=width, keep=("IMAGE ID", "DIGEST", "SIZE")))
    return 0


def _fields(image: Mapping[str, Any], reference: str, *, full: bool) -> dict[str, Any]:
    repository, tag = split(reference)
    return {
        "ID": image["digest"] if full else output.short_id(image["digest"]),
        "Repository": repository,
        "Tag": tag,
        "Digest": image["digest"],
        "CreatedSince": output.ago(image["created_at"]),
        "CreatedAt": output.moment(image["created_at"]),
        "Containers": "N/A",
        "Size": output.decimal_size(image["size_bytes"]),
        "SharedSize": output.decimal_size(image.get("shared_bytes", 0)),
        "UniqueSize": output.decimal_size(image.get("unique_bytes", 0)),
    }


def _together(found: Sequence[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
    """One of each digest."""
    return list({image["digest"]: (image, reference) for image, reference in found}.values())


def _filters(given: Sequence[str]) -> dict[str, list[str]]:
    """Values by what they are of.

    Raises:
        ClientError: there is no such filter, or its value is wrong.
    """
    filters: dict[str, list[str]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if key not in FILTERS or not equals or not value:
            raise ClientError(f"--filter {text!r}: write KEY=VALUE; there are: {', '.join(FILTERS)}")
        if key == "dangling" and value not in ("true", "false"):
            raise ClientError(f"--filter {text!r}: write dangling=true or dangling=false")
        filters.setdefault(key, []).append(value)
    return filters


def _chosen(
    found: Sequence[dict[str, Any]], filters: Mapping[str, Sequence[str]], pattern: str | None
) -> list[tuple[dict[str, Any], str]]:
    """Images and references that have any value of one key, all keys, and all labels; `pattern` is one reference more.

    Raises:
        ClientError: an image that a filter names is not there.
    """
    chosen = choosing.between(found, filters, lambda name, key: _created(found, name, key))
    labels = filters.get("label", [])
    chosen = [one for one in chosen if all(choosing.has_label(_labels(one), label) for label in labels)]
    if dangling := filters.get("dangling"):
        chosen = [one for one in chosen if ("false" if one["references"] else "true") in dangling]
    patterns = [*filters.get("reference", []), *([pattern] if pattern else [])]
    return [
        (one, reference)
        for one in chosen
        for reference in one["references"] or [""]
        if not patterns or any(_fits(reference, one) for one in patterns)
    ]


def _labels(image: Mapping[str, Any]) -> Mapping[str, str]:
    return image["config"].get("Labels") or {}


def _fits(reference: str, pattern: str) -> bool:
    repository, tag = split(reference)
    return bool(reference) and any(
        fnmatch.fnmatchcase(text, pattern) for text in (repository, f"{repository}:{tag}", reference)
    )


def _created(found: Sequence[dict[str, Any]], name: str, key: str) -> float:
    for one in found:
        names = {known for text in one["references"] for known in (text, ":".join(split(text)))}
        is_named = name in names or f"{name}:latest" in names
        if is_named or one["digest"].removeprefix("sha256:").startswith(name.removeprefix("sha256:")):
            if one["created_at"] is None:
                break
            return float(one["created_at"])
    raise ClientError(f"--filter {key}={name}: there is no image {name} that says when it was made; see: hyper images")


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
    parser.add_argument(
        "-f", "--force", action="store_true", help="by digest: all its names; what is not there is no error"
    )


def rmi(args: argparse.Namespace, client: Client) -> int:
    """Remove images; the file goes when no container uses it."""
    code = 0
    for ref in args.refs:
        try:
            print_removed(client.remove_image(ref, force=args.force))
        except ApiError as err:
            if args.force and err.code == "image_unknown":
                continue
            print(f"hyper: {output.clean(str(err))}", file=sys.stderr)
            code = code or err.exit_code
    return code


def tag_arguments(parser: Parser) -> None:
    """`hyper tag`."""
    parser.add_argument("source", metavar="IMAGE", help="a reference, or the beginning of a digest")
    parser.add_argument("target", metavar="NAME", help="the name it is to have as well, such as host:5000/name:tag")


def tag(args: argparse.Namespace, client: Client) -> int:
    """Give an image one more name."""
    client.call("POST", "/v1/images/tag", {"source": args.source, "target": args.target})
    return 0


def history_arguments(parser: Parser) -> None:
    """`hyper history`."""
    parser.add_argument(
        "reference", metavar="CONTAINER|IMAGE",
        help="a container: its changes of image; else an image: its layers. One that is both is the container; of the"
        " image: hyper image history",
    )  # fmt: skip
    _add_history_options(parser)


def history(args: argparse.Namespace, client: Client) -> int:
    """Show the changes of a container, else the steps that made an image, else what a container was that is gone."""
    from runtime.cli import change  # here: few need it

    try:
        client.container(args.reference)
    except ApiError as err:
        if err.status not in (404, 409):
            raise
        try:
            return image_history(args, client)
        except ApiError as unknown:
            try:
                changes = client.container_call(args.reference, "history", method="GET")
            except ApiError:
                raise unknown from None
    else:
        changes = client.container_call(args.reference, "history", method="GET")
    return change.history(args, changes)


def image_history_arguments(parser: Parser) -> None:
    """`hyper image history`."""
    parser.add_argument("reference", metavar="IMAGE", help="a reference, or the beginning of a digest")
    _add_history_options(parser)


def _add_history_options(parser: Parser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="digests only")
    parser.add_switch("-H", "--human", default=True, text="sizes and times for people (default); =false: exact")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_template()


def image_history(args: argparse.Namespace, client: Client) -> int:
    """Show the steps that made an image, the last first; SIZE is that of the layer in a registry."""
    found = client.history(args.reference)
    if args.format == "json":
        output.print_json(found)
        return 0
    rows = []
    for step in found:
        made_by = output.clean(step["created_by"].replace("\t", " "))
        layer = step["layer"] or "<missing>"
        rows.append(
            {
                "ID": layer if args.no_trunc or not step["layer"] else output.short_id(layer),
                "CreatedSince": output.ago(step["created_at"]) if args.human else output.moment(step["created_at"]),
                "CreatedAt": output.moment(step["created_at"]),
                "CreatedBy": made_by if args.no_trunc or len(made_by) <= CREATED_BY_WIDTH
                else f"{made_by[: CREATED_BY_WIDTH - 1]}…",
                "Size": output.decimal_size(step["size_bytes"]) if args.human else str(step["size_bytes"]),
                "Comment": output.clean(step["comment"]),
            }
        )  # fmt: skip
    if args.quiet:
        print("".join(f"{row['ID']}\n" for row in rows), end="")
    elif args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, HISTORY_FIELDS, rows)
    else:
        columns = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
        headers = [HISTORY_FIELDS[column] for column in columns]
        print(output.table(headers, [[str(row[column]) for column in columns] for row in rows]))
    return 0


def image_packages_arguments(parser: Parser) -> None:
    """`hyper image packages`."""
    parser.add_argument("reference", metavar="IMAGE", help="a reference, or the beginning of a digest")
    parser.add_format()


def image_packages(args: argparse.Namespace, client: Client) -> int:
    """Show which packages of Debian's form an image has installed."""
    found = client.packages(args.reference)
    if args.format == "json":
        output.print_json(found)
        return 0
    if found["packages"] is None:
        raise ClientError(f"{args.reference} has no list of packages that can be read")
    print(
        output.table(
            PACKAGE_HEADERS, [[one[header.lower()] for header in PACKAGE_HEADERS] for one in found["packages"]]
        )
    )
    return 0
