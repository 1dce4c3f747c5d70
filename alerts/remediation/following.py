"""Following a tag: a push of what a container runs leads to an update to what was pushed.

The second witness is the registry itself: hyperd pulls the tag, and only if that gives the digest that was told is the
container changed. A digest that was tried and did not come to be good is not tried again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alerts.errors import HyperdRefused
from alerts.remediation import policy, registry
from alerts.remediation.policy import Judgement
from alerts.remediation.signals import PUSH, Signal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.policy import Container, Revision
    from alerts.remediation.registry import Push


def follows(container: Container, push: Push) -> bool:
    """Whether a container follows the tag that was pushed."""
    follower = container.labels.get(policy.FOLLOW_LABEL) == "true" and not container.in_change
    return follower and registry.canonical(container.image) == push.name


def signal_of(push: Push, container: Container | None) -> Signal:
    """The signal that a push is to one container; however often it is told, one digest is one incident."""
    labels = {"id": container.id, "name": container.name} if container else {}
    return Signal(
        "registry",
        PUSH,
        f"push/{push.digest}/{container.key if container else push.name}",
        push.time,
        labels=labels,
        says=f"{push.name} is {push.digest}",
        image=container.image if container else push.name,
        digest=push.digest,
    )


def judge(signal: Signal, container: Container, history: Sequence[Revision]) -> Judgement:
    """Whether a container is to be changed to what was pushed."""
    digest = signal.digest or ""
    if container.quarantine is not None:
        return Judgement("skip", "in_quarantine", "a person lifts it first")
    if container.image_digest == digest:
        return Judgement("skip", "same_digest", f"it runs {digest} already")
    if policy.is_known_bad(digest, history):
        return Judgement("skip", "known_bad", f"{digest} was tried, and was not good")
    what = f"{signal.says}; it runs {container.image_digest}"
    return Judgement("act", "image_pushed", what, "update")


async def pull(hyperd: Hyperd, signal: Signal, judgement: Judgement) -> Judgement:
    """The judgement, borne out by what the registry gives now.

    Raises:
        HyperdAway: hyperd did not answer.
    """
    try:
        digest = await hyperd.pull(signal.image or "")
    except HyperdRefused as err:
        return replace(judgement, verdict="skip", reason="pull_failed", detail=str(err), action=None)
    if digest != signal.digest:
        detail = f"the registry gives {digest}, not {signal.digest} as was told"
        return replace(judgement, verdict="skip", reason="digest_moved", detail=detail, action=None)
    return judgement
