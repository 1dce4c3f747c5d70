"""Image references, read as `docker run` reads them.

`nginx` is `docker.io/library/nginx:latest`. What stands before the first slash is a registry if it has a dot or a
colon, or is `localhost`. With both a tag and a digest the digest counts. The grammar is that of the distribution
project's `reference` package.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from runtime.errors import InvalidInput

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_REPOSITORY_LENGTH = 255
MAX_REFERENCE_LENGTH = 1024

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9A-Fa-f:]+\])(?::(?P<port>[0-9]{{1,5}}))?")


@dataclass(frozen=True, slots=True)
class Reference:
    """One image in one registry, by tag or by digest (never both)."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        """The canonical form: everything that was left out is written."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar_name(self) -> str:
        """The name as a user writes it: without `docker.io/library/`."""
        if self.registry != DEFAULT_REGISTRY:
            return self.name
        return self.repository.removeprefix("library/")

    @property
    def host(self) -> str:
        """The registry without its port."""
        if self.registry.startswith("["):
            return self.registry[1:].partition("]")[0]
        return self.registry.partition(":")[0]

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this very host (docker's rule for registries that need no TLS)."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def at(self, digest: str) -> Reference:
        """The same repository by digest."""
        return Reference(self.registry, self.repository, None, digest)


def parse(text: str) -> Reference:
    """Read a reference.

    Raises:
        InvalidInput: what part is wrong, and how it must look.
    """
    if not text or text != text.strip():
        raise _wrong(text, "it is empty or has blanks around it; write a name such as nginx or host:5000/name:tag")
    if len(text) > MAX_REFERENCE_LENGTH:
        raise _wrong(text[:40] + "…", f"it is longer than {MAX_REFERENCE_LENGTH} characters")
    if "://" in text:
        raise _wrong(text, f"leave out {text.partition('://')[0]}://, the registry's host comes first")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, f"the digest {digest!r} is not sha256: and 64 hexadecimal digits in lower case")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise _wrong(
            text,
            f"the tag {tag!r} is not 1 to 128 letters, digits, '_', '.', '-', beginning with a letter, digit or '_'",
        )
    registry, repository = _split_registry(text, rest)
    if len(repository) > MAX_REPOSITORY_LENGTH:
        raise _wrong(text[:40] + "…", f"the repository name is longer than {MAX_REPOSITORY_LENGTH} characters")
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise _wrong(text, _say_component(component))
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    if digest:
        return Reference(registry, repository, None, digest)
    return Reference(registry, repository, tag or DEFAULT_TAG, None)


def _split_tag(rest: str) -> tuple[str, str | None]:
    """A colon after the last slash begins the tag; one before it belongs to the registry's port."""
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        return rest[:colon], rest[colon + 1 :]
    return rest, None


def _split_registry(text: str, rest: str) -> tuple[str, str]:
    first, slash, remainder = rest.partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not is_registry:
        return DEFAULT_REGISTRY, rest
    match = _REGISTRY.fullmatch(first)
    if match is None:
        raise _wrong(text, f"the registry {first!r} is not host or host:port")
    if match["port"] is not None and not 0 < int(match["port"]) < 65536:
        raise _wrong(text, f"the registry's port {match['port']} is not between 1 and 65535")
    if first in ("index.docker.io", "registry-1.docker.io"):
        first = DEFAULT_REGISTRY
    return first, remainder


def _say_component(component: str) -> str:
    if not component:
        return "a part of the name is empty (two slashes, or one at an end)"
    if component != component.lower():
        return f"the name {component!r} has capital letters; repository names are in lower case"
    return f"the name {component!r} is not lower-case letters and digits, joined by '.', '_', '__' or '-'"


def _wrong(text: str, what: str) -> InvalidInput:
    return InvalidInput(f"{text!r} is not an image reference: {what}", field="image")
