"""`login`, `logout`, `search`."""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from pathlib import Path

from runtime.cli import output, registry
from runtime.cli.arguments import option
from runtime.client import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from runtime.cli.arguments import Parser
    from runtime.client import Client

SEARCH_FIELDS = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
SECRET_LIMIT_CHARACTERS = 4096


def login_arguments(parser: Parser) -> None:
    """`hyper login`."""
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=registry.HUB, help="host or host:port")
    parser.add_argument("-u", "--username", help="asked for if it is not given")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from stdin")
    registry.add_options(parser)


def login(args: argparse.Namespace, client: Client) -> int:
    """Try credentials with the registry, and keep them in the file of credentials, mode 0600."""
    name = registry.name_of(args.registry)
    user, password = _ask(args)
    headers = registry.header({name: {"username": user, "password": password}})
    client.call("POST", "/v1/registry/login", {"registry": name, **registry.body(args)}, headers)
    path = registry.authfile(args.authfile)
    content = registry.load(path, must_exist=False)
    key = registry.HUB_KEYS[0] if name == registry.HUB else name
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    content["auths"] = {**content.get("auths", {}), key: {"auth": auth}}
    _write(path, content)
    print(f"Login succeeded: {name}")
    return 0


def logout_arguments(parser: Parser) -> None:
    """`hyper logout`."""
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=registry.HUB, help="host or host:port")
    registry.add_authfile(parser)


def logout(args: argparse.Namespace, client: Client) -> int:
    """Forget the credentials for a registry."""
    del client
    name = registry.name_of(args.registry)
    path = registry.authfile(args.authfile)
    content = registry.load(path, must_exist=False)
    auths = content.get("auths", {})
    left = {key: value for key, value in auths.items() if registry.name_of(key) != name}
    if len(left) == len(auths):
        print(f"Not logged in to {name}")  # no error, as in Docker: what was wanted is so
        return 0
    _write(path, {**content, "auths": left})
    print(f"Removed the credentials for {name}")
    return 0


def search_arguments(parser: Parser) -> None:
    """`hyper search`."""
    parser.add_argument("term", metavar="TERM", help="part of a name on Docker Hub, or host:port/PART")
    parser.add_argument("--limit", type=option("--limit", _limit), default=25, metavar="N", help="default: 25")
    parser.add_argument("--no-trunc", action="store_true", help="nothing shortened")
    parser.add_template()
    registry.add_options(parser)


def search(args: argparse.Namespace, client: Client) -> int:
    """Search Docker Hub, or a registry that lists its repositories."""
    body = {"term": args.term, "limit": args.limit, **registry.body(args)}
    headers = registry.headers([registry.registry_of(f"{args.term}/x")], args.authfile)
    found = client.call("POST", "/v1/registry/search", body, headers)
    if args.format == "json":
        output.print_json(found)
        return 0
    if args.format != "table":
        from runtime.cli.containers import show  # here: few need templates

        show(args.format, SEARCH_FIELDS, [
            {
                "Name": one["name"], "Description": one["description"], "StarCount": str(one["stars"]),
                "IsOfficial": "[OK]" if one["official"] else "",
            }
            for one in found
        ])  # fmt: skip
        return 0
    rows = [[one["name"], one["description"], str(one["stars"]), "[OK]" if one["official"] else ""] for one in found]
    width = None if args.no_trunc else output.terminal_width()
    print(output.table(["NAME", "DESCRIPTION", "STARS", "OFFICIAL"], rows, width=width, keep=("NAME",)))
    return 0


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise ValueError("write a number from 1 to 100")
    return int(text)


def _ask(args: argparse.Namespace) -> tuple[str, str]:
    """User name and password: from stdin, or from the terminal, never from an argument."""
    if args.password_stdin:
        if not args.username:
            raise ClientError("--password-stdin needs --username")
        password = sys.stdin.read(SECRET_LIMIT_CHARACTERS + 1).rstrip("\r\n")
        user = args.username
    elif sys.stdin.isatty():
        import getpass  # here: few commands need it

        try:
            user = args.username or input("Username: ")
            password = getpass.getpass("Password: ")
        except EOFError as err:
            print(file=sys.stderr)  # the prompt has the line
            raise ClientError("login needs a name and a password, and the terminal gave none") from err
    else:
        raise ClientError("no terminal to ask for the password; give it on stdin, with --password-stdin")
    if not user or ":" in user:
        raise ClientError("--username: write a name without ':'")
    if not password or len(password) > SECRET_LIMIT_CHARACTERS:
        raise ClientError(f"the password is empty, or longer than {SECRET_LIMIT_CHARACTERS} characters")
    return user, password


def _write(path: str, content: dict[str, Any]) -> None:
    """Replace the file at once, not a link to it; its mode is 0600 before anything is in it."""
    target = Path(path).resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".auth-", dir=target.parent)
        staged = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as err:
        raise ClientError(f"the file of credentials {path} cannot be written: {err.strerror}") from err
