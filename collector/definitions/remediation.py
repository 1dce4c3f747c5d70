"""`hyper_remediation_*`: what the alert controller does. It exports them itself, `hyper-exporter` does not."""

from __future__ import annotations

from collector.metric import Metric

ACTIONS_TOTAL = Metric(
    "hyper_remediation_actions_total", "counter", "", "Actions taken on containers.",
    "hyper_remediation", "remediation controller", labels=("action", "reason", "outcome"), scope="remediation",
)  # fmt: skip
DECISIONS_TOTAL = Metric(
    "hyper_remediation_decisions_total", "counter", "", "Alerts received, by what was decided.",
    "hyper_remediation", "remediation controller", labels=("decision", "reason"), scope="remediation",
)  # fmt: skip
LAST_ACTION_TIMESTAMP_SECONDS = Metric(
    "hyper_remediation_last_action_timestamp_seconds", "gauge", "seconds", "Time of the last action, since 1970.",
    "hyper_remediation", "remediation controller", scope="remediation",
)  # fmt: skip
ACTION_DURATION_SECONDS = Metric(
    "hyper_remediation_action_duration_seconds", "histogram", "seconds", "How long an action took.",
    "hyper_remediation", "remediation controller", labels=("action",), scope="remediation",
)  # fmt: skip
WEBHOOK_REQUESTS_TOTAL = Metric(
    "hyper_remediation_webhook_requests_total", "counter", "", "Requests to the Alertmanager webhook, by HTTP status.",
    "hyper_remediation", "remediation controller", labels=("code",), scope="remediation",
)  # fmt: skip
STOPPED = Metric(
    "hyper_remediation_stopped", "gauge", "", "Whether the stop switch is on.",
    "hyper_remediation", "remediation controller", scope="remediation",
)  # fmt: skip
WAITING = Metric(
    "hyper_remediation_waiting", "gauge", "", "Proposals that wait for a person.",
    "hyper_remediation", "remediation controller", scope="remediation",
)  # fmt: skip
FEED_READABLE = Metric(
    "hyper_remediation_feed_readable", "gauge", "", "Whether the feed of vulnerabilities can be read.",
    "hyper_remediation", "remediation controller", when="only with remediation_feed_file set", scope="remediation",
)  # fmt: skip
FEED_TIMESTAMP_SECONDS = Metric(
    "hyper_remediation_feed_timestamp_seconds", "gauge", "seconds", "When the feed in use was written, since 1970.",
    "hyper_remediation", "remediation controller", when="only with remediation_feed_file set", scope="remediation",
)  # fmt: skip
