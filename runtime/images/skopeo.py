"""Run skopeo, and say what its errors mean to a user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiskFull, ImageUnknown, RuntimeFault, Upstream, WrongDigest

if TYPE_CHECKING:
    from runtime import command
    from runtime.images.reference import Reference

_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_POLICIES = (Path("/etc/containers/policy.json"), Path("~/.config/containers/policy.json"))

# Beginnings of what skopeo, the registry or Go's network code say, and what they mean to a user.
_UNKNOWN = ("manifest unknown", "name unknown", "repository name not known", "not found: manifest", "404 (not found)")
_DENIED = (
    "access to the resource is denied", "unauthorized", "authentication required", "403 (forbidden)",
    "invalid username/password",
)  # fmt: skip
_DIGEST = ("does not match provided manifest digest", "digest did not match", "digest mismatch", "digest doesn't match")
_REMEDIES = (
    ("no such host", "no such host name: check the name and this host's DNS"),
    ("server misbehaving", "its name could not be looked up: check this host's DNS"),
    ("connection refused", "nothing listens there: check that the registry runs, and the port"),
    ("no route to host", "there is no way to it: check the network and firewalls"),
    ("network is unreachable", "there is no way to it: check this host's network"),
    ("i/o timeout", "it does not answer: check the network and firewalls"),
    ("tls handshake timeout", "it does not answer: check the network and firewalls"),
    (
        "server gave http response to https client",
        "it speaks plain HTTP: put it into insecure_registries if that is meant",
    ),
    ("x509", "its certificate is not trusted: give its CA with --cert-dir, or put it into insecure_registries"),
    ("toomanyrequests", "it refuses more requests for now: wait, or log in with: hyper login"),
    ("429", "it refuses more requests for now: wait, or log in with: hyper login"),
)


def argv(temporary: Path, subcommand: str) -> list[str]:
    """The beginning of a command line."""
    general = ["skopeo", "--tmpdir", str(temporary)]
    if not any(policy.expanduser().exists() for policy in _POLICIES):
        general.append("--insecure-policy")  # no policy was made: skopeo would refuse everything
    return [*general, subcommand]


def fault(
    done: command.Finished, wanted: Reference, temporary: Path, *, logged_in: bool, pushing: bool = False
) -> RuntimeFault:
    """What a failed run means."""
    message = say(done)
    lower = message.lower()
    host = f"the registry {wanted.registry}"
    if "no space left on device" in lower or "disk quota exceeded" in lower:
        return DiskFull(f"{temporary.parent}: no space left while copying {wanted}; free some space")
    if any(text in lower for text in _DIGEST):
        return WrongDigest(f"{wanted}: the registry sent content that has another digest: {message}")
    if any(text in lower for text in _UNKNOWN):
        part = "digest" if wanted.digest else "tag"
        return ImageUnknown(f"{host} has no image {wanted}; check the name and the {part}", field="image")
    for text, remedy in _REMEDIES:
        if text in lower:
            return Upstream(f"{host} cannot be reached; {remedy} ({message})")
    if any(text in lower for text in _DENIED):
        remedy = "these credentials are wrong, or have no right to it" if logged_in else "check the name, or log in"
        text = f"{host} gives no access to {wanted}; {remedy}: hyper login {wanted.registry}"
        return Upstream(text, field="image") if pushing else ImageUnknown(text, field="image")
    return Upstream(f"{host} failed: {message}")


def say(done: command.Finished) -> str:
    """What skopeo says in its log line, without the line's frame and its preamble."""
    found = _MESSAGE.findall(done.last_line)
    text = found[-1].replace('\\"', '"') if found else done.last_line
    return re.sub(r'^Error parsing image name "[^"]*": ', "", text)[:500]
