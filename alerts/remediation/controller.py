"""The controller: one signal in, at most one action out, whatever dies in between.

The order for one signal is: judge, hold back, write the intent, act, write the outcome. `actions` sees to it that an
intent is carried out once; all that belongs to one tenant and name goes one after the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
import weakref
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from alerts.errors import AuditUnwritable, HyperdAway, HyperdRefused, NotApproved
from alerts.remediation import causes, following, ladder, policy, signals
from alerts.remediation.journal import Decision, Outcome
from alerts.remediation.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from alerts.remediation.actions import Ended, Performer
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Journal
    from alerts.remediation.policyfile import PolicyFile
    from alerts.remediation.pressure import Pressure
    from alerts.remediation.registry import Push
    from alerts.remediation.signals import Signal
    from alerts.remediation.webhook import Alert

log = logging.getLogger("hyper.remediation")

MAX_PENDING: Final = 2000
MAX_OVER: Final = 20_000
MAX_HELD: Final = 1000
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


class Controller:
    """Takes signals, decides, acts. All its tasks live in one event loop."""

    def __init__(
        self,
        journal: Journal,
        hyperd: Hyperd,
        performer: Performer,
        observer: Observer,
        stop_file: Path,
        policy_file: PolicyFile,
        pressure: Pressure,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._hyperd = hyperd
        self._performer = performer
        self._observer = observer
        self._stop_file = stop_file
        self._policy = policy_file
        self._pressure = pressure
        self._settings = settings or Settings()
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._over: OrderedDict[str, None] = OrderedDict()
        # What the host was the cause of, by incident. Not kept over a restart: what still is so is told anew.
        self._held: OrderedDict[str, Signal] = OrderedDict()
        self._causes = causes.Causes(self._settings.cause_ttl_s)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        # The host's bucket is looked at and taken from in one.
        self._deciding = asyncio.Lock()
        self._acting = asyncio.Semaphore(MAX_ACTIONS_AT_ONCE)
        # An update is watched for a while; no action that heals may wait for that.
        self._updating = asyncio.Semaphore(MAX_ACTIONS_AT_ONCE)
        for cause in journal.noted():
            self._causes.take(cause)

    @property
    def pending(self) -> int:
        """Signals and unfinished actions that are being worked on."""
        return len(self._tasks)

    @property
    def stopped(self) -> bool:
        """Whether the stop switch is on."""
        return self._stop_file.exists()

    def recover(self) -> None:
        """Take up what an earlier controller began and did not end."""
        for intent in self._journal.unfinished():
            log.warning("unfinished %s of %s from before the restart", intent.action, intent.container)
            self._busy.add(intent.incident)
            self._spawn(self._finish(intent))

    def submit(self, alerts: Sequence[Alert]) -> bool:
        """Begin work on alerts; False if there is too much of it already, and nothing was taken."""
        return self._submit([self._handle(signals.of_alert(alert)) for alert in alerts])

    def submit_signal(self, signal: Signal) -> None:
        """Begin work on a signal that is told once only; what is too much is lost, and said."""
        if not self._submit([self._handle(signal)]):
            log.warning("too much to do; lost: %s", signal.to_text())

    def submit_holes(self, found: Sequence[tuple[Signal, policy.Container]]) -> bool:
        """Begin work on what a feed knows of containers, but for what was acted on; False as above."""
        new = [(one, container) for one, container in found if not self._is_acted_on(one)]
        return self._submit([self._renew_each(new)] if new else [])

    def submit_pushes(self, pushes: Sequence[Push]) -> bool:
        """Begin work on pushes to a registry; False as above."""
        return self._submit([self._pushed(push) for push in pushes])

    async def take_up_held(self) -> None:
        """Look again and again at what the host was the cause of and at pushes that were held back, without an end."""
        while True:
            await asyncio.sleep(self._settings.held_s)
            for trouble in () if self.stopped else tuple(self._held.values()):
                await self._take_up(trouble)
            for decision in () if self.stopped else self._journal.held():
                signal, container = following.of_held(decision)
                if self._is_acted_on(signal) or self._keeps_waiting(signal, container):
                    continue
                self._submit([self._renew_each([(signal, container)])])

    async def approve(self, decision_id: str, actor: str) -> Decision:
        """Do what a decision only proposed; returns the intent once it is written down.

        Raises:
            NotApproved: there is no such decision that waits, or things are no longer as they were then.
        """
        intent: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._spawn(self._approve(decision_id, actor, intent))
        return await intent

    async def switch(self, *, stop: bool, actor: str, reason: str) -> None:
        """Set or lift the stop switch.

        Raises:
            AuditUnwritable: it stands, but not in the audit.
        """
        if stop:
            await asyncio.to_thread(self._stop_file.write_text, f"{actor}: {reason}\n")
        else:
            await asyncio.to_thread(self._stop_file.unlink, missing_ok=True)
        what: policy.Reason = "stop_switch" if stop else "stop_lifted"
        signal = signals.Signal("hyperd", "", f"switch/{uuid.uuid4().hex}", self._clock())
        detail = f"the stop switch was {'set' if stop else 'lifted'} by {actor}: {reason}"
        decision = self._decision(signal, policy.Judgement("skip", what, detail), None)
        await self._write(replace(decision, actor=actor, signals=()))

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is under way, then cancel the rest: the journal knows what was not finished."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _submit(self, work: Sequence[Coroutine[object, object, None]]) -> bool:
        if len(self._tasks) + len(work) > MAX_PENDING:
            for one in work:
                one.close()
            return False
        for one in work:
            self._spawn(one)
        return True

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        """One signal that goes wrong must not take the others with it."""
        try:
            await work
        except AuditUnwritable as err:
            self._observer.audit_failed()
            log.error("%s; nothing is done that is not written down first", err)  # noqa: TRY400 -- a full disk needs no traceback
        except Exception:
            log.exception("defect while working on a signal")

    # --- alerts and events

    async def _handle(self, signal: Signal) -> None:
        if not signal.firing:
            self._over[signal.incident] = None
            if len(self._over) > MAX_OVER:
                self._over.popitem(last=False)
        cause = causes.cause_of(signal.name, signal.labels, self._clock(), firing=signal.firing)
        if cause is not None:
            self._causes.take(cause)
            await asyncio.to_thread(self._journal.note, cause)
        judgement = self._before_asking(signal)
        if judgement is not None:
            await self._decide(signal, judgement, None)
            return
        self._busy.add(signal.incident)
        try:
            await self._ask_and_act(signal)
        finally:
            self._busy.discard(signal.incident)

    def _before_asking(self, signal: Signal) -> policy.Judgement | None:
        """What can be said without hyperd."""
        if not signal.firing:
            return policy.Judgement("skip", "resolved", "the alert is over")
        if signal.incident in self._over:
            return policy.Judgement("skip", "resolved", "the alert is over; this notification is late")
        if not self._policy.names(signal.name):
            if signal.name in policy.HOST_CAUSES | policy.COLLECTOR_CAUSES:
                return policy.Judgement("skip", "noted", "containers it concerns are left alone while it fires")
            return policy.Judgement("skip", "no_action_for_alert", "this alert is for people")
        if policy.container_named_by(signal.labels) is None:
            return policy.Judgement("skip", "no_container_named", "neither a label id with a whole id nor a label name")
        return self._done_or_stopped(signal)

    def _is_acted_on(self, signal: Signal) -> bool:
        return signal.incident in self._busy or self._journal.acted_on(signal.incident)

    def _done_or_stopped(self, signal: Signal) -> policy.Judgement | None:
        if self._is_acted_on(signal):
            return policy.Judgement("skip", "duplicate", "this firing of this alert was acted on already")
        if self.stopped:
            return policy.Judgement("skip", "stop_switch", f"{self._stop_file} exists; remove it to allow actions")
        return None

    async def _ask_and_act(self, signal: Signal) -> None:
        ref = policy.container_named_by(signal.labels)
        assert ref is not None  # noqa: S101 -- _before_asking has seen to it
        try:
            container = await self._performer.container(ref)
            async with self._lock(container.key):
                # Another signal may have been acted on while this one waited.
                if container.state in policy.RUNNING:
                    await self._pressure.look(container.id)
                container = await self._performer.container(container.id)
                async with self._deciding:
                    decision = await self._judge(signal, container)
                if decision.reason == "host_is_the_cause":
                    self._hold(signal)
                if decision.verdict == "act":
                    await self._act(decision)
        except (HyperdRefused, HyperdAway) as err:
            await self._decide(signal, _no_word(err), None)

    async def _judge(self, signal: Signal, container: policy.Container) -> Decision:
        """Decide, and write down what was decided and what is proposed beside it."""
        plan = await self._plan(signal, container)
        for proposal in plan.proposals:
            if not self._waits(container, proposal):
                await self._decide(signal, proposal, container, beside=True)
        judgement = plan.judgement
        if judgement.verdict == "dry_run" and self._waits(container, judgement):
            judgement = replace(judgement, verdict="skip", reason="duplicate", action=None)
        return await self._decide(signal, judgement, container)

    async def _plan(self, signal: Signal, container: policy.Container) -> ladder.Plan:
        now, settings = self._clock(), self._settings
        found = self._policy.rule(signal.name, container)
        if found is None:
            why = policy.Judgement("skip", "no_action_for_alert", "no rule of the policy file is about this container")
            return ladder.Plan(why)
        rule, dry_run, source = found
        seen = await self._look(rule, container, now)
        sustained = signal.source == "alertmanager" and now - signal.since >= settings.sustain_s
        confirmed = policy.confirm(
            rule, signal.labels, seen, sustained=sustained, deaths_count=settings.flap_confirm_count
        )
        if confirmed.verdict == "skip":
            return ladder.Plan(confirmed)
        allowance = self._policy.allowance(container, dry_run=dry_run, source=source)
        against = allowance if isinstance(allowance, policy.Judgement) else self._against(signal, container, now)
        against = against or self._pressure.judge(rule, container)
        if against is not None:
            return ladder.Plan(replace(against, detail=f"{against.detail}; {confirmed.detail}"))
        assert isinstance(allowance, ladder.Allowance)  # noqa: S101 -- the other kind is against it
        past = ladder.Past(
            self._journal.acted_at(container.key),
            self._journal.rolled_back_at(container.key),
            self._journal.host_acted_at(),
        )
        return ladder.plan(rule, confirmed, seen, allowance, past, settings.limits, now)

    async def _look(self, rule: policy.Rule, container: policy.Container, now: float) -> policy.Seen:
        """What else hyperd says that the rule has to know."""
        history: Sequence[policy.Revision] = ()
        if "rollback" in (*rule.after_change, *rule.otherwise):
            history = await self._history(container)
        actions = {"crash_loop": ("die",), "out_of_memory": ("oom",)}.get(rule.reason)
        if actions is None:
            return policy.Seen(container, history)
        since = now - self._settings.flap_window_s
        count = len(await self._hyperd.events(container.id, since, now, actions))
        return policy.Seen(container, history, **{"deaths" if actions == ("die",) else "ooms": count})

    async def _history(self, container: policy.Container) -> Sequence[policy.Revision]:
        try:
            return await self._hyperd.history(container.id)
        except HyperdRefused as err:
            # Without a history there is nothing to go back to; all else goes on.
            log.warning("no history of %s: %s", container.name, err)
            return ()

    def _against(self, signal: Signal, container: policy.Container, now: float) -> policy.Judgement | None:
        """Why nothing is to be done with a container now, whatever is wrong with it."""
        cause = self._causes.judge(signal, container, now)
        if cause is None and self._policy.in_maintenance(container, now):
            return policy.Judgement("skip", "maintenance", "a maintenance window of the policy file")
        return cause

    def _hold(self, signal: Signal) -> None:
        self._held[signal.incident] = signal
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    async def _take_up(self, signal: Signal) -> None:
        """Judge anew what the host was the cause of, unless it still is: then nothing is written."""
        if signal.incident not in self._over and not self._is_acted_on(signal):
            try:
                await self._pressure.look()
                container = await self._hyperd.container(policy.container_named_by(signal.labels) or "")
            except HyperdAway:
                return
            except HyperdRefused:
                container = None
            if container is not None and self._is_the_hosts(signal, container):
                return
            self.submit_signal(signal)
        self._held.pop(signal.incident, None)

    def _is_the_hosts(self, signal: Signal, container: policy.Container) -> bool:
        found = self._policy.rule(signal.name, container)
        against = self._against(signal, container, self._clock())
        against = against or (self._pressure.judge(found[0], container) if found else None)
        return against is not None and against.reason == "host_is_the_cause"

    def _waits(self, container: policy.Container, proposal: policy.Judgement) -> bool:
        """Whether the same is proposed for the same container already."""
        return any(
            (one.container_id, one.action) == (container.id, proposal.action)
            for one in self._journal.waiting(self._clock())
        )

    # --- pushes, and what a feed knows

    async def _pushed(self, push: Push) -> None:
        try:
            found = await following.concerned(self._hyperd, push)
        except (HyperdRefused, HyperdAway) as err:
            await self._decide(following.signal_of(push, None), _no_word(err), None)
            return
        await self._renew_each(found)

    async def _renew_each(self, found: Sequence[tuple[Signal, policy.Container]]) -> None:
        for signal, container in found:
            judgement = self._done_or_stopped(signal)
            if judgement is not None:
                await self._decide(signal, judgement, container)
                continue
            self._busy.add(signal.incident)
            try:
                await self._renew(signal, container)
            finally:
                self._busy.discard(signal.incident)

    async def _renew(self, signal: Signal, container: policy.Container) -> None:
        try:
            async with self._lock(container.key):
                was = container.image_digest
                container = await self._performer.container(container.name)
                judgement = following.judge(signal, was, container, await self._history(container))
                allowance = self._policy.allowance(container, dry_run=False, source="follow")
                if judgement.verdict == "act":
                    if isinstance(allowance, policy.Judgement):
                        judgement = allowance
                    else:
                        judgement = self._against(signal, container, self._clock()) or judgement
                if judgement.verdict == "act" and isinstance(allowance, ladder.Allowance):
                    dry = allowance.dry_run or allowance.level == "dry-run" or not following.may(judgement, container)
                    judgement = replace(judgement, verdict="dry_run" if dry else "act", policy=allowance.source)
                # Before the pull as well: what is told each minute is not to be fetched each minute.
                judgement = self._unless_held_back(judgement, container)
                if judgement.verdict != "skip" and judgement.action == "update":  # a rebuild asks the registry itself
                    judgement = await following.pull(self._hyperd, signal, judgement)
                async with self._deciding:
                    judgement = self._unless_held_back(judgement, container)
                    decision = await self._decide(signal, judgement, container)
                if decision.verdict == "act":
                    await self._act(decision)
        except (HyperdRefused, HyperdAway) as err:
            await self._decide(signal, _no_word(err), container)

    def _unless_held_back(self, judgement: policy.Judgement, container: policy.Container) -> policy.Judgement:
        """The judgement, or why what it calls for has to wait; what a person has to approve does not."""
        if judgement.verdict != "act" or judgement.action is None:
            return judgement
        past = ladder.Past(self._journal.renewed_at(container.key), (), self._journal.host_renewed_at())
        held = ladder.held_back(judgement.action, past, self._settings.limits, self._clock())
        if held is None:
            return judgement
        return replace(held, detail=f"{held.detail}; {judgement.detail}", policy=judgement.policy)

    def _keeps_waiting(self, signal: Signal, container: policy.Container) -> bool:
        """Whether what was held back would be so again: then nothing is written, and hyperd is not asked."""
        if self._against(signal, container, self._clock()) is not None:
            return True
        wanted = policy.Judgement("act", "image_pushed", "", "update")
        return self._unless_held_back(wanted, container).verdict == "skip"

    # --- decisions and actions

    async def _approve(self, decision_id: str, actor: str, answer: asyncio.Future[Decision]) -> None:
        try:
            proposal = self._proposal(decision_id)
            async with self._lock(proposal.key):
                proposal = self._proposal(decision_id)
                container = await self._hyperd.container(proposal.container or "")
                _still_fits(proposal, container)
                intent = replace(
                    proposal, id=uuid.uuid4().hex, time=self._clock(), verdict="act", epoch=container.epoch,
                    incident=f"approval/{proposal.id}", approves=proposal.id, actor=actor, beside=False,
                )  # fmt: skip
                await self._write(intent)
                answer.set_result(intent)
                await self._act(intent)
        except (NotApproved, AuditUnwritable) as err:
            answer.set_exception(err) if not answer.done() else log.error("%s", err)  # noqa: TRY400 -- told above
        except (HyperdRefused, HyperdAway) as err:
            failure = NotApproved(str(err), status=503 if isinstance(err, HyperdAway) else 409)
            failure.__cause__ = err
            if not answer.done():
                answer.set_exception(failure)
        finally:
            if not answer.done():
                answer.cancel()

    def _proposal(self, decision_id: str) -> Decision:
        waiting = self._journal.waiting(self._clock())
        found = [one for one in waiting if decision_id and one.id.startswith(decision_id)]
        if len(found) != 1:
            text = "several decisions that wait begin so: write more of it" if found else "no such decision waits"
            raise NotApproved(f"{decision_id[:64]}: {text}", status=409 if found else 404)
        if self.stopped:
            raise NotApproved(f"the stop switch is on: {self._stop_file} exists", status=409)
        return found[0]

    def _decision(
        self, signal: Signal, judgement: policy.Judgement, container: policy.Container | None, *, beside: bool = False
    ) -> Decision:
        return Decision(
            id=uuid.uuid4().hex,
            time=self._clock(),
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

    async def _decide(
        self, signal: Signal, judgement: policy.Judgement, container: policy.Container | None, *, beside: bool = False
    ) -> Decision:
        decision = self._decision(signal, judgement, container, beside=beside)
        await self._write(decision)
        return decision

    async def _write(self, decision: Decision) -> None:
        await asyncio.to_thread(self._journal.decide, decision)
        self._observer.decided(decision)
        log.info("%s %s: %s (%s)", decision.verdict, decision.container, decision.reason, decision.detail)

    async def _act(self, intent: Decision) -> None:
        async with self._updating if intent.action in policy.RENEWING else self._acting:
            await self._conclude(intent, await self._performer.carry_out(intent))

    async def _finish(self, intent: Decision) -> None:
        """End an action that an earlier controller began: find out, or do it, once."""
        try:
            async with self._lock(intent.key), self._updating if intent.action in policy.RENEWING else self._acting:
                await self._conclude(intent, await self._performer.finish(intent))
        finally:
            self._busy.discard(intent.incident)

    async def _conclude(self, intent: Decision, ended: Ended) -> None:
        if ended.kind == "inconclusive":
            await self._ask(intent, ended)
        outcome = Outcome(
            intent.id, self._clock(), ended.kind, ended.carried_out, ended.detail, ended.epoch, ended.evidence
        )
        await asyncio.to_thread(self._journal.conclude, outcome)
        self._observer.concluded(intent, outcome)
        log.info("%s of %s: %s (%s)", intent.action, intent.container, outcome.outcome, outcome.detail)

    async def _ask(self, intent: Decision, ended: Ended) -> None:
        """Propose once more what could not be judged. Before the outcome: otherwise a crash in between forgets it."""
        asked = replace(
            intent, id=uuid.uuid4().hex, time=self._clock(), verdict="dry_run", approves=None, actor=None, beside=True,
            unobserved=True, detail=f"{intent.action} without a comparison? {ended.detail}; {intent.detail}",
        )  # fmt: skip
        for one in self._journal.waiting(self._clock()):
            if one.unobserved and (one.key, one.action, one.to_digest) == (asked.key, asked.action, asked.to_digest):
                return
        await self._write(asked)

    def _lock(self, key: str) -> asyncio.Lock:
        """The lock of one tenant and name, which lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(key, asyncio.Lock())


def _still_fits(proposal: Decision, container: policy.Container) -> None:
    """Check that a container is still what a proposal was made for.

    Raises:
        NotApproved: it is not.
    """
    if (container.id, container.image_digest) != (proposal.container_id, proposal.digest):
        raise NotApproved(f"{container.name} is another container, or of another image, now", status=409)
    if container.quarantine is not None:
        raise NotApproved(f"{container.name} is in quarantine; a person lifts it first", status=409)


def _no_word(err: HyperdRefused | HyperdAway) -> policy.Judgement:
    """What an exception of hyperd's client is as a decision."""
    if isinstance(err, HyperdAway):
        return policy.Judgement("skip", "hyperd_away", str(err))
    return policy.Judgement("skip", "container_unknown" if err.status == 404 else "hyperd_refused", str(err))
