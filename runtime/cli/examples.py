"""Examples that `--help` ends with. Imported only then."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "run": (
        ("in the background, with a name and a port", "hyper run -d --name web -p 8080:80 nginx"),
        ("a shell in a fresh container, gone when it ends", "hyper run --rm -it debian bash"),
        ("with limits, a volume and a directory of this host", (
            "hyper run -d -m 512m --cpus 1.5 -v data:/var/lib/data -v ./site:/srv:ro redis"
        )),
        ("watched, and started again when it fails", (
            "hyper run -d --restart on-failure:3 --health-cmd 'curl -f localhost' nginx"
        )),
    ),
    "exec": (
        ("a shell in a running container", "hyper exec -it web sh"),
        ("as another user, elsewhere, with a variable", "hyper exec -u 1000:1000 -w /srv -e LANG=C web ls"),
        ("with something on its stdin", "hyper exec -i db psql < dump.sql"),
    ),
    "update": (
        ("other limits", "hyper update --cpus 2 --restart unless-stopped web"),
        ("another image, once the new container is well", "hyper update --image nginx:1.27 web"),
        ("side by side for ten minutes, and back if it goes wrong within the hour", (
            "hyper update --image nginx:1.27 --canary 10m --watch 1h web"
        )),
    ),
    "build": (
        ("from the Containerfile of this directory", "hyper build -t shop:1.2 ."),
        ("another file, an argument, up to a stage", (
            "hyper build -f deploy/Containerfile --build-arg VERSION=1.2 --target app -t shop ."
        )),
        ("without a context", "hyper build -t small - < Containerfile"),
    ),
}  # fmt: skip


def text(command: str) -> str | None:
    """The end of the help of a command, such as `run`; None if it has no examples."""
    found = EXAMPLES.get(command)
    if found is None:
        return None
    return "\n".join(["examples:", *(f"  {line}\n      {what}" for what, line in found)])
