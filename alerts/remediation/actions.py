"""Doing one action, exactly once, whatever dies in between.

hyperd carries out a call with a `request_id` once: whoever did not get the answer asks again with the same one, and
gets what was recorded. The id of the intent is that of the request, so that this holds over a restart of the controller
as well. A restart has no such id: there the container's epoch, which hyperd raises at every start, tells whether it was
made: beyond the intent's it was, at the intent's it was not. The epoch also tells of a redeploy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alerts.remediation.evidence import EvidenceSaver
    from alerts.remediation.feed import FeedFile
    from alerts.remediation.hyperd import Hyperd, Image, Rollout
    from alerts.remediation.journal import Decision, OutcomeKind
    from alerts.remediation.policyfile import Follow
    from alerts.remediation.settings import Settings

log = logging.getLogger("hyper.remediation")

MAX_REASON_CHARS: Final = 2048
_WITH_EVIDENCE: Final = frozenset({"restart", "redeploy", "rollback", "quarantine"})
"""What destroys what one would like to look at; with a restart that is what runs. An update is of what works."""
_BY_EPOCH: Final = frozenset({"restart", "redeploy"})


@dataclass(frozen=True, slots=True)
class Ended:
    """How an action ended; `carried_out` is whether the container was, or may have been, acted on."""

    kind: OutcomeKind
    carried_out: bool
    detail: str
    epoch: int | None = None
    evidence: str | None = None


class Performer:
    """Carries intents out. What it returns always stands for what hyperd says, not for what was hoped."""

    def __init__(
        self,
        hyperd: Hyperd,
        evidence: EvidenceSaver,
        stop_file: Path,
        settings: Settings,
        follow: Follow,
        feed: FeedFile,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hyperd = hyperd
        self._evidence = evidence
        self._stop_file = stop_file
        self._settings = settings
        self._follow = follow
        self._feed = feed
        self._clock = clock

    async def act(self, intent: Decision) -> Ended:
        """Do it now that its turn has come, unless what led to it no longer holds: somebody may have come first."""
        container_id, epoch = _of(intent)
        try:
            seen = await self.container(container_id)
        except HyperdRefused as err:
            return Ended("gone", False, str(err), epoch)
        except HyperdAway as err:
            return Ended("failed", False, str(err), epoch)
        if seen.name != intent.container or not _still_needed(intent, seen):
            return Ended("not_needed", False, f"when its turn came hyperd said {_state(seen)}", seen.epoch)
        return await self.carry_out(intent)

    async def carry_out(self, intent: Decision, *, asked: bool = False) -> Ended:
        """Do it. `asked`: hyperd is known to be at work on it, or to have been; then the stop switch is too late."""
        if not asked and (stopped := self._stopped(intent)):
            return stopped
        saved = await self._evidence.save(intent, _why(intent)) if intent.action in _WITH_EVIDENCE else None
        ended = await (self._by_epoch(intent) if intent.action in _BY_EPOCH else self._by_request(intent, asked=asked))
        return replace(ended, evidence=saved)

    async def finish(self, intent: Decision) -> Ended:
        """End an action that an earlier controller began: find out, or do it, once."""
        attempt = 0
        while True:
            old = self._clock() - intent.time > self._settings.recovery_max_age_s
            try:
                return await self._find_out_or_do(intent, old=old)
            except HyperdRefused as err:
                return Ended("gone", False, str(err), intent.epoch)
            except HyperdAway as err:
                if old:
                    return Ended("unknown", True, f"could not be found out after a restart: {err}", intent.epoch)
            attempt += 1
            await asyncio.sleep(self.pause_s(attempt))

    async def container(self, ref: str) -> policy.Container:
        """Ask hyperd, again with backoff while it is away.

        Raises:
            HyperdRefused: it has no such container, or will not say.
            HyperdAway: it stayed away.
        """
        for attempt in range(1, self._settings.attempts):
            try:
                return await self._hyperd.container(ref)
            except HyperdAway as err:
                log.warning("%s; attempt %d", err, attempt)
            await asyncio.sleep(self.pause_s(attempt))
        return await self._hyperd.container(ref)

    def pause_s(self, attempt: int) -> float:
        """How long to wait after the failed attempt of this number, with jitter."""
        longest = min(self._settings.backoff_max_s, self._settings.backoff_s * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter is no secret

    async def _by_epoch(self, intent: Decision) -> Ended:
        """Restart or redeploy: try again only where hyperd's epoch says that it was not done."""
        container_id, epoch = _of(intent)
        failure, final = "", False
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(self.pause_s(attempt))
            if stopped := self._stopped(intent):
                return stopped
            try:
                if intent.action == "restart":
                    after = await self._hyperd.restart(container_id)
                else:
                    after = await self._hyperd.redeploy(container_id, _why(intent), intent.id)
            except HyperdRefused as err:
                # It may have been tried: a port that is taken or a missing image shows only once the start has begun.
                failure, final = str(err), True
            except HyperdAway as err:
                failure = str(err)
                if not err.sent:
                    continue
            else:
                return Ended("done", True, f"{intent.action} done; hyperd says {after.state}", after.epoch)
            try:
                seen = await self._settled(container_id)
            except HyperdRefused as err:
                return Ended("gone", False, str(err), epoch)
            except HyperdAway as err:
                failure = str(err)
                return Ended("unknown", True, f"hyperd may have done the {intent.action}: {failure}", epoch)
            if seen.epoch > epoch:
                runs = seen.state in policy.RUNNING
                return Ended("done" if runs else "failed", True, f"{failure}; hyperd says {seen.state}", seen.epoch)
            if final:
                break
        return Ended("failed", False, failure, epoch)

    async def _by_request(self, intent: Decision, *, asked: bool) -> Ended:
        """Rollback, update, rebuild, quarantine: ask until there is an answer; hyperd does it once."""
        failure = ""
        # Whoever is at work on a change knows to what; it is not built a second time.
        image = None if intent.action == "rebuild" and not asked else intent.image
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(self.pause_s(attempt))
            if image is None and intent.action == "rebuild":
                if stopped := self._stopped(intent):
                    return stopped
                try:
                    built = await self._built(intent)
                except HyperdRefused as err:
                    return _refused(intent, err)
                except HyperdAway as err:
                    failure = str(err)  # whatever came of the build, the container was not touched
                    continue
                if isinstance(built, Ended):
                    return built
                image = built
            if not asked and (stopped := self._stopped(intent)):
                return stopped
            try:
                return await self._request(intent, image)
            except HyperdRefused as err:
                return _refused(intent, err)
            except HyperdAway as err:
                failure = str(err)
                asked = asked or err.sent
        if not asked:
            return Ended("failed", False, failure, intent.epoch)
        try:
            done = await self._was_asked(intent)
        except HyperdRefused as err:
            return _refused(intent, err)
        except HyperdAway as err:
            return Ended("unknown", True, f"hyperd may have done the {intent.action}: {err}", intent.epoch)
        return Ended("unknown" if done else "failed", done, failure, intent.epoch)

    def _stopped(self, intent: Decision) -> Ended | None:
        """That nothing is to be done, while the stop switch is on."""
        if not self._stop_file.exists():
            return None
        return Ended("stop_switch", False, f"{self._stop_file} exists", intent.epoch)

    async def _built(self, intent: Decision) -> str | Ended:
        """Have a container's image built again; the name of what it is to change to, or why it is not to change."""
        assert intent.digest is not None  # noqa: S101 -- an intent has it
        vulnerable = intent.reason == "vulnerable"
        before = await self._hyperd.image(intent.digest)
        if vulnerable and before is not None and await self._is_built(intent, before):
            return intent.image or before.name
        built = await self._hyperd.rebuild(intent.digest, no_cache=vulnerable)
        if built.digest == intent.digest:
            return Ended("not_needed", False, f"built again, and nothing is new: {built.digest}", intent.epoch)
        if vulnerable and not await self._is_better(built.digest, intent.digest):
            if not built.references:
                with contextlib.suppress(HyperdAway, HyperdRefused):  # it takes room; `hyper image prune` finds it, too
                    await self._hyperd.remove(built.digest)
            return Ended("still_vulnerable", False, "built again, and it installs nothing newer", intent.epoch)
        names = before.references if before is not None else []
        for name in names:
            await self._hyperd.tag(built.digest, name)
        return (*names, built.name)[0]

    async def _is_built(self, intent: Decision, before: Image) -> bool:
        """Whether the container's name of its image is that of a newer build: of another container's, or cut off."""
        named = await self._hyperd.image(intent.image) if intent.image else None
        if named is None or named.build is None or before.build is None:
            return False
        if not named.build.is_of_the_same(before.build) or not await self._is_better(named.digest, before.digest):
            return False
        return not policy.is_known_bad(named.digest, await self._hyperd.history(intent.container or ""))

    async def _is_better(self, new: str, old: str) -> bool:
        """Whether the image of one digest is without some hole that the other's has."""
        after, before = [self._feed.fixable(await self._hyperd.packages(one)) for one in (new, old)]
        return not before <= after

    async def _request(self, intent: Decision, image: str | None) -> Ended:
        container_id, _ = _of(intent)
        why = _why(intent)
        if intent.action == "quarantine":
            after = await self._hyperd.quarantine(container_id, why, intent.id)
            return Ended("done", True, f"in quarantine; hyperd says {after.state}", after.epoch)
        # By name: the id is another one once it is done.
        name = intent.container or container_id
        if intent.action == "rollback":
            return _of_rollout(await self._hyperd.rollback(name, why, intent.id), intent)
        assert image is not None  # noqa: S101 -- an intent to update has it
        canary_s = 0.0 if intent.unobserved or intent.action is None else self._follow.canary_for(intent.action)
        change = partial(
            self._hyperd.change, name, image, why, intent.id, expected_digest=intent.to_digest,
            watch_s=self._follow.watch_s,
        )  # fmt: skip
        try:
            rollout = await change(canary_s=canary_s)
        except HyperdRefused as err:
            # Of what writes to a volume two cannot run. Who did not ask for an observation has it without one.
            if err.status != 400 or not canary_s or self._follow.canary_s is not None:
                raise
            rollout = await change(canary_s=0.0)
        return _of_rollout(rollout, intent)

    async def _was_asked(self, intent: Decision) -> bool:
        """Whether hyperd knows of the request of an intent."""
        container_id, _ = _of(intent)
        if intent.action == "quarantine":
            return (await self._hyperd.container(container_id)).quarantine is not None
        rollouts = await self._hyperd.rollouts(intent.container or container_id)
        return any(one.request_id == intent.id for one in rollouts)

    async def _find_out_or_do(self, intent: Decision, *, old: bool) -> Ended:
        container_id, epoch = _of(intent)
        if intent.action not in _BY_EPOCH and await self._was_asked(intent):
            return await self.carry_out(intent, asked=True)
        by_id = intent.action in _BY_EPOCH or intent.action == "quarantine"
        seen = await self._settled(container_id if by_id else intent.container or container_id)
        if intent.action in _BY_EPOCH and seen.epoch > epoch:
            return Ended("done", True, "done before the controller was restarted", seen.epoch)
        if seen.id != container_id or not _still_needed(intent, seen):
            return Ended("not_needed", False, f"after a restart hyperd says {_state(seen)}", seen.epoch)
        if old:
            return Ended("expired", False, "too old to be finished after a restart", seen.epoch)
        return await self.carry_out(intent)

    async def _settled(self, ref: str) -> policy.Container:
        """The container once it is no longer in transition, or as it is when patience ends."""
        deadline = time.monotonic() + self._settings.settle_s
        while True:
            seen = await self.container(ref)
            if seen.state in policy.RUNNING | policy.NOT_RUNNING or time.monotonic() > deadline:
                return seen
            await asyncio.sleep(self._settings.backoff_s)


def _of(intent: Decision) -> tuple[str, int]:
    assert intent.container_id is not None  # noqa: S101 -- an intent has them
    assert intent.epoch is not None  # noqa: S101 -- an intent has them
    return intent.container_id, intent.epoch


def _why(intent: Decision) -> str:
    who = f", approved by {intent.actor}" if intent.approves else ""
    return f"{intent.alert}: {intent.detail} (remediation {intent.id}{who})"[:MAX_REASON_CHARS]


def _state(seen: policy.Container) -> str:
    quarantine = ", in quarantine" if seen.quarantine is not None else ""
    return f"{seen.name} is {seen.state}, wanted {seen.desired}, health {seen.health}{quarantine}"


def _still_needed(intent: Decision, seen: policy.Container) -> bool:
    """Whether what led to an intent still holds, as far as hyperd's word alone tells."""
    if intent.action in policy.RENEWING:
        return seen.image_digest == intent.digest and seen.quarantine is None
    if seen.desired != "running" or seen.quarantine is not None:
        return False
    if intent.approves is not None:
        return True
    if intent.reason == "container_down":
        return seen.state in policy.NOT_RUNNING
    return intent.reason != "unhealthy" or seen.health == "unhealthy"


def _of_rollout(rollout: Rollout, intent: Decision) -> Ended:
    """The outcome that the end of a rollout is."""
    kinds: dict[str, OutcomeKind] = {"rolled_back": "rolled_back", "failed": "failed", "inconclusive": "inconclusive"}
    detail = f"rollout {rollout.id}: {rollout.state}{f', {rollout.detail}' if rollout.detail else ''}"
    return Ended(kinds.get(rollout.state, "done"), True, detail, intent.epoch)


def _refused(intent: Decision, err: HyperdRefused) -> Ended:
    if err.code == "no_known_good":
        return Ended("no_known_good", False, f"{err}; it is for people", intent.epoch)
    return Ended("gone" if err.status == 404 else "failed", False, str(err), intent.epoch)
