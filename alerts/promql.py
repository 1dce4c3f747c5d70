"""Pieces of PromQL, made from metrics of the catalogue and checked against their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from collector.catalogue import BASE_LABELS, container

if TYPE_CHECKING:
    from collector.catalogue import Metric

DOWN_STATES: Final = ("created", "exited", "dead")
"""States in which a container is known not to run; those on the way somewhere are not among them."""


def select(metric: Metric, **matchers: str | tuple[str, ...]) -> str:
    """A selector of a metric; a tuple of values means any of them.

    Raises:
        ValueError: the metric has no such label.
    """
    known = {*metric.labels, *(BASE_LABELS if metric.scope == "container" else ())}
    parts = []
    for label, value in matchers.items():
        if label not in known:
            raise ValueError(f"{metric.name} has no label {label}")
        parts.append(f'{label}="{value}"' if isinstance(value, str) else f'{label}=~"{"|".join(value)}"')
    return f"{metric.name}{{{', '.join(parts)}}}" if parts else metric.name


def rate(metric: Metric, window: str = "5m", **matchers: str | tuple[str, ...]) -> str:
    """Growth of a counter a second."""
    return f"rate({select(metric, **matchers)}[{window}])"


def increase(metric: Metric, window: str, **matchers: str | tuple[str, ...]) -> str:
    """Growth of a counter over a window."""
    return f"increase({select(metric, **matchers)}[{window}])"


def events(metric: Metric, window: str, **matchers: str | tuple[str, ...]) -> str:
    """Growth of a counter whose series begin with their first event: a new one counts with all it has.

    New is what its target did not have when it answered before the window: also what was there earlier, as who counts
    was started again. If it did not answer then, nothing is new that was seen in the day before. A container is known
    by its id: with another name its series are others.
    """
    series = select(metric, **matchers)
    same = f"on ({', '.join(('id', *metric.labels))}) " if metric.scope == "container" else ""
    # A point for each 5m: with all samples of a day a dashboard, which asks for each of its steps, would be slow.
    lately = f"last_over_time({series}[1d:5m] offset {window}) unless on (instance, job) up offset {window} == 1"
    new = f"max_over_time({series}[{window}]) unless {same}({series} offset {window} or {lately})"
    return f"({new} or increase({series}[{window}]))"


def kept_events(metric: Metric, window: str) -> str:
    """Growth of a counter of containers that outlasts who counts: one that is first seen now counts with all it has.

    It is new if its target answered in the hour before the window and never had it. If the target did not answer, or
    Prometheus is new itself, nobody knows how old the events are: then only growth that is seen counts.
    """
    series, before = select(metric), f"[1h] offset {window}"
    new = f"max_over_time({series}[{window}]) unless on (id) last_over_time({series}{before})"
    return f"({new} and on (instance, job) max_over_time(up{before}) == 1 or increase({series}[{window}]))"


# A state set may have a series for every member or for the one that holds alone: `== 1` is right for both.
WANTED: Final = f"{select(container.DESIRED_RUNNING)} == 1"
QUARANTINED: Final = f"{select(container.QUARANTINE_START_TIME_SECONDS)} > 0"
RUNNING: Final = f"{select(container.STATE, state='running')} == 1"
DOWN: Final = f"{WANTED} and on (id) {select(container.STATE, state=DOWN_STATES)} == 1"
"""Evidence that it is down, not a lack of evidence that it is up: absent series fire nothing."""
