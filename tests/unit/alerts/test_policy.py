from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from alerts.errors import BadSetting
from alerts.remediation import causes, ladder, policy, policyfile, registry
from alerts.remediation.guards import Limits, streak
from alerts.remediation.policy import Container, Judgement, Revision, Rule, Seen
from alerts.remediation.signals import PUSH, Signal

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = Limits(cooldown_s=10, give_up_count=3)
NOW = 100_000.0
CONFIRMED = Judgement("act", "unhealthy", "hyperd says so")


def container(**members: Any) -> Container:
    return Container.model_validate(
        {"id": "1" * 64, "name": "web", "state": "running", "desired": "running", "epoch": 1, "labels": {},
         "image_digest": "new", **members}
    )  # fmt: skip


def history(*, ago_s: float = 60, good: bool = False, before: bool = True) -> list[Revision]:
    return [
        Revision(time=NOW - ago_s, digest="new", kind="update", good=good),
        Revision(time=1.0, digest="old", kind="create", good=before),
    ]


def steps(
    alert: str, revisions: list[Revision], level: policy.Level = "full", past: ladder.Past | None = None, **more: Any
) -> list[tuple[str, str | None, str]]:
    allowance = ladder.Allowance(level, **more)
    seen = Seen(container(), revisions)
    made = ladder.plan(policy.RULES[alert], CONFIRMED, seen, allowance, past or ladder.Past(), LIMITS, NOW)
    return [(one.verdict, one.action, one.reason) for one in (*made.proposals, made.judgement)]


def test_soon_after_a_change_the_first_step_is_back() -> None:
    assert steps(policy.UNHEALTHY, history(good=True)) == [("act", "rollback", "unhealthy")]
    assert steps(policy.UNHEALTHY, history(ago_s=LIMITS.change_window_s + 1)) == [("act", "restart", "unhealthy")]
    assert steps(policy.DOWN, history()) == [("act", "rollback", "container_down")]
    assert steps(policy.DOWN, history(good=True)) == [("act", "redeploy", "container_down")]
    assert steps(policy.NEAR_LIMIT, history()) == [("act", "rollback", "memory")]
    assert steps(policy.NEAR_LIMIT, history()[1:]) == [("skip", None, "no_action_for_alert")]
    assert steps(policy.NEAR_LIMIT, history(before=False)) == [("skip", None, "no_known_good")]
    after = [Revision(time=NOW - 5, digest="new", kind="rollback"), *history()]
    after[1] = Revision(time=NOW - 60, digest="bad", kind="update")
    assert steps(policy.UNHEALTHY, after) == [("act", "restart", "unhealthy")], "a rollback is not rolled back"


def test_the_ladder_is_climbed_and_ends_in_quarantine() -> None:
    old = history(ago_s=90_000)
    past = [ladder.Past(acted_at=[NOW - 900 + 100 * n for n in range(count)]) for count in range(5)]
    assert steps(policy.UNHEALTHY, old, past=past[1]) == [("act", "redeploy", "unhealthy")]
    assert steps(policy.UNHEALTHY, old, past=past[2]) == [("act", "redeploy", "unhealthy")]
    assert steps(policy.UNHEALTHY, old, past=past[3]) == [("act", "quarantine", "no_recovery")]
    assert steps(policy.UNHEALTHY, old, "rollback", past[3]) == [
        ("dry_run", "quarantine", "no_recovery"), ("act", "redeploy", "no_recovery"),
    ]  # fmt: skip
    recent = ladder.Past(acted_at=[NOW - 3], rolled_back_at=[NOW - 3])
    assert steps(policy.UNHEALTHY, history(), past=recent) == [("skip", None, "cooldown")]
    assert steps(policy.FLAPPING, history(), past=recent) == [("act", "quarantine", "crash_loop")]
    spent = ladder.Past(host_acted_at=[NOW] * 30)
    assert steps(policy.DOWN, old, past=spent) == [("skip", None, "host_budget_spent")]
    assert streak([1, 2, 500, 600], 650, 100) == 2


def test_what_lies_beyond_the_level_is_proposed() -> None:
    assert steps(policy.DOWN, history(), "redeploy") == [
        ("dry_run", "rollback", "container_down"), ("act", "redeploy", "container_down"),
    ]  # fmt: skip
    assert steps(policy.DOWN, history(good=True), "restart") == [
        ("dry_run", "redeploy", "container_down"), ("act", "restart", "container_down"),
    ]  # fmt: skip
    assert steps(policy.DOWN, history(), "restart") == [
        ("dry_run", "rollback", "container_down"), ("dry_run", "redeploy", "container_down"),
        ("act", "restart", "container_down"),
    ]  # fmt: skip
    assert steps(policy.UNHEALTHY, history(good=True)[1:], "restart") == [("act", "restart", "unhealthy")]
    assert steps(policy.DOWN, history(), "dry-run") == [("dry_run", "rollback", "container_down")]
    assert steps(policy.DOWN, history(), "full", dry_run=True) == [("dry_run", "rollback", "container_down")]
    assert steps(policy.FLAPPING, history()[1:], "redeploy") == [("dry_run", "quarantine", "crash_loop")]


@pytest.mark.parametrize(
    ("alert", "members", "deaths", "reason"),
    [
        (policy.UNHEALTHY, {"health": "unhealthy"}, 0, "unhealthy"),
        (policy.UNHEALTHY, {"health": "healthy"}, 0, "not_confirmed"),
        (policy.UNHEALTHY, {"health": "unhealthy", "state": "paused"}, 0, "paused"),
        (policy.FLAPPING, {}, 1, "not_confirmed"),
        (policy.FLAPPING, {}, 2, "crash_loop"),
        (policy.OUT_OF_MEMORY, {}, 0, "not_confirmed"),
        (policy.OUT_OF_MEMORY, {"oom_killed": True}, 0, "out_of_memory"),
        (policy.NEAR_LIMIT, {}, 0, "memory"),
        (policy.DOWN, {}, 0, "already_running"),
        (policy.DOWN, {"state": "dead", "quarantine": {"since": 1}}, 0, "in_quarantine"),
        (policy.DOWN, {"state": "dead", "desired": "stopped"}, 0, "wanted_stopped"),
        (policy.DOWN, {"state": "dead", "name": "web.new-0123abcd"}, 0, "in_transition"),
    ],
)
def test_hyperd_has_to_bear_it_out(alert: str, members: dict[str, Any], deaths: int, reason: str) -> None:
    seen = Seen(container(**members), deaths=deaths)
    assert policy.confirm(policy.RULES[alert], {}, seen, sustained=False, deaths_count=2).reason == reason


def test_only_what_was_found_wanting_is_known_bad() -> None:
    def tried(outcome: str, after: str = "update") -> bool:
        newer = Revision(time=3.0, digest="old", kind=after)
        return policy.is_known_bad("new", [newer, Revision(time=2.0, digest="new", kind="update", outcome=outcome)])

    assert tried("failed")
    assert tried("done", after="rollback")
    assert not tried("done")
    assert not tried("inconclusive")
    assert not tried("inconclusive", after="rollback")


def test_an_alert_of_the_policy_file_alone_has_to_last() -> None:
    rule = Rule("alert_rule", (), ("restart",))
    for sustained, verdict in ((False, "skip"), (True, "act")):
        assert policy.confirm(rule, {}, Seen(container()), sustained=sustained, deaths_count=2).verdict == verdict


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('dry_run = "perhaps"', "dry_run"),
        ("[[rules]]\nalerts = []", "rules.0.alerts"),
        ('[[rules]]\nalerts = ["A"]\notherwise = ["reboot"]', "rules.0.otherwise.0"),
        ('[[containers]]\nnames = "("\nlevel = "full"', "containers.0.names: Value error, no regular expression"),
        ('[[containers]]\nlevel = "all"', "containers.0.level"),
        ('[[maintenance]]\nstart = "9:00"\nduration = "1h"', "maintenance.0.start"),
        ('[[maintenance]]\nstart = "09:00"\nduration = "8d"', "up to 7d"),
        ('[[maintenance]]\ndays = ["sunday"]\nstart = "09:00"\nduration = "8d"', "maintenance.0.days.0"),
        ("[follow]\ncanary_s = -1", "follow.canary_s"),
        ("colour = 1", "colour"),
        ("[", "not TOML"),
    ],
)
def test_a_wrong_policy_file_names_the_member(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(BadSetting) as caught:
        policyfile.load(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_chooses_by_tenant_and_name() -> None:
    file = policyfile.PolicyFile.model_validate(
        {"containers": [{"names": "web", "tenants": "shop", "level": "full"}, {"names": "we.*", "level": "off"}],
         "rules": [{"alerts": ["HyperMemoryPressure"], "otherwise": ["restart"]}]}
    )  # fmt: skip

    def level(**members: Any) -> str:
        found = file.allowance(container(**members), dry_run=False, source="")
        return found.level if isinstance(found, ladder.Allowance) else found.reason

    assert level(tenant="shop") == "full"
    assert level() == "policy_off"
    assert level(name="db") == "restart", "all else is for a person to allow"
    assert level(labels={policy.POLICY_LABEL: "rollback"}) == "rollback", "the label goes first"
    assert level(labels={policy.POLICY_LABEL: "all"}) == "policy_unknown"
    assert file.names("HyperMemoryPressure")
    assert not file.names("HyperDiskFull")
    assert file.rule("HyperMemoryPressure", container()) == (
        Rule("alert_rule", ("restart",), ("restart",)), False, "rule 1 of the policy file",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ("2026-01-03T21:59", False),  # a Saturday
        ("2026-01-03T22:00", True),
        ("2026-01-04T01:59", True),
        ("2026-01-04T02:00", False),
        ("2026-01-04T23:00", False),
    ],
)
def test_a_maintenance_window_runs_over_midnight_in_utc(moment: str, holds: bool) -> None:
    window = policyfile.Window.model_validate({"days": ["sat"], "start": "22:00", "duration": "4h"})
    assert window.holds(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()) is holds


def test_causes_hold_for_their_host_and_are_forgotten() -> None:
    known = causes.Causes(ttl_s=100)
    known.take(causes.Cause("HyperHostCpuSaturated", "h:1", "", firing=True, time=NOW))

    def judged(now: float = NOW, source: Any = "alertmanager", **labels: str) -> str | None:
        found = known.judge(Signal(source, "x", "x", NOW, labels=labels), container(), now)
        return found.reason if found else None

    assert judged(instance="h:1") == "host_is_the_cause"
    assert judged(instance="h:2") is None
    assert judged() == "host_is_the_cause"
    assert judged(NOW + 101, instance="h:1") is None
    known.take(causes.Cause("HyperHostCpuSaturated", "h:1", "", firing=False, time=NOW))
    known.take(causes.Cause("HyperStarvedByHost", "h:1", "2" * 64, firing=True, time=NOW))
    known.take(causes.Cause("HyperExporterDown", "h:1", "", firing=True, time=NOW))
    assert judged(instance="h:1") == "collector_is_the_cause"
    assert judged(source="hyperd") is None


@pytest.mark.parametrize(
    ("cause", "alert", "members", "waits"),
    [
        ("HyperHostCpuSaturated", policy.DOWN, {"exit_code": 3}, False),
        ("HyperStarvedByHost", policy.DOWN, {"exit_code": 0}, False),
        ("HyperHostCpuSaturated", policy.DOWN, {"exit_code": 137}, True),
        ("HyperHostCpuSaturated", policy.DOWN, {"exit_code": 1, "oom_killed": True}, True),
        ("HyperHostCpuSaturated", policy.DOWN, {"exit_code": None}, True),
        ("HyperHostCpuSaturated", policy.UNHEALTHY, {"state": "running"}, True),
        ("HyperHostMemoryLow", policy.DOWN, {"exit_code": 3}, True),
        ("HyperManyContainersDown", policy.DOWN, {"exit_code": 3}, True),
        ("HyperHostCpuSaturated", PUSH, {"exit_code": 3}, True),
    ],
)
def test_want_of_cpu_explains_no_exit(cause: str, alert: str, members: dict[str, Any], waits: bool) -> None:
    known = causes.Causes(ttl_s=100)
    known.take(causes.Cause(cause, "", "", firing=True, time=NOW))
    found = known.judge(Signal("alertmanager", alert, "x", NOW), container(**{"state": "exited", **members}), NOW)
    assert (found is not None) is waits


def test_hosts_of_a_registry_have_other_names() -> None:
    body = (
        b'{"events":[{"action":"push","timestamp":"2026-01-01T00:00:00Z","request":{"host":"registry:5000"},'
        b'"target":{"repository":"a/b","tag":"v1","digest":"sha256:' + b"0" * 64 + b'"}}]}'
    )
    found = registry.parse_notification(body, {"registry:5000": "127.0.0.1:5000"})
    assert [push.name for push in found] == ["127.0.0.1:5000/a/b:v1"]
    assert registry.canonical("nginx") == "docker.io/library/nginx:latest"
    assert registry.canonical(f"nginx@sha256:{'0' * 64}") is None
    assert registry.canonical("No Image") is None
