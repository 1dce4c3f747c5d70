"""Notifications of a registry (the distribution project's webhook): which tag has which digest now.

A notification is no proof. It makes hyperd pull the tag; only if that gives the digest that was told is anything done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from alerts.errors import BadWebhook
from runtime.errors import InvalidInput
from runtime.images import reference

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1000
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class _Target(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    repository: str = Field("", max_length=256)
    digest: str = Field("", max_length=128)
    tag: str = Field("", max_length=128)


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str = Field("", max_length=256)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    action: str = Field(max_length=64)
    timestamp: AwareDatetime
    target: _Target = Field(default_factory=_Target)
    request: _Request = Field(default_factory=_Request)


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    events: list[_Event] = Field(max_length=MAX_EVENTS)


@dataclass(frozen=True, slots=True)
class Push:
    """A tag that was pushed. `name` is the canonical reference; `time` is seconds since 1970."""

    name: str
    digest: str
    time: float


def parse_notification(body: bytes, hosts: Mapping[str, str]) -> list[Push]:
    """The pushes of tags in a notification; pulls, deletions and pushes without a tag are none.

    Args:
        body: What was posted.
        hosts: What containers call a registry that calls itself otherwise.

    Raises:
        BadWebhook: it is too long, not JSON, or no notification; the message is one line and names the member.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BadWebhook(f"body is longer than {MAX_BODY_BYTES} bytes", status=413)
    try:
        envelope = _Envelope.model_validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "body"
        raise BadWebhook(f"not a notification of a registry: {where}: {first['msg'][:200]}") from err
    found = []
    for event in envelope.events:
        target = event.target
        if event.action != "push" or not target.tag or not _DIGEST.fullmatch(target.digest):
            continue
        host = hosts.get(event.request.host, event.request.host)
        name = canonical(f"{host}/{target.repository}:{target.tag}")
        if name is not None:
            found.append(Push(name, target.digest, event.timestamp.timestamp()))
    return found


def canonical(image: str) -> str | None:
    """An image's reference with all that was left out; None if it is none, or names a digest and so follows nothing."""
    try:
        parsed = reference.parse(image)
    except InvalidInput:
        return None
    return None if parsed.digest else str(parsed)
