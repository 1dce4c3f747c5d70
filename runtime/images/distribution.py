"""What skopeo does not do with a registry: check a login, and search its names.

The protocol is that of the distribution specification, with the token service of Docker's registries.
"""

from __future__ import annotations

import json
import re
import ssl
from typing import TYPE_CHECKING, Any

import httpx

from runtime.errors import InvalidInput, Upstream
from runtime.images import reference

if TYPE_CHECKING:
    from runtime.images.access import Access, Login

TIMEOUT_S = 30.0
ANSWER_LIMIT_BYTES = 8 << 20
CATALOG_PAGE = 1000
CATALOG_LIMIT = 20_000
HUB_SEARCH = "https://index.docker.io/v1/search"
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')


async def check_login(registry: str, login: Login, access: Access, *, tls_verify: bool) -> None:
    """Whether a registry takes these credentials.

    Raises:
        Upstream: it does not, or cannot be reached.
    """
    async with _client(access, tls_verify=tls_verify) as client:
        status, _ = await _get(client, registry, "/v2/", login, tls_verify=tls_verify)
    if status != 200:
        raise Upstream(
            f"the registry {registry} does not take this user name and password ({status})", field="registry"
        )


async def search(term: str, limit: int, access: Access, *, tls_verify: bool) -> list[dict[str, Any]]:
    """Repositories whose name has a term: of Docker Hub, or of the registry before the first slash.

    Raises:
        Upstream: it cannot be reached, or offers no list.
    """
    registry, _, rest = term.partition("/")
    async with _client(access, tls_verify=tls_verify) as client:
        if not ("." in registry or ":" in registry or registry == "localhost"):
            return await _search_hub(client, term, limit)
        found: list[dict[str, Any]] = []
        seen, path = 0, f"/v2/_catalog?n={CATALOG_PAGE}"
        while seen < CATALOG_LIMIT:
            status, answer = await _get(client, registry, path, access.logins.get(registry), tls_verify=tls_verify)
            names = answer.get("repositories") if isinstance(answer, dict) else None
            if status != 200 or not isinstance(names, list):
                hint = ": log in with hyper login" if status in (401, 403) else ""
                raise Upstream(f"the registry {registry} offers no list of its repositories ({status}){hint}")
            found += [{"name": f"{registry}/{name}"} for name in map(str, names) if rest in name]
            seen += len(names)
            if len(names) < CATALOG_PAGE or len(found) >= limit:
                break
            path = f"/v2/_catalog?n={CATALOG_PAGE}&last={names[-1]}"
    return [{**one, "description": "", "stars": 0, "official": False} for one in found[:limit]]


async def _search_hub(client: httpx.AsyncClient, term: str, limit: int) -> list[dict[str, Any]]:
    try:
        _, content, _ = await _fetch(client, f"{HUB_SEARCH}?{httpx.QueryParams({'q': term, 'n': limit})}", {})
        return [
            {
                "name": str(one["name"]),
                "description": str(one.get("description") or ""),
                "stars": int(one.get("star_count") or 0),
                "official": bool(one.get("is_official")),
            }
            for one in json.loads(content)["results"][:limit]
        ]
    except httpx.HTTPError as err:
        raise Upstream(
            f"Docker Hub cannot be searched: {_say(err)}; to search another registry write host:port/{term}"
        ) from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise Upstream("Docker Hub's answer to the search is not what it should be") from err


def _client(access: Access, *, tls_verify: bool) -> httpx.AsyncClient:
    context = ssl.create_default_context()
    if not tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif access.cert_dir is not None:
        try:
            for file in sorted(access.cert_dir.glob("*.crt")):
                context.load_verify_locations(file)
        except (OSError, ssl.SSLError) as err:
            raise InvalidInput(
                f"{access.cert_dir} has a certificate that cannot be read: {err}", field="cert_dir"
            ) from err
    return httpx.AsyncClient(verify=context, timeout=TIMEOUT_S, follow_redirects=False)


async def _get(
    client: httpx.AsyncClient, registry: str, path: str, login: Login | None, *, tls_verify: bool
) -> tuple[int, Any]:
    """Status and JSON of a path; answers the registry's challenge. Plain HTTP only where TLS is not verified."""
    host = "registry-1.docker.io" if registry == reference.DEFAULT_REGISTRY else registry
    schemes = ("https",) if tls_verify else ("https", "http")
    for scheme in schemes:
        try:
            url = f"{scheme}://{host}{path}"
            status, content, challenge = await _fetch(client, url, {})
            if status == 401 and login is not None:
                headers = await _answer(client, challenge, login, tls_verify=tls_verify)
                status, content, _ = await _fetch(client, url, headers)
            return status, json.loads(content) if status == 200 and content.strip() else None
        except ValueError as err:
            raise Upstream(f"the registry {registry} does not answer in JSON: is it one?") from err
        except httpx.HTTPError as err:
            if scheme == schemes[-1]:
                raise Upstream(f"the registry {registry} cannot be reached: {_say(err)}") from err
    raise AssertionError("no scheme was tried")


async def _answer(client: httpx.AsyncClient, challenge: str, login: Login, *, tls_verify: bool) -> dict[str, str]:
    """The header that answers a challenge (RFC 7235), by way of the token service if it names one."""
    basic = httpx.BasicAuth(login.username, login.password)
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return _basic(basic)
    values = dict(_CHALLENGE.findall(rest))
    realm = values.pop("realm", "")
    if kind.lower() != "bearer" or not realm.startswith(("https://",) if tls_verify else ("https://", "http://")):
        raise Upstream(f"the registry asks for a kind of login that is not known: {challenge[:100]}")
    status, content, _ = await _fetch(client, f"{realm}?{httpx.QueryParams(values)}", _basic(basic))
    try:
        answer = json.loads(content) if status == 200 else {}
        return {"Authorization": f"Bearer {answer.get('token') or answer['access_token']}"}
    except (ValueError, KeyError, AttributeError):
        return {}  # the registry then says no, which is what the user is told


def _basic(auth: httpx.BasicAuth) -> dict[str, str]:
    request = httpx.Request("GET", "http://unused")
    return {"Authorization": next(auth.auth_flow(request)).headers["Authorization"]}


async def _fetch(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> tuple[int, bytes, str]:
    """Status, body and challenge."""
    content = bytearray()
    async with client.stream("GET", url, headers=headers) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > ANSWER_LIMIT_BYTES:
                raise Upstream(f"{response.url.host} answers with more than {ANSWER_LIMIT_BYTES} bytes")
        return response.status_code, bytes(content), response.headers.get("www-authenticate", "")


def _say(err: httpx.HTTPError) -> str:
    if isinstance(err, httpx.TimeoutException):
        return f"it does not answer within {TIMEOUT_S:.0f} s: check the network and firewalls"
    return str(err) or type(err).__name__
