"""What to do about an alert: a pure decision over the alert and hyperd's own word on the container.

An alert is one signal. The second, independent one is hyperd: unless it says that the container is wanted running and
does not run, nothing is done. (A container that ended with exit code 0 is not wanted running any more.) The container's
label `hyper.remediation` can allow less than the default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping

Action = Literal["redeploy"]
Verdict = Literal["act", "dry_run", "skip"]
Reason = Literal[
    "container_down",
    "resolved",
    "no_action_for_alert",
    "no_container_named",
    "duplicate",
    "container_unknown",
    "container_mismatch",
    "wanted_stopped",
    "already_running",
    "in_transition",
    "policy_off",
    "policy_unknown",
    "stop_switch",
    "cooldown",
    "budget_spent",
    "hyperd_away",
    "hyperd_refused",
]

POLICY_LABEL = "hyper.remediation"
ACTIONS: Mapping[str, Action] = {"HyperContainerDown": "redeploy"}
"""Which alerts call for what. An alert that is not here is for people."""

NOT_RUNNING = frozenset({"created", "exited", "dead"})
RUNNING = frozenset({"running", "paused"})

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


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
    exit_code: int | None = None
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided and why: `reason` for machines, `detail` for people."""

    verdict: Verdict
    reason: Reason
    detail: str


def container_named_by(labels: Mapping[str, str]) -> str | None:
    """The reference to ask hyperd with: the label `id` if it is a whole id, else `name`; None if neither is usable.

    Labels come over the network: whatever is neither an id nor a name never becomes part of a path.
    """
    if _ID.fullmatch(labels.get("id", "")):
        return labels["id"]
    name = labels.get("name", "")
    return name if _NAME.fullmatch(name) else None


def judge(labels: Mapping[str, str], container: Container) -> Judgement:
    """Decide about a firing alert whose rule has an action, from what hyperd says of the container it names."""
    if container.id != labels.get("id", container.id) or container.name != labels.get("name", container.name):
        return Judgement("skip", "container_mismatch", "the alert names another container than hyperd has by that id")
    if container.desired != "running":
        return Judgement("skip", "wanted_stopped", f"hyperd wants it {container.desired}")
    if container.state in RUNNING:
        return Judgement("skip", "already_running", f"hyperd says it is {container.state}: no second signal")
    if container.state not in NOT_RUNNING:
        return Judgement("skip", "in_transition", f"hyperd is at work on it: {container.state}")
    how = f"wanted running and {container.state}, exit code {container.exit_code}"
    if container.oom_killed:
        how += ", out of memory"
    policy = container.labels.get(POLICY_LABEL)
    if policy == "off":
        return Judgement("skip", "policy_off", f"label {POLICY_LABEL}=off; {how}")
    if policy == "dry-run":
        return Judgement("dry_run", "container_down", f"label {POLICY_LABEL}=dry-run; {how}")
    if policy not in {None, "redeploy"}:
        return Judgement("skip", "policy_unknown", f"label {POLICY_LABEL} is none of redeploy, off, dry-run; {how}")
    return Judgement("act", "container_down", how)
