"""Filters of `ps`, by Docker's rules: any value of one key, all keys; all of the labels.

Imported only when a filter is given.
"""

from __future__ import annotations

import re

from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

KEYS = (
    "ancestor", "before", "exited", "expose", "health", "id", "label", "name", "publish", "since", "status", "volume",
)  # fmt: skip
STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
HEALTHS = ("starting", "healthy", "unhealthy", "none")
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp))?")


def choose(
    found: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, Sequence[str]],
    everything: Sequence[Mapping[str, Any]] | None = None,
) -> list[Mapping[str, Any]]:
    """Those that every filter lets pass; `wanted` is what `parse` gave.

    `everything`: where the containers to compare with are looked for, if that is not `found`.

    Raises:
        ClientError: a container to compare with is not there.
    """
    known = found if everything is None else everything
    found = between(found, wanted, lambda ref, key: _created(known, ref, key))
    return [one for one in found if all(_passes(one, key, values) for key, values in wanted.items())]


def between(
    found: Sequence[Mapping[str, Any]], wanted: Mapping[str, Sequence[str]], created: Callable[[str, str], float]
) -> list[Any]:
    """Those made before any of `before`, and since any of `since`; `created` says when one was made, by its name."""
    for key, sign in (("before", -1), ("since", 1)):
        times = [sign * created(ref, key) for ref in wanted.get(key, ())]
        if times:
            found = [one for one in found if one["created_at"] is not None and sign * one["created_at"] > min(times)]
    return list(found)


def _created(known: Sequence[Mapping[str, Any]], ref: str, key: str) -> float:
    for one in known:
        if one["name"] == ref or one["id"].startswith(ref):
            return float(one["created_at"])
    raise ClientError(f"--filter {key}={ref}: there is no container {ref}; see: hyper ps -a")


def parse(filters: Sequence[str]) -> dict[str, list[str]]:
    """Values by key.

    Raises:
        ClientError: there is no such filter, or its value is wrong.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise ClientError(f"--filter {text!r}: write KEY=VALUE, such as status=exited")
        if key not in KEYS:
            raise ClientError(f"--filter {text!r}: there is no filter {key!r}; there are: {', '.join(KEYS)}")
        _check(key, value)
        wanted.setdefault(key, []).append(value)
    return wanted


def _check(key: str, value: str) -> None:
    complaint = None
    if key == "status" and value not in STATUSES:
        complaint = f"write one of {', '.join(STATUSES)}"
    elif key == "health" and value not in HEALTHS:
        complaint = f"write one of {', '.join(HEALTHS)}"
    elif key == "exited" and not re.fullmatch(r"[0-9]{1,3}", value):
        complaint = "write an exit code, such as exited=0"
    elif key in {"publish", "expose"} and not _PORT.fullmatch(value):
        complaint = f"write a port, such as {key}=80/tcp, or a range, such as {key}=80-90"
    elif key == "name":
        try:
            re.compile(value)
        except re.error as err:
            complaint = f"it is no regular expression: {err}"
    if complaint:
        raise ClientError(f"--filter {key}={value}: {complaint}")


def _passes(one: Mapping[str, Any], key: str, values: Sequence[str]) -> bool:
    if key == "label":
        return all(has_label(one.get("labels") or {}, value) for value in values)
    return key in {"before", "since"} or any(_PASSES[key](one, value) for value in values)


def has_label(labels: Mapping[str, str], text: str) -> bool:
    """Whether there is the label `NAME`, or `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _state(one: Mapping[str, Any]) -> str:
    """In Docker's words: what is being started or stopped runs."""
    if one["state"] == "exited" and one.get("retry_at") is not None:
        return "restarting"
    return {"starting": "running", "stopping": "running"}.get(one["state"], str(one["state"]))


def _comes_from(one: Mapping[str, Any], image: str) -> bool:
    name = str(one["image"])
    digest = str(one["image_digest"])
    if image.startswith("sha256:") or re.fullmatch(r"[0-9a-f]{12,64}", image):
        return digest.startswith((image, f"sha256:{image}"))
    return _whole(name) == _whole(image)


def _whole(reference: str) -> str:
    name = reference.removeprefix("docker.io/").removeprefix("library/")
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


def _ports(one: Mapping[str, Any], value: str, member: str) -> bool:
    match = _PORT.fullmatch(value)
    if match is None:
        return False
    first, last, protocol = int(match[1]), int(match[2] or match[1]), match[3]
    published = (one.get("network") or {}).get("ports") or (one.get("spec") or {}).get("ports") or ()
    return any(first <= port[member] <= last and protocol in (None, port["protocol"]) for port in published)


_PASSES: Mapping[str, Any] = {
    "ancestor": _comes_from,
    "exited": lambda one, code: one["state"] == "exited" and one.get("exit_code") == int(code),
    "expose": lambda one, port: _ports(one, port, "container_port"),
    "health": lambda one, health: one.get("health") == health,
    "id": lambda one, text: one["id"].startswith(text),
    # Docker's names have a slash before them, and are looked at without it too.
    "name": lambda one, text: any(re.search(text, name) for name in (one["name"], f"/{one['name']}")),
    "publish": lambda one, port: _ports(one, port, "host_port"),
    "status": lambda one, status: _state(one) == status,
    "volume": lambda one, text: any(
        text in (mount["source"], mount["target"]) for mount in (one.get("spec") or {}).get("volumes") or ()
    ),
}
