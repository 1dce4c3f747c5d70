"""Alertmanager's routes: what the remediation controller can act on goes to its webhook.

The rest has no receiver of its own yet: it stands in Alertmanager's interface.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alerts.thresholds import Routing, Thresholds


def alertmanager_config(routing: Routing) -> dict[str, Any]:
    """The configuration of Alertmanager."""
    webhook: dict[str, Any] = {"url": routing.webhook_url, "send_resolved": True, "max_alerts": 0}
    if routing.webhook_token_file:
        credentials = {"type": "Bearer", "credentials_file": routing.webhook_token_file}
        webhook["http_config"] = {"authorization": credentials}
    return {
        "route": {
            "receiver": "interface",
            # One group a container: a container's alert never waits for, or is cut off by, those of others.
            "group_by": ["namespace", "id", "name"],
            "group_wait": routing.group_wait,
            "group_interval": routing.group_interval,
            "repeat_interval": routing.repeat_interval,
            "routes": [{"receiver": "remediation", "matchers": ['remediation != ""']}],
        },
        "inhibit_rules": [
            {
                # A container that is down has neither an agent nor memory to complain about.
                "source_matchers": ['alertname = "HyperContainerDown"'],
                "target_matchers": ['alertname =~ "HyperAgentUnhealthy|HyperMemoryNearLimit"'],
                "equal": ["id"],
            }
        ],
        "receivers": [{"name": "interface"}, {"name": "remediation", "webhook_configs": [webhook]}],
    }


def prometheus_config(
    thresholds: Thresholds,
    *,
    rule_file: str,
    alertmanager: str,
    exporter: str,
    remediation: str | None = None,
    scrape_interval: str = "10s",
) -> dict[str, Any]:
    """A configuration of Prometheus around the rules.

    Args:
        thresholds: Names the exporter's job and the interval of evaluation.
        rule_file: Path of the generated rules.
        alertmanager: `host:port` of Alertmanager.
        exporter: `host:port` of hyper-exporter.
        remediation: `host:port` of the remediation controller; None: not scraped.
        scrape_interval: A Prometheus duration; the scrape's timeout never exceeds it.
    """
    jobs = [{"job_name": thresholds.exporter_job, "static_configs": [{"targets": [exporter]}]}]
    if remediation is not None:
        jobs.append({"job_name": "hyper-remediation", "static_configs": [{"targets": [remediation]}]})
    return {
        "global": {
            "scrape_interval": scrape_interval,
            "scrape_timeout": scrape_interval,
            "evaluation_interval": thresholds.evaluation_interval,
        },
        "rule_files": [rule_file],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": jobs,
    }
