"""What a container's labels ask for: that its own metrics are relayed, and that it is probed.

    hyper.metrics=PORT[/PATH]      hyper.metrics.{interval,timeout,budget,allow,labels}
    hyper.probe=http:PORT[/PATH]   hyper.probe=tcp:PORT   hyper.probe=exec:COMMAND   hyper.probe.{interval,timeout}

Labels are the user's, but an image may bring some along: all of them are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from collector.sources.fetch import MAX_DEADLINE_S
from runtime import labels as told
from runtime.labels import PROBE

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS: Final = "hyper.metrics"
DEFAULT_BUDGET: Final = 500
MAX_BUDGET: Final = 5000
DEFAULT_TIMEOUT_S: Final = 5.0
MAX_INTERVAL_S: Final = 3600.0
MAX_NAMES: Final = 100
_PLACE: Final = re.compile(r"([0-9]{1,5})(/[!-~]{0,500})?")
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class LabelError(ValueError):
    """A label that asks for nothing that there is; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Relay:
    """The application's metrics are asked for at `port` and `path`; `interval_s` 0: in every round.

    Of names those are relayed that begin with one of `allow`, of labels those of `labels`; None: all of them.
    """

    port: int
    path: str
    interval_s: float
    timeout_s: float
    budget: int
    allow: tuple[str, ...]
    labels: frozenset[str] | None = None


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
    allow = _names(f"{METRICS}.allow", labels.get(f"{METRICS}.allow", ""), "beginnings of names")
    keep = None
    if (text := labels.get(f"{METRICS}.labels")) is not None:
        keep = frozenset(_names(f"{METRICS}.labels", text, "names of labels"))
        if not keep:
            raise LabelError(f"{METRICS}.labels: one name of a label at least expected")
    return Relay(port, path, *_times(METRICS, labels), int(budget), allow, keep)


def parse_probe(labels: Mapping[str, str]) -> Probe | None:
    """What `hyper.probe` and its fellows ask for; None if there is no such label, or if it is a command.

    A command is not the collector's: `hyperd` makes a health check of it.

    Raises:
        LabelError: one of them is wrong.
    """
    if PROBE not in labels:
        return None
    kind, _, place = labels[PROBE].partition(":")
    if kind == "exec":
        if told.command(labels) is None:
            raise LabelError(f"{PROBE}: exec:COMMAND expected, such as exec:pg_isready")
        _times(PROBE, labels)
        return None
    if kind == "http":
        port, path = _place(PROBE, place, "/")
        return Probe("http", port, path, *_times(PROBE, labels))
    if kind == "tcp" and "/" not in place:
        return Probe("tcp", _place(PROBE, place, "")[0], "", *_times(PROBE, labels))
    raise LabelError(f"{PROBE}: http:PORT/PATH, tcp:PORT or exec:COMMAND expected")


def _names(label: str, text: str, what: str) -> tuple[str, ...]:
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    if len(names) > MAX_NAMES or not all(_NAME.fullmatch(name) for name in names):
        raise LabelError(f"{label}: at most {MAX_NAMES} {what} expected, with commas between")
    return names


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
    seconds = told.seconds(text)
    if seconds is None or not least <= seconds <= most:
        raise LabelError(f"{label}: seconds from {least:g} to {most:g} expected, such as 15s")
    return seconds
