"""From a signal that is borne out to steps: which action is called for, which of them the level allows, and when not.

Pure: everything that is looked at is given. The order of the looks is that of `plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from alerts.remediation import guards, policy
from alerts.remediation.policy import Action, Judgement, Level, Rule, Seen

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Past:
    """What was done before, times in seconds since 1970, oldest first.

    Attributes:
        acted_at: Actions on the container of this name.
        rolled_back_at: Those of them that were rollbacks.
        host_acted_at: Actions on any container of the host.
    """

    acted_at: Sequence[float] = ()
    rolled_back_at: Sequence[float] = ()
    host_acted_at: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the policy says of one container and one signal. `source` says for people where that stands."""

    level: Level
    dry_run: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and what a person may approve beside it or instead of it."""

    judgement: Judgement
    proposals: tuple[Judgement, ...] = field(default=())


def plan(
    rule: Rule, confirmed: Judgement, seen: Seen, allowance: Allowance, past: Past, limits: guards.Limits, now: float
) -> Plan:
    """Decide about a signal that hyperd bears out."""
    steps, reason, why_less = _steps(rule, seen, past, limits, now)
    what = replace(confirmed, reason=reason, policy=allowance.source)
    if why_less is not None:
        what = replace(what, detail=f"{what.detail}; {why_less.detail}")
    if not steps:
        empty = why_less or Judgement("skip", "no_action_for_alert", "without a change of image it is for people")
        return Plan(replace(what, verdict="skip", reason=empty.reason))
    if allowance.level == "restart":
        # Beyond the level as it is, a redeploy has a lesser step in its place meanwhile.
        lesser: dict[Action, tuple[Action, ...]] = {"redeploy": ("redeploy", "restart")}
        steps = tuple(dict.fromkeys(one for step in steps for one in lesser.get(step, (step,))))
    if allowance.dry_run or allowance.level == "dry-run":
        return Plan(_dry(what, steps[0], "only written down"))
    proposals = []
    for step in steps:
        if not policy.allowed(step, allowance.level):
            proposals.append(_dry(what, step, f"beyond the level {allowance.level}"))
            continue
        held = held_back(step, past, limits, now)
        if held is None:
            return Plan(replace(what, action=step), tuple(proposals))
        return Plan(replace(held, detail=f"{held.detail}; {what.detail}", policy=what.policy), tuple(proposals))
    return Plan(proposals[0])


def _dry(what: Judgement, step: Action, why: str) -> Judgement:
    return replace(what, verdict="dry_run", action=step, detail=f"{step} is called for, {why}; {what.detail}")


def _steps(
    rule: Rule, seen: Seen, past: Past, limits: guards.Limits, now: float
) -> tuple[tuple[Action, ...], policy.Reason, Judgement | None]:
    """The steps that are left, why they are called for, and what took a rollback away."""
    container, why_less = seen.container, None
    changed = policy.changed_at(container, seen.history)
    fresh = changed is not None and now - changed <= limits.change_window_s
    if fresh and rule.until_good and policy.is_good(container, seen.history):
        fresh = False
    steps = rule.after_change if fresh else rule.otherwise
    if "rollback" in steps:
        if not policy.has_known_good(container, seen.history):
            why_less = Judgement("skip", "no_known_good", "there is no known good revision of another digest")
        elif past.rolled_back_at and now - past.rolled_back_at[-1] < limits.rollback_window_s:
            why_less = Judgement(
                "skip", "rollback_spent", f"it was rolled back within the last {limits.rollback_window_s:.0f} s already"
            )
        if why_less is not None:
            steps = tuple(step for step in steps if step != "rollback")
    streak = guards.streak(past.acted_at, now, limits.recovery_s)
    if steps and steps[0] != "rollback":
        steps = steps[min(streak, len(steps) - 1) :]
    if steps and steps[0] != "rollback" and "quarantine" not in steps and streak >= limits.give_up_count:
        # Doing the same again and again is a loop of our own making.
        return ("quarantine", *steps), "no_recovery", why_less
    return steps, rule.reason, why_less


def held_back(step: Action, past: Past, limits: guards.Limits, now: float) -> Judgement | None:
    """Why a step has to wait. A quarantine ends a loop, and so waits for nothing."""
    if step == "quarantine":
        return None
    wait_s = guards.cooldown_left_s(past.acted_at, now, limits)
    if wait_s > 0:
        return Judgement("skip", "cooldown", f"{wait_s:.0f} s of the cooldown left")
    if guards.tokens_left(past.acted_at, now, limits) < 1:
        detail = f"{limits.bucket_size} actions are spent, one comes back every {limits.refill_s:.0f} s"
        return Judgement("skip", "budget_spent", detail)
    if guards.host_tokens_left(past.host_acted_at, now, limits) < 1:
        detail = f"{limits.host_bucket_size} actions of the host are spent, one comes back"
        return Judgement("skip", "host_budget_spent", f"{detail} every {limits.host_refill_s:.0f} s")
    return None
