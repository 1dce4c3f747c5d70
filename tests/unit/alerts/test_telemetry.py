from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, get_args

from alerts.remediation import following, ladder, policy, policyfile
from alerts.remediation.guards import Limits
from alerts.remediation.signals import Signal
from alerts.remediation.telemetry import Telemetry
from collector.catalogue import remediation

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 100_000.0
HISTORY = [
    policy.Revision(time=NOW - 60, digest="new", kind="update"),
    policy.Revision(time=1.0, digest="old", kind="create", good=True),
]
CONTAINER = policy.Container(
    id="1" * 64, name="web", state="running", desired="running", epoch=1, labels={}, image_digest="new"
)


def rules() -> Iterator[policy.Rule]:
    """What is built in, and all of up to three steps that a policy file may have, for alerts built in and others."""
    yield from policy.RULES.values()
    for alert, steps in product([*policy.RULES, "Other"], product(get_args(policyfile.Step), repeat=3)):
        yield policyfile.AlertRule(alerts=(alert,), otherwise=steps).to_rule(alert)


def decided() -> Iterator[policy.Judgement]:
    """What the ladder does or proposes, after so many actions that did not help, and what is new calls for."""
    limits = Limits(cooldown_s=1, give_up_count=1)
    allowances = (ladder.Allowance("restart"), ladder.Allowance("full"))
    for rule, count, allowance in product(rules(), range(3), allowances):
        confirmed = policy.Judgement("act", rule.reason, "")
        past = ladder.Past(acted_at=[NOW - 900 + 100 * n for n in range(count)])
        plan = ladder.plan(rule, confirmed, policy.Seen(CONTAINER, HISTORY), allowance, past, limits, NOW)
        yield from (plan.judgement, *plan.proposals)
    pushed = Signal("registry", "", "", NOW, digest="newest")
    for signal in (pushed, Signal("registry", "", "", NOW), Signal("feed", "", "", NOW)):
        yield following.judge(signal, "new", CONTAINER, HISTORY)


def test_all_that_may_be_done_begins_at_0() -> None:
    samples = [
        sample
        for family in Telemetry().registry.collect()
        for sample in family.samples
        if sample.name == remediation.ACTIONS_TOTAL.name
    ]
    assert {sample.value for sample in samples} == {0}
    may_be_done = {(one.action, one.reason) for one in decided() if one.action is not None}
    assert {("restart", "container_down"), ("restart", "alert_rule"), ("redeploy", "no_recovery")} <= may_be_done
    for outcome in ("done", "failed"):
        begun = {(one.labels["action"], one.labels["reason"]) for one in samples if one.labels["outcome"] == outcome}
        assert may_be_done <= begun, may_be_done - begun
