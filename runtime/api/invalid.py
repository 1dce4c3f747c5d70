"""What is wrong with a request, said as whoever typed it knows it: the option of `hyper`, and what to write instead.

`field` of the answer is the member of the API, for programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import InvalidInput
from runtime.spec import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.errors import CommandNotFound

# What a member is called on the command line; one that stands for others is that of the first word.
OPTIONS = {
    "args": "the command", "author": "--author", "auto_remove": "--rm", "canary_s": "--canary",
    "cert_dir": "--cert-dir", "changes": "--change", "cpus": "--cpus", "cwd": "--workdir", "drain_s": "--drain",
    "entrypoint": "--entrypoint", "env": "--env", "format": "--format", "health.interval_s": "--health-interval",
    "health.retries": "--health-retries", "health.start_period_s": "--health-start-period",
    "health.test": "--health-cmd", "health.timeout_s": "--health-timeout", "hostname": "--hostname",
    "image": "the image", "labels": "--label", "limit": "--limit", "memory_bytes": "--memory", "message": "--message",
    "name": "the name", "ports": "--publish", "reason": "--reason", "reference": "the image",
    "references": "the images", "registry": "the registry", "restart": "--restart", "rollback_on": "--rollback-on",
    "signal": "--signal", "size": "--size", "size_bytes": "--size", "snapshot": "--snapshot", "source": "the image",
    "stop_signal": "--stop-signal", "stop_timeout_s": "--stop-timeout", "tags": "--tag", "target": "the new name",
    "term": "the term", "timeout_s": "--timeout", "tmpfs": "--tmpfs", "to_digest": "--to", "user": "--user",
    "volume": "--volume", "volumes": "--volume", "watch_s": "--watch",
}  # fmt: skip
# Where one call has another word for it than the rest.
OF_CALLS = {
    ("/v1/containers", "name"): "--name",
    ("/v1/images/build", "args"): "--build-arg",
    ("/v1/images/build", "target"): "--target",
}
RULES = {
    NAME_PATTERN: "begin with a letter or a digit, and go on with those, '_', '.' and '-', 128 characters at most",
    r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62})$": (
        "begin with a letter or a digit, and go on with those, '.' and '-', 63 characters at most"
    ),
    "^[A-Za-z0-9][A-Za-z0-9_.-]*$": "begin with a letter or a digit, and go on with those, '_', '.' and '-'",
    r"^[A-Za-z0-9_.-]{1,64}$": "write letters, digits, '_', '.' and '-', 64 characters at most",
    r"^sha256:[0-9a-f]{64}$": "write sha256: and 64 hexadecimal digits",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "write {} at least"),
    "greater_than": ("gt", "write more than {}"),
    "less_than_equal": ("le", "write {} at most"),
    "less_than": ("lt", "write less than {}"),
}
_TEXTS = {
    "string_too_short": "it is empty: write something",
    "string_unicode": "it has bytes that are not UTF-8",
    "string_too_long": "write {max_length} characters at most",
    "too_long": "name {max_length} at most",
    "too_short": "name {min_length} at least",
    "literal_error": "write {expected}",
    "missing": "it is missing",
    "extra_forbidden": "there is no such member",
    "json_invalid": "it is not JSON",
}
# What to write, by the beginning of what pydantic calls an error of a type.
_KINDS = {
    "string": "text", "int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false",
    "dict": "an object", "model": "an object", "list": "a list", "tuple": "a list",
}  # fmt: skip
_SHOWN_CHARACTERS = 80


def fault(errors: Sequence[Mapping[str, Any]], path: str) -> InvalidInput:
    """The answer to a request whose checks found these errors, as pydantic has them; `path` is that of the call."""
    first = errors[0] if errors else {}
    parts = [part for part in first.get("loc", ()) if part not in {"body", "query", "path", "[key]"}]
    members = ".".join(part for part in parts if isinstance(part, str))
    what = _option(members, path.rstrip("/"))
    return InvalidInput(
        f"{what}{_value(first, members)}: {_text(first, members)}", field=".".join(map(str, parts)) or None
    )


def check_directory(cwd: str | None) -> None:
    """Refuse a directory to start in that the guest would refuse; a container that is there may have one.

    Raises:
        InvalidInput: it does not begin at the root.
    """
    if cwd and not cwd.startswith("/"):
        raise InvalidInput(
            f"--workdir {cwd[:_SHOWN_CHARACTERS]!r}: write a path from the root, such as /srv", field="cwd"
        )


def unknown_user(error: CommandNotFound) -> InvalidInput | None:
    """Of a program that was not found: the answer if it was its user, which the guest has no other word for."""
    text = str(error)
    if not text.startswith(("unable to find user ", "unable to find group ")):
        return None
    return InvalidInput(f"--user: {text}", field="user")


def _option(members: str, path: str) -> str:
    """The option of a member, else the one of what it is part of, else its own name."""
    head = members.partition(".")[0]
    for name in (members, head):
        found = OF_CALLS.get((path, name)) or OPTIONS.get(name)
        if found:
            return found
    return members or "the request"


def _text(error: Mapping[str, Any], members: str) -> str:
    kind, context = str(error.get("type", "")), error.get("ctx") or {}
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind in _BOUNDS:
        name, text = _BOUNDS[kind]
        return text.format(_amount(context[name], members))
    if kind == "string_pattern_mismatch":
        return RULES.get(context["pattern"], "it has a character that cannot be in it")
    if kind in _TEXTS:
        return _TEXTS[kind].format(**context)
    wanted = next((words for begin, words in _KINDS.items() if kind.startswith(begin)), None)
    return f"write {wanted}" if wanted else "it is not right; see docs/reference/api.md"


def _value(error: Mapping[str, Any], members: str) -> str:
    """What was given, where that says something that the message does not."""
    given, kind = error.get("input"), error.get("type")
    if kind in {*_BOUNDS, "string_pattern_mismatch", "literal_error"} and isinstance(given, str | int | float):
        text = repr(given) if isinstance(given, str) else _amount(given, members)
        return f" {text}" if len(text) <= _SHOWN_CHARACTERS else ""
    return ""


def _amount(value: Any, members: str) -> str:
    """A number as the command line takes it: `16m` of bytes, `30s` of seconds."""
    if members.endswith("_bytes") and isinstance(value, int):
        for unit, letter in ((1 << 40, "t"), (1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")):
            if value and value % unit == 0:
                return f"{value // unit}{letter}"
        return str(value)
    if members in {"timeout_s", "stop_timeout_s"}:
        return f"{value:.12g}"
    if members.endswith("_s"):
        return f"{value * 1000:.12g}ms" if 0 < value < 1 else f"{value:.12g}s"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
