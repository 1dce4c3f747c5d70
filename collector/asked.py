"""What a container's labels ask for: that its own metrics are relayed, and that it is probed.

    hyper.metrics=PORT[/PATH]      hyper.metrics.{interval,timeout,budget,allow}
    hyper.probe=http:PORT[/PATH]   hyper.probe=tcp:PORT   hyper.probe.{interval,timeout}

Labels are the user's, but an image may bring some along: all of them are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from collector.sources.fetch import MAX_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS: Final = "hyper.metrics"
PROBE: Final = "hyper.probe"
DEFAULT_BUDGET: Final = 500
MAX_BUDGET: Final = 5000
DEFAULT_TIMEOUT_S: Final = 5.0
MAX_INTERVAL_S: Final = 3600.0
MAX_PREFIXES: Final = 100
_PLACE: Final = re.compile(r"([0-9]{1,5})(/[!-~]{0,500})?")
_PREFIX: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TIME: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class LabelError(ValueError):
    """A label that asks for nothing that there is; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Relay:
    """The application's metrics are asked for at `port` and `path`; `interval_s` 0: in every round."""

    port: int
    path: str
    interval_s: float
    timeout_s: float
    budget: int
    allow: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """The application is probed; of `tcp` there is no path."""

    kind: Literal["http", "tcp"]
    port: int
    path: str
    interval_s: float
    timeout_s: float


def parse_relay(labels: Mapping[str, str]) -> Relay | None:
    """What `hyper.metrics` and its fellows ask for; None if there is no such label.

    Raises:
        LabelError: one of them is wrong.
    """
    if METRICS not in labels:
        return None
    port, path = _place(METRICS, labels[METRICS], "/metrics")
    budget = labels.get(f"{METRICS}.budget", str(DEFAULT_BUDGET))
    if re.fullmatch(r"[0-9]{1,4}", budget) is None or not 1 <= int(budget) <= MAX_BUDGET:
        raise LabelError(f"{METRICS}.budget: a number of series from 1 to {MAX_BUDGET} expected")
    allow = tuple(name for name in re.split(r"[,\s]+", labels.get(f"{METRICS}.allow", "")) if name)
    if len(allow) > MAX_PREFIXES or not all(_PREFIX.fullmatch(name) for name in allow):
        raise LabelError(f"{METRICS}.allow: at most {MAX_PREFIXES} beginnings of names expected, with commas between")
    return Relay(port, path, *_times(METRICS, labels), int(budget), allow)


def parse_probe(labels: Mapping[str, str]) -> Probe | None:
    """What `hyper.probe` and its fellows ask for; None if there is no such label.

    Raises:
        LabelError: one of them is wrong.
    """
    if PROBE not in labels:
        return None
    kind, _, place = labels[PROBE].partition(":")
    if kind == "exec":
        raise LabelError(f"{PROBE}: a command is a health check: --health-cmd")
    if kind == "http":
        port, path = _place(PROBE, place, "/")
        return Probe("http", port, path, *_times(PROBE, labels))
    if kind == "tcp" and "/" not in place:
        return Probe("tcp", _place(PROBE, place, "")[0], "", *_times(PROBE, labels))
    raise LabelError(f"{PROBE}: http:PORT/PATH or tcp:PORT expected")


def _place(label: str, text: str, path: str) -> tuple[int, str]:
    found = _PLACE.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= 65535:
        raise LabelError(f"{label}: PORT or PORT/PATH expected, such as 8080/metrics")
    return int(found[1]), found[2] or path


def _times(label: str, labels: Mapping[str, str]) -> tuple[float, float]:
    interval_s = _seconds(f"{label}.interval", labels.get(f"{label}.interval", "0"), 0.0, MAX_INTERVAL_S)
    timeout_s = _seconds(f"{label}.timeout", labels.get(f"{label}.timeout", f"{DEFAULT_TIMEOUT_S:g}"), 0.01)
    return interval_s, timeout_s


def _seconds(label: str, text: str, least: float, most: float = MAX_DEADLINE_S) -> float:
    found = _TIME.fullmatch(text)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else -1.0
    if not least <= seconds <= most:
        raise LabelError(f"{label}: seconds from {least:g} to {most:g} expected, such as 15s")
    return seconds
