"""What to do about a signal: a pure decision over the signal, hyperd's own word on the container, and the policy.

A signal is one witness. The second, independent one is hyperd: what it says of the container must bear the signal out,
or nothing is done. What is called for is a ladder of actions; the container's label `hyper.remediation`, or the policy
file, says how far up the controller may go by itself. What lies beyond is written down and waits for a person.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Action = Literal["restart", "redeploy", "rollback", "update", "rebuild", "quarantine"]
Level = Literal["off", "dry-run", "restart", "redeploy", "rollback", "full"]
Verdict = Literal["act", "dry_run", "skip"]
ActReason = Literal[
    "container_down",
    "unhealthy",
    "crash_loop",
    "out_of_memory",
    "memory",
    "no_recovery",
    "image_pushed",
    "base_pushed",
    "vulnerable",
    "alert_rule",
]
Reason = (
    ActReason
    | Literal[
        "resolved",
        "noted",
        "no_action_for_alert",
        "no_container_named",
        "duplicate",
        "container_unknown",
        "container_mismatch",
        "wanted_stopped",
        "already_running",
        "in_transition",
        "paused",
        "in_quarantine",
        "not_confirmed",
        "policy_off",
        "policy_unknown",
        "maintenance",
        "host_is_the_cause",
        "collector_is_the_cause",
        "no_known_good",
        "rollback_spent",
        "stop_switch",
        "stop_lifted",
        "cooldown",
        "budget_spent",
        "host_budget_spent",
        "same_digest",
        "image_changed",
        "known_bad",
        "digest_moved",
        "pull_failed",
        "hyperd_away",
        "hyperd_refused",
    ]
)
ACT_REASONS: Final[tuple[ActReason, ...]] = get_args(ActReason)

HELD_BACK: Final[frozenset[Reason]] = frozenset(
    {"cooldown", "budget_spent", "host_budget_spent", "maintenance", "host_is_the_cause", "stop_switch"}
)
"""Why something is not done now that may be done later."""

POLICY_LABEL: Final = "hyper.remediation"
FOLLOW_LABEL: Final = "hyper.remediation.follow"
DEFAULT_LEVEL: Final[Level] = "restart"
"""A restart keeps all that a container has written; what goes further than that waits for a person."""
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
_RANK: Final[Mapping[Action, int]] = {
    "restart": 2, "redeploy": 3, "rollback": 4, "update": 0, "rebuild": 0, "quarantine": 5
}  # fmt: skip
"""The lowest level, as an index of LEVELS, that allows an action; who lets a container follow allows what is new."""
RENEWING: Final[frozenset[Action]] = frozenset({"update", "rebuild"})
"""What brings something new to a container that may be well: no attempt to heal, and watched for a while."""

DOWN: Final = "HyperContainerDown"
UNHEALTHY: Final = "HyperContainerUnhealthy"
FLAPPING: Final = "HyperContainerFlapping"
OUT_OF_MEMORY: Final = "HyperOomKill"
NEAR_LIMIT: Final = "HyperMemoryNearLimit"


@dataclass(frozen=True, slots=True)
class Rule:
    """The ladders of one alert, lowest step first.

    Attributes:
        after_change: What is called for while the image was changed a short while ago.
        otherwise: What is called for at other times; empty: it is for people.
        until_good: `after_change` ends as soon as hyperd has found the revision good.
    """

    reason: ActReason
    after_change: tuple[Action, ...]
    otherwise: tuple[Action, ...]
    until_good: bool = False

    @property
    def first(self) -> Action:
        """The step that is called for first at ordinary times, or else after a change."""
        return (self.otherwise or self.after_change)[0]


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        DOWN: Rule("container_down", ("rollback", "redeploy"), ("redeploy",), until_good=True),
        UNHEALTHY: Rule("unhealthy", ("rollback", "restart"), ("restart", "redeploy")),
        FLAPPING: Rule("crash_loop", ("rollback", "quarantine"), ("quarantine",)),
        OUT_OF_MEMORY: Rule("out_of_memory", ("rollback",), ()),
        NEAR_LIMIT: Rule("memory", ("rollback",), ()),
    }
)
ACTIONS: Final[Mapping[str, Action]] = {name: rule.first for name, rule in RULES.items()}
"""Which alerts call for what at first. An alert that is not here is for people, unless the policy file names it."""

HOST_CAUSES: Final = frozenset(
    {
        "HyperHostCpuSaturated", "HyperHostDiskFull", "HyperHostMemoryLow", "HyperManyContainersDown",
        "HyperStarvedByHost",
    }
)  # fmt: skip
COLLECTOR_CAUSES: Final = frozenset({"HyperExporterDown", "HyperExporterMissing", "HyperCollectorStalled"})
"""Alerts that say that a container's trouble is not its own, or not to be believed. They are remembered."""
CPU_CAUSES: Final = frozenset({"HyperHostCpuSaturated", "HyperStarvedByHost"})
"""Those of them that explain that something is slow, and not that it has ended."""

NOT_RUNNING: Final = frozenset({"created", "exited", "dead"})
RUNNING: Final = frozenset({"running", "paused"})
FIRST_SIGNAL_CODE: Final = 128
"""Exit codes from here on are of programs that a signal ended."""

_IN_CHANGE = re.compile(r"\.(?:new|old)-[0-9a-f]{8}")
"""What hyperd appends to a name while a change of image goes on; the change itself looks after such a container."""
_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Check(BaseModel):
    """A health check that hyperd made; it began at so many seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    began: float


class Container(BaseModel):
    """What hyperd says of a container, as far as a decision needs it (`GET /v1/containers/{ref}`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    state: str
    desired: str
    epoch: int
    labels: dict[str, str]
    tenant: str = "default"
    image: str = ""
    image_digest: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    health: str = "none"
    checks: tuple[Check, ...] = ()
    quarantine: dict[str, Any] | None = None

    @property
    def in_change(self) -> bool:
        """Whether it is one side of a change of image that is not over."""
        return _IN_CHANGE.search(self.name) is not None

    @property
    def ended_by_itself(self) -> bool:
        """Whether it is down by an exit code of its own: not by a signal, nor for want of memory, nor unstarted."""
        ended = self.state in NOT_RUNNING and self.exit_code is not None and not self.oom_killed
        return ended and (self.exit_code or 0) < FIRST_SIGNAL_CODE

    @property
    def follows(self) -> frozenset[str]:
        """What it is changed for without a person: its label's `true`, `base`, `vulnerability`, or several of them."""
        return frozenset(one.strip() for one in self.labels.get(FOLLOW_LABEL, "").split(","))

    @property
    def key(self) -> str:
        """What stays the same over a change of image: tenant and name."""
        return f"{self.tenant}/{self.name}"


class Revision(BaseModel):
    """One line of `GET /v1/containers/{ref}/history`, which has the newest first. Times are seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float
    digest: str
    kind: str
    good: bool = False
    outcome: str = "done"


@dataclass(frozen=True, slots=True)
class Seen:
    """What hyperd says at the moment of a decision. `deaths` and `ooms` are events of the last few minutes."""

    container: Container
    history: Sequence[Revision] = ()
    deaths: int = 0
    ooms: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided and why: `reason` for machines, `detail` for people; `policy` is what allowed or forbade it."""

    verdict: Verdict
    reason: Reason
    detail: str
    action: Action | None = None
    policy: str = ""


def container_named_by(labels: Mapping[str, str]) -> str | None:
    """The reference to ask hyperd with: the label `id` if it is a whole id, else `name`; None if neither is usable.

    Labels come over the network: whatever is neither an id nor a name never becomes part of a path.
    """
    if _ID.fullmatch(labels.get("id", "")):
        return labels["id"]
    name = labels.get("name", "")
    return name if _NAME.fullmatch(name) else None


def level_of(container: Container, otherwise: Level) -> Level | Judgement:
    """How far the controller may go by itself: the container's label, else `otherwise`; or why it may do nothing."""
    given = container.labels.get(POLICY_LABEL)
    level = next((one for one in LEVELS if one == given), otherwise if given is None else None)
    if level is None:
        return Judgement("skip", "policy_unknown", f"label {POLICY_LABEL} is none of {', '.join(LEVELS)}")
    if level == "off":
        whose = f"label {POLICY_LABEL}=off" if given is not None else "level off in the policy file"
        return Judgement("skip", "policy_off", whose)
    return level


def changed_at(container: Container, history: Sequence[Revision]) -> float | None:
    """When the image became what it is by an update; None if it was there from the beginning, or by a rollback."""
    change = None
    for revision in history:
        if revision.digest != container.image_digest:
            break
        change = revision
    return change.time if change is not None and change.kind == "update" else None


def is_good(container: Container, history: Sequence[Revision]) -> bool:
    """Whether hyperd has found a revision of the present digest good."""
    return any(one.good for one in history if one.digest == container.image_digest)


def has_known_good(container: Container, history: Sequence[Revision]) -> bool:
    """Whether there is a good revision of another digest to go back to."""
    return any(one.good for one in history if one.digest != container.image_digest)


def is_known_bad(digest: str, history: Sequence[Revision]) -> bool:
    """Whether a change to this digest failed, or was rolled back, and the digest has never been good.

    One that was inconclusive says nothing about it.
    """
    if any(one.good for one in history if one.digest == digest):
        return False
    return any(
        one.outcome not in {"", "done"} or (number > 0 and history[number - 1].kind == "rollback")
        for number, one in enumerate(history)
        if one.digest == digest and one.outcome != "inconclusive"
    )


def allowed(action: Action, level: Level) -> bool:
    """Whether the controller may do it without a person."""
    return level not in {"off", "dry-run"} and LEVELS.index(level) >= _RANK[action]


def confirm(rule: Rule, labels: Mapping[str, str], seen: Seen, *, sustained: bool, deaths_count: int) -> Judgement:
    """Whether hyperd bears a signal out: a judgement to act, without an action yet, or why not.

    Args:
        rule: What the signal is about.
        labels: What it says of the container.
        seen: hyperd's word.
        sustained: Whether an alert that the policy file names has lasted long enough to be believed alone.
        deaths_count: Ends within the last few minutes that are a loop.
    """
    container = seen.container
    if container.id != labels.get("id", container.id) or container.name != labels.get("name", container.name):
        return Judgement("skip", "container_mismatch", "the alert names another container than hyperd has by that id")
    if container.quarantine is not None:
        return Judgement("skip", "in_quarantine", f"since {container.quarantine.get('since')}; a person lifts it")
    if container.desired != "running":
        return Judgement("skip", "wanted_stopped", f"hyperd wants it {container.desired}")
    if container.in_change:
        return Judgement("skip", "in_transition", "a change of image goes on, which looks after it")
    if container.state not in RUNNING | NOT_RUNNING:
        return Judgement("skip", "in_transition", f"hyperd is at work on it: {container.state}")
    how = f"wanted running and {container.state}, exit code {container.exit_code}, health {container.health}"
    if container.oom_killed:
        how += ", out of memory"
    down, sick = container.state in NOT_RUNNING, container.health == "unhealthy"
    if rule.reason == "container_down":
        if not down:
            return Judgement("skip", "already_running", f"hyperd says it is {container.state}: no second signal")
    elif container.state == "paused":
        return Judgement("skip", "paused", "somebody has paused it")
    elif rule.reason == "unhealthy":
        if down or not sick:
            return Judgement("skip", "not_confirmed", f"hyperd says: {how}")
    elif rule.reason == "crash_loop":
        how += f"; hyperd has seen {seen.deaths} ends of it lately"
        if seen.deaths < deaths_count:
            return Judgement("skip", "not_confirmed", f"{how}, fewer than {deaths_count}")
    elif rule.reason == "out_of_memory":
        how += f"; hyperd has seen it out of memory {seen.ooms} times lately"
        if not container.oom_killed and not seen.ooms:
            return Judgement("skip", "not_confirmed", how)
    elif rule.reason == "alert_rule" and not (down or sick or sustained):
        return Judgement("skip", "not_confirmed", f"hyperd says: {how}, and the alert has not lasted long")
    return Judgement("act", rule.reason, how)
