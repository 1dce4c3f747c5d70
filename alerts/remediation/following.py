"""Following a tag: a push of what a container runs leads to an update to what was pushed.

The second witness is the registry itself: hyperd pulls the tag, and only if that gives the digest that was told is the
container changed. A digest that was tried and did not come to be good is not tried again.

A push of what an image was built on, on this host, leads to a rebuild. There hyperd fetches the base for itself: what
was told is no part of the result, and if nothing is new, nothing is changed. So does a feed that knows of holes in the
packages of what runs: hyperd says which it has, before and after.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alerts.errors import HyperdRefused
from alerts.remediation import policy, registry
from alerts.remediation.policy import Container, Judgement
from alerts.remediation.signals import PUSH, VULNERABILITY, Signal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Decision
    from alerts.remediation.policy import Revision
    from alerts.remediation.registry import Push

log = logging.getLogger("hyper.remediation")

_LABELLED: Final[Mapping[str, str]] = {"image_pushed": "true", "base_pushed": "base", "vulnerable": "vulnerability"}
"""What the label has for each reason that a person need not approve."""
_SHOWN: Final = 5


async def concerned(hyperd: Hyperd, push: Push) -> list[tuple[Signal, Container]]:
    """The containers that a push is to, each with its signal.

    Raises:
        HyperdRefused, HyperdAway: hyperd does not say.
    """
    found = []
    bases: dict[str, Mapping[str, str]] = {}
    for container in await hyperd.containers():
        if container.in_change:
            continue
        if registry.canonical(container.image) == push.name:
            if _LABELLED["image_pushed"] in container.follows:
                found.append((signal_of(push, container), container))
            continue
        digest = container.image_digest
        if digest not in bases:
            image = await hyperd.image(digest)
            bases[digest] = image.build.bases if image and image.build else {}
        if any(registry.canonical(name) == push.name and was != push.digest for name, was in bases[digest].items()):
            found.append((signal_of(push, container, as_base=True), container))
    return found


def may(judgement: Judgement, container: Container) -> bool:
    """Whether it may be done without a person: whose label says so is updated, or built again."""
    return _LABELLED.get(judgement.reason) in container.follows


def signal_of(push: Push, container: Container | None, *, as_base: bool = False) -> Signal:
    """The signal that a push is to one container; however often it is told, one digest is one incident.

    `as_base`: what was pushed is a base of its image, and no digest that it could run.
    """
    labels = {"id": container.id, "name": container.name} if container else {}
    return Signal(
        "registry",
        PUSH,
        f"{'base' if as_base else 'push'}/{push.digest}/{container.key if container else push.name}",
        push.time,
        labels=labels,
        says=f"{'its base ' if as_base else ''}{push.name} is {push.digest}",
        image=container.image if container else push.name,
        digest=None if as_base else push.digest,
    )


def signal_of_holes(ids: Collection[str], container: Container, now: float) -> Signal:
    """The signal that a feed gives of one container: the same holes of the same image are one incident."""
    names = sorted(ids)
    mark = hashlib.sha256("\n".join(names).encode()).hexdigest()
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return Signal(
        "feed",
        VULNERABILITY,
        f"feed/{container.image_digest}/{mark}/{container.key}",
        now,
        labels={"id": container.id, "name": container.name},
        says=f"newer packages are without {', '.join(names[:_SHOWN])}{more}",
        image=container.image,
    )


def of_held(decision: Decision) -> tuple[Signal, Container]:
    """The signal of a push that was held back, and as much of its container as the decision tells."""
    container = Container(
        id=decision.container_id or "", name=decision.container or "", state="", desired="", epoch=decision.epoch or 0,
        labels={}, tenant=decision.tenant or "default", image_digest=decision.digest or "",
    )  # fmt: skip
    told = decision.signals[0] if decision.signals else ""
    signal = Signal(
        "registry",
        PUSH,
        decision.incident,
        decision.time,
        labels={"id": container.id, "name": container.name},
        says=told.partition("(")[2].removesuffix(")"),
        image=decision.image,
        digest=decision.to_digest,
    )
    return signal, container


def judge(signal: Signal, was: str, container: Container, history: Sequence[Revision]) -> Judgement:
    """Whether a container, which ran `was` when it was told, is to be changed to what was pushed, or built again."""
    digest = signal.digest
    if container.quarantine is not None:
        return Judgement("skip", "in_quarantine", "a person lifts it first")
    if digest is None and container.image_digest != was:
        return Judgement("skip", "image_changed", f"it is of {container.image_digest} by now")
    if signal.source == "feed":
        return Judgement("act", "vulnerable", f"{signal.says}; it runs {container.image_digest}", "rebuild")
    if digest is None:
        return Judgement(
            "act", "base_pushed", f"{signal.says}; {container.image_digest} was built on another", "rebuild"
        )
    if container.image_digest == digest:
        return Judgement("skip", "same_digest", f"it runs {digest} already")
    if policy.is_known_bad(digest, history):
        return Judgement("skip", "known_bad", f"{digest} was tried, and was not good")
    what = f"{signal.says}; it runs {container.image_digest}"
    return Judgement("act", "image_pushed", what, "update")


async def history(hyperd: Hyperd, container: Container) -> Sequence[Revision]:
    """What a container ran; empty if hyperd refuses to say: then there is nothing to go back to, and all else goes on.

    Raises:
        HyperdAway: hyperd did not answer.
    """
    try:
        return await hyperd.history(container.id)
    except HyperdRefused as err:
        log.warning("no history of %s: %s", container.name, err)
        return ()


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
