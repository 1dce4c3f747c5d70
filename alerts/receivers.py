"""Who is told: a small TOML file names the receivers; no secret stands in it, only files that hold one.

```toml
[[receivers]]
name = "on-call"
kind = "pagerduty"                       # pagerduty, slack, email or webhook
severities = ["page"]                    # default: page and ticket
namespaces = "shop|bank"                 # tenants, a regular expression; default: all, and the hosts
routing_key_file = "/etc/hyper/secrets/pagerduty"

[dead_man]
url = "https://dead-man.example.com/hyper"
```

Alertmanager reads the files with secrets itself, so they are the settings of its 0.25: `routing_key_file`,
`api_url_file`, `auth_password_file`, and `credentials_file` of a webhook's bearer token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from alerts import tomlfile
from alerts.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

RESERVED: Final = frozenset({"interface", "remediation", "dead-man"})
"""Names of receivers that are always there."""

_SUBJECT: Final = (
    '[{{ .CommonLabels.severity }}{{ if eq .Status "resolved" }}, over{{ end }}] {{ with index .Alerts 0 }}'
)
_SUBJECT_END: Final = "{{ .Annotations.summary }}{{ end }}{{ if gt (len .Alerts) 1 }}, and more{{ end }}"
TITLE: Final = _SUBJECT + _SUBJECT_END
"""One line: how bad, and what; of a group of several the first one's summary."""
TEXT: Final = (
    "{{ range .Alerts }}{{ .Annotations.description }}\n"
    "What to do: {{ .Annotations.runbook_url }}\nDashboard: {{ .Annotations.dashboard_url }}\n\n{{ end }}"
)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as err:
        raise ValueError(f"no regular expression: {err}") from err
    return pattern


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
# Neither quotes nor what ends a matcher of Alertmanager.
Pattern = Annotated[str, StringConstraints(pattern=r"^[^\s\"{}]{1,256}$"), AfterValidator(_compiles)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s\"{}]+$")]
# Absolute: Alertmanager takes others relative to its configuration.
SecretFile = Annotated[str, StringConstraints(pattern=r"^/.+$")]


class _Receiver(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    severities: tuple[Literal["page", "ticket"], ...] = Field(("page", "ticket"), min_length=1)
    namespaces: Pattern | None = None


class Webhook(_Receiver):
    """A URL of your own that takes Alertmanager's webhook, version 4."""

    kind: Literal["webhook"]
    url: Url
    token_file: SecretFile | None = None

    def config(self) -> dict[str, Any]:
        """What Alertmanager reads of it."""
        return {"webhook_configs": [webhook(self.url, self.token_file)]}


class Email(_Receiver):
    """Mail over SMTP with STARTTLS; `smarthost` is host:port."""

    kind: Literal["email"]
    to: str = Field(min_length=3)
    sender: str = Field(min_length=3)
    smarthost: str = Field(pattern=r"^[^\s:]+:[0-9]+$")
    username: str | None = None
    password_file: SecretFile | None = None

    def config(self) -> dict[str, Any]:
        """What Alertmanager reads of it."""
        mail: dict[str, Any] = {
            "to": self.to, "from": self.sender, "smarthost": self.smarthost, "send_resolved": True, "require_tls": True,
            "headers": {"Subject": TITLE}, "html": "", "text": TEXT,
        }  # fmt: skip
        if self.username is not None:
            mail["auth_username"] = self.username
        if self.password_file is not None:
            mail["auth_password_file"] = self.password_file
        return {"email_configs": [mail]}


class PagerDuty(_Receiver):
    """PagerDuty, or what speaks its Events API v2 at another `url`."""

    kind: Literal["pagerduty"]
    routing_key_file: SecretFile
    url: Url | None = None

    def config(self) -> dict[str, Any]:
        """What Alertmanager reads of it."""
        pager: dict[str, Any] = {
            "routing_key_file": self.routing_key_file, "send_resolved": True, "description": TITLE,
            "severity": '{{ if eq .CommonLabels.severity "page" }}critical{{ else }}warning{{ end }}',
            "details": {"what": TEXT},
        }  # fmt: skip
        if self.url is not None:
            pager["url"] = self.url
        return {"pagerduty_configs": [pager]}


class Slack(_Receiver):
    """Slack, or what takes its incoming webhooks; the file holds the webhook's URL, which is the secret."""

    kind: Literal["slack"]
    api_url_file: SecretFile
    channel: str = Field(min_length=1)

    def config(self) -> dict[str, Any]:
        """What Alertmanager reads of it."""
        slack = {
            "api_url_file": self.api_url_file, "channel": self.channel, "send_resolved": True,
            "title": TITLE, "text": TEXT, "title_link": "{{ (index .Alerts 0).Annotations.dashboard_url }}",
        }  # fmt: skip
        return {"slack_configs": [slack]}


Receiver = Annotated[Webhook | Email | PagerDuty | Slack, Field(discriminator="kind")]


class DeadMan(BaseModel):
    """Who notices that nothing comes any more: it gets HyperWatchdog every `interval`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    token_file: SecretFile | None = None
    interval: str = Field("1m", pattern=r"^(?:[0-9]+(?:ms|[smhdwy]))+$")

    def config(self) -> dict[str, Any]:
        """What Alertmanager reads of it."""
        return {"webhook_configs": [webhook(self.url, self.token_file)]}


class Receivers(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    receivers: tuple[Receiver, ...] = ()
    dead_man: DeadMan | None = None


def load(path: Path) -> Receivers:
    """Read the file.

    Raises:
        BadSetting: it cannot be read, is no TOML, or has a member that cannot be; the message names it.
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        raise BadSetting(f"{path}: {err.strerror}") from err
    receivers = tomlfile.parse(path, content, Receivers)
    names = [receiver.name for receiver in receivers.receivers]
    for name in names:
        if name in RESERVED or names.count(name) > 1:
            raise BadSetting(f"{path}: receivers: the name {name} is taken; give it another")
    return receivers


def webhook(url: str, token_file: str | None) -> dict[str, Any]:
    """A webhook of Alertmanager, with a bearer token from a file if there is one; no alert of a group is cut off."""
    config: dict[str, Any] = {"url": url, "send_resolved": True, "max_alerts": 0}
    if token_file:
        config["http_config"] = {"authorization": {"type": "Bearer", "credentials_file": token_file}}
    return config
