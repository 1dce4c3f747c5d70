"""Alertmanager's webhook, version 4: what is posted, with limits on all of it.

The form is that of Alertmanager's `webhook_config`; members that this program does not use are ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from alerts.errors import BadWebhook

MAX_BODY_BYTES = 1 << 20
MAX_ALERTS = 1000

Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=128)],
        Annotated[str, StringConstraints(max_length=4096)],
    ],
    Field(max_length=64),
]


class Alert(BaseModel):
    """One alert of a group. `fingerprint` is Alertmanager's hash of the labels; `startsAt` is when it began to fire."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: Literal["firing", "resolved"]
    labels: Labels
    starts_at: AwareDatetime = Field(alias="startsAt")
    fingerprint: str = Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z]+$")

    @property
    def name(self) -> str:
        """The rule's name, or "" where there is none."""
        return self.labels.get("alertname", "")

    @property
    def incident(self) -> str:
        """What stays the same over all repetitions of one firing alert, and differs when it fires anew."""
        return f"{self.fingerprint}/{self.starts_at.timestamp():.3f}"


class Webhook(BaseModel):
    """One notification: the alerts of one group. `truncatedAlerts` were cut away by `max_alerts`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal["4"]
    group_key: str = Field(alias="groupKey", max_length=16384)
    truncated_alerts: int = Field(0, alias="truncatedAlerts", ge=0)
    alerts: list[Alert] = Field(max_length=MAX_ALERTS)


def parse_webhook(body: bytes) -> Webhook:
    """Read one notification.

    Raises:
        BadWebhook: it is too long, not JSON, or not of version 4; the message is one line and names the member.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BadWebhook(f"body is longer than {MAX_BODY_BYTES} bytes; set max_alerts in Alertmanager", status=413)
    try:
        return Webhook.model_validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "body"
        raise BadWebhook(f"not an Alertmanager webhook of version 4: {where}: {first['msg'][:200]}") from err
