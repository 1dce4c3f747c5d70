"""What is done, in an order that a crash may break off anywhere.

The decision is written, then carried out, then its outcome is written. `actions` sees to it that an intent is carried
out once. All that belongs to one tenant and name goes one after the other, and how much is done at once is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import policy
from alerts.remediation.journal import Decision, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from alerts.remediation.actions import Ended, Performer
    from alerts.remediation.journal import Journal
    from alerts.remediation.signals import Signal

log = logging.getLogger("hyper.remediation")

MAX_ACTIONS_AT_ONCE: Final = 2
"""A redeploy costs a boot; a host on which everything went down must not have to boot all of it at once."""


class Observer(Protocol):
    """What is told of every decision and outcome, for metrics."""

    def decided(self, decision: Decision) -> None:
        """A decision stands in the audit."""

    def concluded(self, decision: Decision, outcome: Outcome) -> None:
        """An outcome stands in the audit."""

    def audit_failed(self) -> None:
        """The audit could not be written."""


class Work:
    """Decisions, and what comes of them. `deciding` is held while the host's bucket is looked at and taken from."""

    def __init__(
        self, journal: Journal, performer: Performer, observer: Observer, stop_file: Path, clock: Callable[[], float]
    ) -> None:
        self.journal = journal
        self.performer = performer
        self.observer = observer
        self.stop_file = stop_file
        self.clock = clock
        self.deciding = asyncio.Lock()
        self._busy: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._acting = asyncio.Semaphore(MAX_ACTIONS_AT_ONCE)
        # An update is watched for a while; no action that heals may wait for that.
        self._updating = asyncio.Semaphore(MAX_ACTIONS_AT_ONCE)

    @property
    def stopped(self) -> bool:
        """Whether the stop switch is on."""
        return self.stop_file.exists()

    def lock(self, key: str) -> asyncio.Lock:
        """The lock of one tenant and name, which lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(key, asyncio.Lock())

    @contextmanager
    def busy_with(self, incident: str) -> Iterator[None]:
        """While this lasts, the incident is being acted on."""
        self._busy.add(incident)
        try:
            yield
        finally:
            self._busy.discard(incident)

    def is_acted_on(self, signal: Signal) -> bool:
        """Whether something is done about a signal, or was."""
        return signal.incident in self._busy or self.journal.acted_on(signal.incident)

    def done_or_stopped(self, signal: Signal) -> policy.Judgement | None:
        """Why nothing is to be done about a signal, whatever it is about."""
        if self.is_acted_on(signal):
            return policy.Judgement("skip", "duplicate", "this firing of this alert was acted on already")
        if self.stopped:
            return policy.Judgement("skip", "stop_switch", f"{self.stop_file} exists; remove it to allow actions")
        return None

    def waits(self, container: policy.Container, proposal: policy.Judgement) -> bool:
        """Whether the same is proposed for the same container already."""
        return any(
            (one.container_id, one.action) == (container.id, proposal.action)
            for one in self.journal.waiting(self.clock())
        )

    def decision(
        self, signal: Signal, judgement: policy.Judgement, container: policy.Container | None, *, beside: bool = False
    ) -> Decision:
        """A judgement as it goes into the audit; nothing is written yet."""
        return Decision(
            id=uuid.uuid4().hex,
            time=self.clock(),
            verdict=judgement.verdict,
            reason=judgement.reason,
            detail=judgement.detail,
            action=None if judgement.verdict == "skip" else judgement.action,
            alert=signal.name[:256],
            incident=signal.incident,
            container_id=container.id if container else None,
            container=container.name if container else signal.labels.get("name", "")[:128] or None,
            tenant=container.tenant if container else None,
            epoch=container.epoch if container else None,
            signals=(signal.to_text(), *([f"hyperd: {judgement.detail}"] if container else [])),
            policy=judgement.policy,
            digest=container.image_digest if container else None,
            image=signal.image,
            to_digest=signal.digest,
            beside=beside,
        )

    async def decide(
        self, signal: Signal, judgement: policy.Judgement, container: policy.Container | None, *, beside: bool = False
    ) -> Decision:
        """Write a judgement into the audit.

        Raises:
            AuditUnwritable: it does not stand there; then nothing may be done.
        """
        decision = self.decision(signal, judgement, container, beside=beside)
        await self.write(decision)
        return decision

    async def write(self, decision: Decision) -> None:
        """Write a decision into the audit; errors as above."""
        await asyncio.to_thread(self.journal.decide, decision)
        self.observer.decided(decision)
        log.info("%s %s: %s (%s)", decision.verdict, decision.container, decision.reason, decision.detail)

    async def act(self, intent: Decision) -> None:
        """Carry out what is written down; the caller holds the lock of its container."""
        async with self._updating if intent.action in policy.RENEWING else self._acting:
            await self._conclude(intent, await self.performer.act(intent))

    async def finish(self, intent: Decision) -> None:
        """End an action that an earlier controller began: find out, or do it, once."""
        with self.busy_with(intent.incident):
            async with self.lock(intent.key), self._updating if intent.action in policy.RENEWING else self._acting:
                await self._conclude(intent, await self.performer.finish(intent))

    async def _conclude(self, intent: Decision, ended: Ended) -> None:
        if ended.kind == "inconclusive":
            await self._ask(intent, ended)
        outcome = Outcome(
            intent.id, self.clock(), ended.kind, ended.carried_out, ended.detail, ended.epoch, ended.evidence
        )
        await asyncio.to_thread(self.journal.conclude, outcome)
        self.observer.concluded(intent, outcome)
        log.info("%s of %s: %s (%s)", intent.action, intent.container, outcome.outcome, outcome.detail)

    async def _ask(self, intent: Decision, ended: Ended) -> None:
        """Propose once more what could not be judged. Before the outcome: otherwise a crash in between forgets it."""
        asked = replace(
            intent, id=uuid.uuid4().hex, time=self.clock(), verdict="dry_run", approves=None, actor=None, beside=True,
            unobserved=True, detail=f"{intent.action} without a comparison? {ended.detail}; {intent.detail}",
        )  # fmt: skip
        for one in self.journal.waiting(self.clock()):
            if one.unobserved and (one.key, one.action, one.to_digest) == (asked.key, asked.action, asked.to_digest):
                return
        await self.write(asked)


def no_word(err: HyperdRefused | HyperdAway) -> policy.Judgement:
    """What an exception of hyperd's client is as a judgement."""
    if isinstance(err, HyperdAway):
        return policy.Judgement("skip", "hyperd_away", str(err))
    return policy.Judgement("skip", "container_unknown" if err.status == 404 else "hyperd_refused", str(err))
