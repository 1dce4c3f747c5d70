"""Errors of the collector. None of them ends a round: a source that fails is down, and the others go on.

CollectorError
├── UnknownMetricError   a name that is not in the catalogue
├── ApplicationError     an application gave no answer of use; `reason` is the label that it is counted under
└── SourceError          a source has no sample this time; `reason` is short and fit for a log line
    ├── UnreachableError no socket, no process, or the other side closed
    ├── WedgedError      no answer within the deadline
    ├── TooLargeError    an answer beyond the limit
    └── MalformedError   an answer that is not what the protocol or the kernel writes
"""

from __future__ import annotations


class CollectorError(Exception):
    """Base of all errors of the collector."""


class UnknownMetricError(CollectorError, KeyError):
    """Nothing in the catalogue has this name."""

    def __str__(self) -> str:
        return f"no metric is named {self.args[0]!r}; collector/definitions has them all"


class ApplicationError(CollectorError):
    """A fetch from an application came to nothing; `reason` is one of `container.RELAY_REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SourceError(CollectorError):
    """A source gave no sample this time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreachableError(SourceError):
    """There is nobody at the other end: no socket, no process, or it was closed."""


class WedgedError(SourceError):
    """It took the request and did not answer in time."""


class TooLargeError(SourceError):
    """The answer is larger than any honest one."""


class MalformedError(SourceError):
    """The answer is not what the protocol, or the kernel, writes."""
