"""Alertmanager's routes: who is told what, and what says nothing new while something else is told.

What the remediation controller can act on goes to its webhook as well as to people. `info` goes to nobody: it stands in
Alertmanager's interface. HyperWatchdog goes to the dead man's switch, if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alerts.receivers import Receivers, webhook
from alerts.remediation import policy

if TYPE_CHECKING:
    from alerts.thresholds import Routing, Thresholds

GROUP_BY: Final = ["namespace", "id", "name", "instance"]
"""One group for each container of each tenant, one for each host: none waits for others, or is cut off by them."""


_CAUSES: Final = "|".join(sorted(policy.HOST_CAUSES | policy.COLLECTOR_CAUSES))


def alertmanager_config(routing: Routing, receivers: Receivers | None = None) -> dict[str, Any]:
    """The configuration of Alertmanager."""
    receivers = receivers or Receivers()
    named = [{"name": "interface"}, {"name": "remediation", "webhook_configs": [_controller(routing)]}]
    if receivers.dead_man is not None:
        named.append({"name": "dead-man", **receivers.dead_man.config()})
    return {
        "route": {
            "receiver": "interface",
            "group_by": GROUP_BY,
            "group_wait": routing.group_wait,
            "group_interval": routing.group_interval,
            "repeat_interval": routing.repeat_interval,
            "routes": _routes(routing, receivers),
        },
        "inhibit_rules": inhibitions(),
        "receivers": [*named, *({"name": one.name, **one.config()} for one in receivers.receivers)],
    }


def _controller(routing: Routing) -> dict[str, Any]:
    return webhook(routing.webhook_url, routing.webhook_token_file)


def _routes(routing: Routing, receivers: Receivers) -> list[dict[str, Any]]:
    watchdog: dict[str, Any] = {"receiver": "interface", "matchers": ['alertname = "HyperWatchdog"']}
    if receivers.dead_man is not None:
        interval = receivers.dead_man.interval
        watchdog |= {
            "receiver": "dead-man",
            "group_wait": "0s",
            "group_interval": interval,
            "repeat_interval": interval,
        }
    people = []
    for one in receivers.receivers:
        matchers = [f'severity =~ "{"|".join(one.severities)}"']
        if one.namespaces is not None:
            matchers.append(f'namespace =~ "{_quoted(one.namespaces)}"')
        people.append(
            {
                "receiver": one.name,
                "matchers": matchers,
                "group_wait": routing.people_group_wait,
                "group_interval": routing.people_group_interval,
                "repeat_interval": routing.people_repeat_interval,
                "continue": True,
            }
        )
    return [
        watchdog,
        {"receiver": "remediation", "matchers": ['remediation != ""'], "continue": True},
        # The controller takes no action on these: while one fires it leaves alone what it is about.
        {"receiver": "remediation", "matchers": [f'alertname =~ "{_CAUSES}"'], "continue": True},
        {"receiver": "interface", "matchers": ['severity = "info"']},
        *people,
    ]


def _quoted(pattern: str) -> str:
    """A pattern between the quotes of a matcher."""
    return pattern.replace("\\", "\\\\")


def inhibitions() -> list[dict[str, Any]]:
    """What is not told while something else is.

    Labels that both alerts lack are equal to Alertmanager: a rule on `id` asks for an `id` on both sides.
    """

    def rule(source: list[str], target: list[str], equal: list[str]) -> dict[str, Any]:
        return {"source_matchers": source, "target_matchers": target, "equal": equal}

    blind = "HyperExporterDown|HyperCollectorStalled"
    symptoms = "HyperAgentUnhealthy|HyperContainerUnhealthy|HyperQemuSilent|HyperVmStopped"
    burns = "HyperAvailabilityBurnsFast|HyperAvailabilityBurnsSlowly"
    return [
        # Of a host that is down, or seen by nobody, nothing else is known.
        rule([f'alertname =~ "{blind}"'], ['instance != ""', f'alertname !~ "{blind}"'], ["instance"]),
        # Many at once are the host's trouble, not each container's own.
        rule(
            ['alertname = "HyperManyContainersDown"', 'instance != ""'],
            [f'alertname =~ "HyperContainerDown|{burns}"'],
            ["instance"],
        ),
        # A container that is down has neither an agent nor memory to complain about. Why it died is still told.
        rule(
            ['alertname = "HyperContainerDown"', 'id != ""'],
            ['id != ""', 'alertname !~ "HyperContainerDown|HyperContainerFlapping|HyperOomKill|HyperVmEvent"'],
            ["id"],
        ),
        # A guest that stands still does not answer either.
        rule(
            ['alertname =~ "HyperVmStopped|HyperQemuSilent"', 'id != ""'],
            ['alertname =~ "HyperAgentUnhealthy|HyperContainerUnhealthy|HyperHostViewLost"', 'id != ""'],
            ["id"],
        ),
        rule(
            [f'alertname =~ "{symptoms}|HyperContainerFlapping"', 'id != ""'], [f'alertname =~ "{burns}"', 'id != ""'],
            ["id"],
        ),
        # A host without room explains that guests are halted: one page, and not one for each of them.
        rule(
            ['alertname = "HyperHostDiskFull"'], ['alertname = "HyperVmStopped"', 'status = "io-error"'], ["instance"],
        ),
        # A host without CPU explains that its containers wait for it.
        rule(
            ['alertname = "HyperHostCpuSaturated"'], ['alertname = "HyperStarvedByHost"', 'instance != ""'],
            ["instance"],
        ),
        # A page silences tickets of the same cause: of the same container, of the same host.
        rule(
            ['severity = "page"', 'id != ""'], ['severity =~ "ticket|info"', 'id != ""'], ["id", "cause"],
        ),
        rule(
            ['severity = "page"', 'id = ""', 'instance != ""'], ['severity =~ "ticket|info"', 'id = ""'],
            ["instance", "cause"],
        ),
    ]  # fmt: skip


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
        jobs.append({"job_name": thresholds.remediation_job, "static_configs": [{"targets": [remediation]}]})
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
