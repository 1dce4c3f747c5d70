"""`rebuild`: build images again from what they were built from, and roll them out to the containers that were named."""

from __future__ import annotations

from runtime.cli import change, output, registry
from runtime.cli.images import follow
from runtime.client import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

REASON = "its image was built again"


def rebuild_arguments(parser: Parser) -> None:
    """`hyper rebuild`."""
    parser.add_argument(
        "refs", nargs="+", metavar="CONTAINER|IMAGE",
        help="a container, which changes to what is built; or an image, which is built alone",
    )  # fmt: skip
    parser.add_argument("--no-cache", action="store_true", help="run every step again, also on the same base")
    change.add_rollout(parser, "")
    parser.add_argument("--reason", help="why, for the history and the audit log")
    registry.add_options(parser)
    parser.add_format()


def rebuild(args: argparse.Namespace, client: Client) -> int:
    """Build again; the first container that does not change to what was built is the last."""
    quiet = args.format == "json"
    told: list[dict[str, Any]] = []
    code = 0
    for ref in args.refs:
        container = _container(client, ref)
        made = _build(args, client, container["image_digest"] if container else ref)
        image, rollout = made["image"], None
        name = image["references"][0] if image["references"] else image["digest"]
        if not quiet:
            what = "was built again" if made["changed"] else "is as it was, nothing is new"
            print(f"{output.clean(name)} {what}: {output.short_id(image['digest'])}")
        if container is not None and container["image_digest"] != image["digest"]:
            body = {"image": name, **change.rollout_body(args)}
            reason = args.reason or REASON
            rollout = change.carry_out(client, container["name"], "change", body, reason=reason, quiet=quiet)
        told.append({"ref": ref, "digest": image["digest"], "changed": made["changed"], "rollout": rollout})
        if rollout is not None and rollout["state"] != "done":
            code = change.EXIT_NOT_DONE
            break
    if quiet:
        output.print_json(told)
    return code


def _container(client: Client, ref: str) -> dict[str, Any] | None:
    try:
        return dict(client.container(ref))
    except ApiError as err:
        if err.status != 404:
            raise
        return None


def _build(args: argparse.Namespace, client: Client, reference: str) -> dict[str, Any]:
    body = {"reference": reference, "no_cache": args.no_cache, **registry.body(args)}
    events = client.steps("/v1/images/rebuild", body, registry.headers(None, args.authfile))
    return follow(events, reference, "rebuild", quiet=args.format == "json")
