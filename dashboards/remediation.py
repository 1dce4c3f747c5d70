"""The Remediation dashboard: what was done to containers, why, and whether it helped."""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, remediation
from dashboards import links, marks
from dashboards.layout import dashboard
from dashboards.panels import GREEN, ORANGE, RED, Code, Column, Panel, Query, stat, steps, table, time_series
from dashboards.promql import PER_CONTAINER, Chosen
from dashboards.variables import chain

UID: Final = links.REMEDIATION

_NAMES: Final = ("instance", "namespace", "pod", "container")
_ALL: Final = Chosen(_NAMES)
_NO_CONTROLLER: Final = "No controller is scraped"
_NO_ACTION: Final = "No action in this time"
_GUARDS: Final = "cooldown|budget_spent|host_budget_spent|rollback_spent|stop_switch"
_WHO: Final = "{{namespace}}/{{container}}"


def remediation_dashboard() -> dict[str, Any]:
    """The dashboard as JSON."""
    return dashboard(
        UID,
        "What the controller did to containers, why, and how it ended; and what it decided not to do. It counts by "
        "reason, not by container: who it was stands in `hyper remediation ls` and `hyper history`.",
        chain(_NAMES),
        [
            ("Is it at work, and does it help?", _now()),
            ("What was done, and how did it end?", _actions()),
            ("Why was it done, or not done?", _decisions()),
            ("Did it help?", _effect()),
            ("Does the controller itself work?", _controller()),
        ],
        [marks.actions(), marks.pages(_ALL), marks.digests(_ALL), marks.oom_kills(_ALL)],
        since="now-24h",
    )


def _now() -> list[Panel]:
    actions = _ALL.select(remediation.ACTIONS_TOTAL)
    done = f"sum({_ALL.increase(remediation.ACTIONS_TOTAL, '24h', outcome='done')})"
    tried = f"sum({_ALL.increase(remediation.ACTIONS_TOTAL, '24h')})"
    return [
        stat(
            "Controller", "Whether Prometheus gets an answer from it. Without it nothing is done for anyone.",
            f"count({actions}) > bool 0", unit="none", codes=(Code(1, "answers", GREEN), Code(0, "silent", RED)),
            empty=_NO_CONTROLLER, filled=True, width=3,
        ),
        stat(
            "Stop switch", "While it is on nothing is done for anyone: `hyper remediation resume` lifts it.",
            f"max({_ALL.select(remediation.STOPPED)})", unit="none",
            codes=(Code(0, "off", GREEN), Code(1, "on", RED)), empty=_NO_CONTROLLER, filled=True, width=3,
        ),
        stat(
            "Waiting for a person", "Proposals that lie beyond what it may do by itself: `hyper remediation ls "
            "--waiting` shows them, and `hyper remediation approve` has them done.",
            f"sum({_ALL.select(remediation.WAITING)})", empty=_NO_CONTROLLER, thresholds=steps((1, ORANGE)), width=3,
        ),
        stat(
            "Actions, 24 h", "Actions taken on containers in the last day.", tried, empty=_NO_CONTROLLER,
            thresholds=steps((1, ORANGE)), width=3,
        ),
        stat(
            "Succeeded, 24 h", "Share of the actions that ended as they should.", f"{done} / ({tried} > 0)",
            unit="percentunit", empty="No action in this time",
            thresholds=steps((0.5, ORANGE), (0.9, GREEN), base=RED), width=3,
        ),
        stat(
            "Did nothing, 24 h", "Alerts for which it did nothing. The reasons are below.",
            f"sum({_ALL.increase(remediation.DECISIONS_TOTAL, '24h', decision='skip')})", empty=_NO_CONTROLLER, width=3,
        ),
        stat(
            "Held back, 24 h",
            "Decisions that a cooldown, a spent budget, a rollback before or the stop switch held back: people "
            "have to look.",
            f"sum({_ALL.increase(remediation.DECISIONS_TOTAL, '24h', reason=_GUARDS)})",
            empty=_NO_CONTROLLER, thresholds=steps((1, RED)), filled=True, width=3,
        ),
        stat(
            "Last action", "When a container was last acted on.",
            f"max({_ALL.select(remediation.LAST_ACTION_TIMESTAMP_SECONDS)}) * 1000", unit="dateTimeFromNow",
            empty="Never", width=3,
        ),
    ]  # fmt: skip


def _actions() -> list[Panel]:
    grown = _ALL.increase(remediation.ACTIONS_TOTAL)
    return [
        time_series(
            "What was done", "Actions by kind.", [Query(f"sum by (action) ({grown}) > 0", "{{action}}")],
            unit="short", empty=_NO_ACTION, bars=True, stacked=True, width=8,
        ),
        time_series(
            "Why", "Actions by reason.", [Query(f"sum by (reason) ({grown}) > 0", "{{reason}}")],
            unit="short", empty=_NO_ACTION, bars=True, stacked=True, width=8,
        ),
        time_series(
            "Outcome", "Actions by how they ended.", [Query(f"sum by (outcome) ({grown}) > 0", "{{outcome}}")],
            unit="short", empty=_NO_ACTION, bars=True, stacked=True, width=8,
        ),
        table(
            "All actions in this time", "What was done, why, and how it ended, over the chosen time.",
            [Column("Action", label="action"), Column("Reason", label="reason"), Column("Outcome", label="outcome"),
             Column("Times", expr=f"sum by (action, reason, outcome) "
                    f"({_ALL.increase(remediation.ACTIONS_TOTAL, '$__range')}) > 0")],
            empty=_NO_ACTION,
        ),
        time_series(
            "How long actions take", "Half of them took less, and 19 of 20 did, from the decision to the end.",
            [Query(_ALL.quantile(share, remediation.ACTION_DURATION_SECONDS, "action", "$__range"),
            "{{action}}, " + name)
             for share, name in ((0.5, "half"), (0.95, "19 of 20"))],
            unit="s", empty=_NO_ACTION,
        ),
    ]  # fmt: skip


def _decisions() -> list[Panel]:
    who = {"instance": "Host", "namespace": "Tenant", "pod": "Pod", "container": "Container"}
    told = f"timestamp({_ALL.alerts(remediation='.+')})"

    def by_reason(decision: str) -> list[Query]:
        grown = _ALL.increase(remediation.DECISIONS_TOTAL, decision=decision)
        return [Query(f"sum by (reason) ({grown}) > 0", "{{reason}}")]

    return [
        time_series(
            "Decided to act", "Decisions to do something, or to do it if the controller were allowed to (dry run).",
            by_reason("act|dry_run"), unit="short", empty="No such decision in this time", bars=True, stacked=True,
            width=8,
        ),
        time_series(
            "Decided to do nothing", "Why it did nothing about an alert.",
            by_reason("skip"), unit="short", empty="No such decision in this time", bars=True, stacked=True, width=8,
        ),
        table(
            "All decisions in this time", "Decisions and their reasons, over the chosen time.",
            [Column("Decision", label="decision"), Column("Reason", label="reason"),
             Column("Times", expr=f"sum by (decision, reason) "
                    f"({_ALL.increase(remediation.DECISIONS_TOTAL, '$__range')}) > 0")],
            empty="No decision in this time", width=8,
        ),
        table(
            "Whom it was told of", "Containers that had an alert which it can act on, and when that fired last. "
            "`hyper remediation ls --container NAME` says what it decided about one.",
            [*(Column(heading, label=label) for label, heading in who.items()),
             Column("Alert", label="alertname"),
             Column("Fired last", unit="dateTimeFromNow",
                    expr=f"max by ({PER_CONTAINER}, alertname) (max_over_time({told}[$__range:1m])) * 1000")],
            empty="No such alert in this time", links=[links.from_row(links.CONTAINER, who)], width=24, height=6,
        ),
    ]  # fmt: skip


def _effect() -> list[Panel]:
    return [
        time_series(
            "Down containers", "Containers that should be running and are not. After an action it falls, or the action "
            "was the wrong one.",
            [Query(_ALL.count(_ALL.down, container.STATE), "down")], unit="short", empty="No container is seen",
            width=8,
        ),
        time_series(
            "Restarts by container", "Starts after the first. The same container again and again: it does not help.",
            [Query(f"sum by ({PER_CONTAINER}) ({_ALL.increase(container.RESTARTS_TOTAL)}) > 0", _WHO)],
            unit="short", empty="No restart in this time", bars=True, links=links.to_container(), width=8,
        ),
        time_series(
            "Containers by image digest", "A roll-back shows as containers that go from one digest to another.",
            [Query(f"count by (image, digest) ({_ALL.select(container.INFO)})", "{{image}} {{digest}}")],
            unit="short", empty="No container is seen", stacked=True, width=8,
            links=[links.from_series(links.IMAGES, ("image", "digest"))],
        ),
    ]  # fmt: skip


def _controller() -> list[Panel]:
    trouble = _ALL.increase(remediation.DECISIONS_TOTAL, reason="hyperd_away|hyperd_refused")
    return [
        time_series(
            "Requests from Alertmanager", "Requests to the webhook a second, by HTTP status. None while alerts fire: "
            "Alertmanager does not reach it.",
            [Query(f"sum by (code) ({_ALL.rate(remediation.WEBHOOK_REQUESTS_TOTAL)})", "{{code}}")],
            unit="reqps", empty="No request yet",
        ),
        time_series(
            "Trouble with hyperd", "Decisions that came to nothing as hyperd did not answer or refused.",
            [Query(f"sum by (reason) ({trouble})", "{{reason}}")],
            unit="short", empty=_NO_CONTROLLER, bars=True,
        ),
    ]  # fmt: skip
