"""What fires about hosts and collectors: while it does, a container's trouble is not its own, or not to be believed.

Alertmanager repeats what fires, so that what it no longer tells is forgotten after a while.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alerts.remediation import policy
from alerts.remediation.policy import Judgement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alerts.remediation.policy import Container
    from alerts.remediation.signals import Signal

MAX_CAUSES: Final = 1000


@dataclass(frozen=True, slots=True)
class Cause:
    """An alert of a host or collector. `id` is set if it is about one container; `time` is when it was told last."""

    name: str
    instance: str
    id: str
    firing: bool
    time: float


class Causes:
    """What is known to fire. Times are seconds since 1970."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._firing: OrderedDict[tuple[str, str, str], Cause] = OrderedDict()

    def take(self, cause: Cause) -> None:
        """Remember or forget one."""
        key = (cause.name, cause.instance, cause.id)
        self._firing.pop(key, None)
        if cause.firing:
            self._firing[key] = cause
            if len(self._firing) > MAX_CAUSES:
                self._firing.popitem(last=False)

    def judge(self, signal: Signal, container: Container, now: float) -> Judgement | None:
        """Why nothing is to be done about a signal; None if nothing of the kind fires."""
        instance = signal.labels.get("instance", "")
        for cause in self._firing.values():
            if now - cause.time > self._ttl_s:
                continue
            if cause.id and cause.id != container.id:
                continue
            # The controller is one per host: what has no instance is about this one.
            if instance and cause.instance and instance != cause.instance:
                continue
            # Want of CPU makes nothing exit: a container that did would wait for as long as the host is busy.
            if cause.name in policy.CPU_CAUSES and signal.name == policy.DOWN and container.ended_by_itself:
                continue
            if cause.name in policy.HOST_CAUSES:
                return Judgement("skip", "host_is_the_cause", f"{cause.name} fires")
            # What hyperd tells does not come by the collector.
            if cause.name in policy.COLLECTOR_CAUSES and signal.source == "alertmanager":
                return Judgement("skip", "collector_is_the_cause", f"{cause.name} fires")
        return None


def cause_of(name: str, labels: Mapping[str, str], now: float, *, firing: bool) -> Cause | None:
    """The cause that an alert is; None if it is none."""
    if name not in policy.HOST_CAUSES | policy.COLLECTOR_CAUSES:
        return None
    return Cause(name, labels.get("instance", "")[:256], labels.get("id", "")[:64], firing, now)


def from_line(line: Mapping[str, Any]) -> Cause:
    """A cause as the journal keeps it."""
    return Cause(**{name: line[name] for name in ("name", "instance", "id", "firing", "time")})
