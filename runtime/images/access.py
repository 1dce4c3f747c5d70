"""How a registry is reached: TLS, and who asks.

Credentials come with each request and are given to programs through a descriptor: they stand in no file, no argument,
no environment and no log.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HEADER = "X-Registry-Config"
HEADER_LIMIT_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a registry. The password is left out wherever this is printed."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller says of the registries.

    Args:
        tls_verify: None: verify, except for registries on loopback and in `insecure_registries`.
        cert_dir: Directory with CA certificates (`*.crt`), beside the host's.
        logins: By registry, as in references (`docker.io`, `host:5000`).
    """

    tls_verify: bool | None = None
    cert_dir: Path | None = None
    logins: Mapping[str, Login] = field(default_factory=dict)

    @contextlib.contextmanager
    def auth_file(self) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """An `--authfile` option and the descriptor behind it, for skopeo and buildah.

        Without logins it is empty: the daemon's own user may have logged in somewhere, which is not the caller's right.
        """
        auths = {
            registry: {"auth": base64.b64encode(f"{one.username}:{one.password}".encode()).decode()}
            for registry, one in self.logins.items()
        }
        descriptor = os.memfd_create("auth")
        try:
            os.write(descriptor, json.dumps({"auths": auths}).encode())
            yield ["--authfile", f"/proc/self/fd/{descriptor}"], (descriptor,)
        finally:
            os.close(descriptor)


def parse_header(text: str | None) -> dict[str, Login]:
    """Read the header `X-Registry-Config`: base64url of `{"host:port": {"username", "password"}}`.

    Raises:
        InvalidInput: it is not of that form. Nothing of its content is in the message.
    """
    if not text:
        return {}
    if len(text) > HEADER_LIMIT_BYTES:
        raise InvalidInput(f"it is longer than {HEADER_LIMIT_BYTES} bytes: send fewer credentials", field=HEADER)
    try:
        raw = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return {_text(registry): Login(_text(one["username"]), _text(one["password"])) for registry, one in raw.items()}
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        # without the cause: it may quote a secret
        raise InvalidInput(
            'it is not base64url of {"host:port": {"username": …, "password": …}}', field=HEADER
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not text")
    return value
