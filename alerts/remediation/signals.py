"""What sets the controller going: an alert, an event of hyperd, a push to a registry. One form for all of them.

A signal never moves anything alone. `incident` stays the same over all repetitions of one signal, so that each leads
to one action at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alerts.remediation.webhook import Alert

Source = Literal["alertmanager", "hyperd", "registry", "feed"]

PUSH: Final = "push"
VULNERABILITY: Final = "vulnerability"


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that was told. `since` is when it began, seconds since 1970.

    Attributes:
        name: The alert's name; a signal of hyperd has the name of the alert that says the same; else `push` or
            `vulnerability`.
        labels: Those of the alert; of others as many as are known of `id`, `name`, `namespace`, `instance`.
        says: For people: what was told beside the name.
        image: The reference that was pushed to, and its new digest; of what is to be built again, the container's.
    """

    source: Source
    name: str
    incident: str
    since: float
    firing: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    image: str | None = None
    digest: str | None = None

    def to_text(self) -> str:
        """One line for the audit."""
        return f"{self.source}: {self.name[:256]}{f' ({self.says})' if self.says else ''}"


def of_alert(alert: Alert) -> Signal:
    """The signal that an alert of Alertmanager is."""
    return Signal(
        "alertmanager",
        alert.name,
        alert.incident,
        alert.starts_at.timestamp(),
        firing=alert.status == "firing",
        labels=alert.labels,
    )


def of_event(name: str, action: str, container_id: str, time_s: float, attributes: Mapping[str, str]) -> Signal:
    """The signal that an event of hyperd is (`GET /v1/events`), by the name of the alert that says the same."""
    labels = {"id": container_id} | ({"name": attributes["name"]} if "name" in attributes else {})
    return Signal("hyperd", name, f"hyperd/{name}/{container_id}/{time_s:.3f}", time_s, labels=labels, says=action)
