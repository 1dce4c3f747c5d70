"""From what is new in a registry or in a feed to updates and rebuilds of the containers that it concerns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import following, ladder, policy
from alerts.remediation.work import no_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alerts.remediation import guards
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.policyfile import PolicyFile
    from alerts.remediation.registry import Push
    from alerts.remediation.signals import Signal
    from alerts.remediation.work import Work


class Renewals:
    """Judges pushes and findings one by one. `against` says why a container is to be left alone now, or None."""

    def __init__(
        self,
        work: Work,
        hyperd: Hyperd,
        policy_file: PolicyFile,
        limits: guards.Limits,
        against: Callable[[Signal, policy.Container, float], policy.Judgement | None],
    ) -> None:
        self._work = work
        self._hyperd = hyperd
        self._policy = policy_file
        self._limits = limits
        self._against = against

    async def pushed(self, push: Push) -> None:
        """Work on a push.

        Raises:
            AuditUnwritable: a decision does not stand in the audit, and nothing is done.
        """
        try:
            found = await following.concerned(self._hyperd, push)
        except (HyperdRefused, HyperdAway) as err:
            await self._work.decide(following.signal_of(push, None), no_word(err), None)
            return
        await self.each(found)

    async def each(self, found: Sequence[tuple[Signal, policy.Container]]) -> None:
        """Work on signals one after the other; errors as above."""
        for signal, container in found:
            judgement = self._work.done_or_stopped(signal)
            if judgement is not None:
                await self._work.decide(signal, judgement, container)
                continue
            with self._work.busy_with(signal.incident):
                await self._renew(signal, container)

    def due(self) -> list[tuple[Signal, policy.Container]]:
        """What was held back, and would not be now."""
        held = [following.of_held(decision) for decision in self._work.journal.held()]
        return [one for one in held if not self._work.is_acted_on(one[0]) and not self._keeps_waiting(*one)]

    async def _renew(self, signal: Signal, container: policy.Container) -> None:
        work = self._work
        try:
            async with work.lock(container.key):
                was = container.image_digest
                container = await work.performer.container(container.name)
                history = await following.history(self._hyperd, container)
                judgement = following.judge(signal, was, container, history)
                allowance = self._policy.allowance(container, dry_run=False, source="follow")
                if judgement.verdict == "act":
                    if isinstance(allowance, policy.Judgement):
                        judgement = allowance
                    else:
                        judgement = self._against(signal, container, work.clock()) or judgement
                if judgement.verdict == "act" and isinstance(allowance, ladder.Allowance):
                    dry = allowance.dry_run or allowance.level == "dry-run" or not following.may(judgement, container)
                    judgement = replace(judgement, verdict="dry_run" if dry else "act", policy=allowance.source)
                # Before the pull as well: what is told each minute is not to be fetched each minute.
                judgement = self._unless_held_back(judgement, container)
                if judgement.verdict != "skip" and judgement.action == "update":  # a rebuild asks the registry itself
                    judgement = await following.pull(self._hyperd, signal, judgement)
                async with work.deciding:
                    judgement = self._unless_held_back(judgement, container)
                    decision = await work.decide(signal, judgement, container)
                if decision.verdict == "act":
                    await work.act(decision)
        except (HyperdRefused, HyperdAway) as err:
            await work.decide(signal, no_word(err), container)

    def _unless_held_back(self, judgement: policy.Judgement, container: policy.Container) -> policy.Judgement:
        """The judgement, or why what it calls for has to wait; what a person has to approve does not."""
        if judgement.verdict != "act" or judgement.action is None:
            return judgement
        journal = self._work.journal
        past = ladder.Past(journal.renewed_at(container.key), (), journal.host_renewed_at())
        held = ladder.held_back(judgement.action, past, self._limits, self._work.clock())
        if held is None:
            return judgement
        return replace(held, detail=f"{held.detail}; {judgement.detail}", policy=judgement.policy)

    def _keeps_waiting(self, signal: Signal, container: policy.Container) -> bool:
        """Whether what was held back would be so again: then nothing is written, and hyperd is not asked."""
        if self._against(signal, container, self._work.clock()) is not None:
            return True
        wanted = policy.Judgement("act", "image_pushed", "", "update")
        return self._unless_held_back(wanted, container).verdict == "skip"
