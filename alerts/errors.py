"""Errors of this room. A message says what is wrong, where, and what to do.

AlertsFault              1
├── BadSetting           2   a threshold, address, token file that cannot be
├── BadFeed                  a file of vulnerabilities is not what OSV says
├── BadWebhook           400 what was posted is no Alertmanager webhook
├── NoSamples                the exporter does not answer
├── NotApproved          4xx what a person approves does not wait, or no longer fits
├── AuditUnwritable      1   a decision cannot be written down, so it is not acted on
└── HyperdFault              what hyperd answered, or that it did not
    ├── HyperdAway           no connection, no answer in time, or 5xx
    └── HyperdRefused        4xx: asking again would not help
"""

from __future__ import annotations


class AlertsFault(Exception):  # noqa: N818 -- a base that is no "…Error" reads better where it is raised
    """Base of all errors of this room; `exit_code` is that of the program it ends."""

    exit_code = 1


class BadSetting(AlertsFault):
    """A setting that cannot be; the message names it."""

    exit_code = 2


class BadFeed(AlertsFault):
    """A file of vulnerabilities is too large, or not in OSV's form; the message says where."""


class BadWebhook(AlertsFault):
    """The body is no Alertmanager webhook of version 4; `status` is the HTTP status to answer with."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class NoSamples(AlertsFault):
    """The exporter does not answer, or not in time; the message says why."""


class AuditUnwritable(AlertsFault):
    """The audit file cannot be opened, locked, written or synced."""


class HyperdFault(AlertsFault):
    """Base of what can go wrong between the controller and hyperd."""


class HyperdAway(HyperdFault):
    """No answer. `sent` is whether the request may have reached hyperd, and so may have been carried out."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class HyperdRefused(HyperdFault):
    """hyperd said no; `status` is the HTTP status of its answer, `code` what it calls the error."""

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class NotApproved(AlertsFault):
    """A decision cannot be approved; `status` is the HTTP status to answer with."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
