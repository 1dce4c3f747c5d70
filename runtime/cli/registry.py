"""How registries are reached: options, and the file with credentials, in the form of Docker's `config.json`.

Credentials go to the daemon in a header of the request that needs them, and stay nowhere.
"""

from __future__ import annotations

import base64
import json
import os

from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any

    from runtime.cli.arguments import Parser

HEADER = "X-Registry-Config"
HUB = "docker.io"
HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", HUB)


def add_options(parser: Parser) -> None:
    """The options of every command that talks to a registry."""
    verify = parser.add_mutually_exclusive_group()
    verify.add_argument("--tls-verify", action="store_true", default=None, help="insist on a valid certificate")
    # argparse looks for the whole word first, so `=` may be a part of the name: a value that is optional would
    # swallow the image's name after it
    verify.add_argument("--tls-verify=true", dest="tls_verify", action="store_true", default=None, help="the same")
    verify.add_argument(
        "--tls-verify=false", "--no-tls-verify", dest="tls_verify", action="store_false", default=None,
        help="take any certificate, and plain HTTP",
    )  # fmt: skip
    parser.add_argument(
        "--cert-dir", metavar="DIR", help="directory with the registry's CA (*.crt), on the daemon's host"
    )
    add_authfile(parser)


def add_authfile(parser: Parser) -> None:
    """The option that names the file of credentials."""
    parser.add_argument(
        "--authfile", metavar="FILE", help="file with credentials (default: $HYPER_AUTHFILE, ~/.config/hyper/auth.json)"
    )


def body(args: argparse.Namespace) -> dict[str, Any]:
    """The members of a request that say how a registry is reached."""
    found: dict[str, Any] = {"tls_verify": args.tls_verify}
    if args.cert_dir is not None:
        found["cert_dir"] = os.path.abspath(args.cert_dir)  # noqa: PTH100 -- pathlib would slow every start
    return found


def headers(registries: Iterable[str] | None, authfile: str | None) -> dict[str, str]:
    """The header with the credentials for these registries, or for all that are known.

    Raises:
        ClientError: the file of credentials cannot be read.
    """
    known: dict[str, dict[str, str]] = {}
    for path in reversed(_files(authfile)):
        known |= read(path, must_exist=authfile is not None)
    found = {name: one for name, one in known.items() if registries is None or name in registries}
    return header(found) if found else {}


def header(logins: dict[str, dict[str, str]]) -> dict[str, str]:
    """The header with these credentials."""
    return {HEADER: base64.urlsafe_b64encode(json.dumps(logins).encode()).decode()}


def registry_of(reference: str) -> str:
    """The registry that a reference names, as the daemon reads it."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return HUB if first in ("index.docker.io", "registry-1.docker.io") else first
    return HUB


def authfile(given: str | None) -> str:
    """The file that `login` writes."""
    return given or os.environ.get("HYPER_AUTHFILE") or os.path.expanduser("~/.config/hyper/auth.json")  # noqa: PTH111 -- pathlib would slow every start


def _files(given: str | None) -> list[str]:
    """The files to look into, the first of them counts."""
    if given or os.environ.get("HYPER_AUTHFILE"):
        return [authfile(given)]
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")  # noqa: PTH111 -- as above
    return [authfile(None), f"{docker}/config.json"]


def load(path: str, *, must_exist: bool) -> dict[str, Any]:
    """The whole file.

    Raises:
        ClientError: it cannot be read, or is not of Docker's form.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 -- pathlib would slow every start
            raw = json.load(file)
    except FileNotFoundError as err:
        if must_exist:
            raise ClientError(f"--authfile {path}: there is no such file; make it with: hyper login") from err
        return {}
    except OSError as err:
        raise ClientError(f"the file of credentials {path} cannot be read: {err.strerror}") from err
    except ValueError:
        raw = None
    if not isinstance(raw, dict) or not isinstance(raw.get("auths", {}), dict):  # without its text: it has secrets
        raise ClientError(f"the file of credentials {path} is not of the form of Docker's config.json")
    return raw


def read(path: str, *, must_exist: bool = False) -> dict[str, dict[str, str]]:
    """User name and password by registry.

    Raises:
        ClientError: as `load`.
    """
    found = {}
    for key, value in load(path, must_exist=must_exist).get("auths", {}).items():
        try:
            user, _, password = base64.b64decode(value["auth"]).decode().partition(":")
        except (KeyError, TypeError, ValueError):
            continue  # an entry of a credential helper has no secret in it
        if user and password:
            found[name_of(key)] = {"username": user, "password": password}
    return found


def name_of(key: str) -> str:
    """The registry of an entry: docker has written URLs there."""
    if key in HUB_KEYS:
        return HUB
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
