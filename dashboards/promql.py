"""Selectors of PromQL, made from metrics of the catalogue and checked against their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collector.catalogue import BASE_LABELS

if TYPE_CHECKING:
    from collector.catalogue import Metric

CHOSEN = 'namespace=~"$namespace", container=~"$container"'
"""The containers that the dashboard's variables choose."""


def select(metric: Metric, **matchers: str) -> str:
    """A selector of a metric, of the chosen containers if it is one of containers.

    Args:
        metric: What to select.
        **matchers: Label and the regular expression that its value has to match, anchored.

    Raises:
        ValueError: the metric has no such label.
    """
    of_container = metric.scope == "container"
    known = {*metric.labels, *(BASE_LABELS if of_container else ())}
    parts = [CHOSEN] if of_container else []
    for label, pattern in matchers.items():
        if label not in known:
            raise ValueError(f"{metric.name} has no label {label}")
        parts.append(f'{label}=~"{pattern}"')
    return f"{metric.name}{{{', '.join(parts)}}}" if parts else metric.name


def rate(metric: Metric, **matchers: str) -> str:
    """Growth of a counter a second, over the interval that suits the zoom."""
    return f"rate({select(metric, **matchers)}[$__rate_interval])"


def increase(metric: Metric, window: str, **matchers: str) -> str:
    """Growth of a counter over a window, a Prometheus duration or `$__rate_interval`."""
    return f"increase({select(metric, **matchers)}[{window}])"


def count(expr: str, among: Metric) -> str:
    """How many series the expression has, and 0 only if there is a series of `among` at all: unseen is not zero."""
    return f"count({expr}) or count({select(among)}) * 0"
