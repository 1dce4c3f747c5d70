"""The controller: one signal in, at most one action out, whatever dies in between.

An alert or an event is judged here, by `ladder` and what is against it; `renewals` judges what is new in a registry or
a feed. What comes of a judgement is `work`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from alerts.errors import AuditUnwritable, HyperdAway, HyperdRefused
from alerts.remediation import approvals, causes, following, ladder, policy, signals
from alerts.remediation.renewals import Renewals
from alerts.remediation.settings import Settings
from alerts.remediation.work import Work, no_word

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from alerts.remediation.actions import Performer
    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Decision, Journal
    from alerts.remediation.policyfile import PolicyFile
    from alerts.remediation.pressure import Pressure
    from alerts.remediation.registry import Push
    from alerts.remediation.signals import Signal
    from alerts.remediation.webhook import Alert
    from alerts.remediation.work import Observer

log = logging.getLogger("hyper.remediation")

MAX_PENDING: Final = 2000
MAX_OVER: Final = 20_000
MAX_HELD: Final = 1000


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
        self._work = Work(journal, performer, observer, stop_file, clock)
        self._journal = journal
        self._hyperd = hyperd
        self._policy = policy_file
        self._pressure = pressure
        self._settings = settings or Settings()
        self._renewals = Renewals(self._work, hyperd, policy_file, self._settings.limits, self._against)
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: OrderedDict[str, None] = OrderedDict()
        # What the host was the cause of, by incident. Not kept over a restart: what still is so is told anew.
        self._held: OrderedDict[str, Signal] = OrderedDict()
        self._causes = causes.Causes(self._settings.cause_ttl_s)
        for cause in journal.noted():
            self._causes.take(cause)

    @property
    def pending(self) -> int:
        """Signals and unfinished actions that are being worked on."""
        return len(self._tasks)

    @property
    def stopped(self) -> bool:
        """Whether the stop switch is on."""
        return self._work.stopped

    def recover(self) -> None:
        """Take up what an earlier controller began and did not end."""
        for intent in self._journal.unfinished():
            log.warning("unfinished %s of %s from before the restart", intent.action, intent.container)
            self._spawn(self._work.finish(intent))

    def submit(self, alerts: Sequence[Alert]) -> bool:
        """Begin work on alerts; False if there is too much of it already, and nothing was taken."""
        return self._submit([self._handle(signals.of_alert(alert)) for alert in alerts])

    def submit_signal(self, signal: Signal) -> None:
        """Begin work on a signal that is told once only; what is too much is lost, and said."""
        if not self._submit([self._handle(signal)]):
            log.warning("too much to do; lost: %s", signal.to_text())

    def submit_holes(self, found: Sequence[tuple[Signal, policy.Container]]) -> bool:
        """Begin work on what a feed knows of containers, but for what was acted on; False as above."""
        new = [(one, container) for one, container in found if not self._work.is_acted_on(one)]
        return self._submit([self._renewals.each(new)] if new else [])

    def submit_pushes(self, pushes: Sequence[Push]) -> bool:
        """Begin work on pushes to a registry; False as above."""
        return self._submit([self._renewals.pushed(push) for push in pushes])

    async def take_up_held(self) -> None:
        """Look again and again at what the host was the cause of and at pushes that were held back, without an end."""
        while True:
            await asyncio.sleep(self._settings.held_s)
            for trouble in () if self.stopped else tuple(self._held.values()):
                await self._take_up(trouble)
            for due in () if self.stopped else self._renewals.due():
                self._submit([self._renewals.each([due])])

    async def approve(self, decision_id: str, actor: str) -> Decision:
        """Do what a decision only proposed; returns the intent once it is written down.

        Raises:
            NotApproved: there is no such decision that waits, or things are no longer as they were then.
        """
        intent: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._spawn(approvals.approve(self._work, self._hyperd, decision_id, actor, intent))
        return await intent

    async def switch(self, *, stop: bool, actor: str, reason: str) -> None:
        """Set or lift the stop switch.

        Raises:
            AuditUnwritable: it stands, but not in the audit.
        """
        if stop:
            await asyncio.to_thread(self._work.stop_file.write_text, f"{actor}: {reason}\n")
        else:
            await asyncio.to_thread(self._work.stop_file.unlink, missing_ok=True)
        what: policy.Reason = "stop_switch" if stop else "stop_lifted"
        signal = signals.Signal("hyperd", "", f"switch/{uuid.uuid4().hex}", self._work.clock())
        detail = f"the stop switch was {'set' if stop else 'lifted'} by {actor}: {reason}"
        decision = self._work.decision(signal, policy.Judgement("skip", what, detail), None)
        await self._work.write(replace(decision, actor=actor, signals=()))

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
            self._work.observer.audit_failed()
            log.error("%s; nothing is done that is not written down first", err)  # noqa: TRY400 -- a full disk needs no traceback
        except Exception:
            log.exception("defect while working on a signal")

    # --- alerts and events

    async def _handle(self, signal: Signal) -> None:
        if not signal.firing:
            self._over[signal.incident] = None
            if len(self._over) > MAX_OVER:
                self._over.popitem(last=False)
        cause = causes.cause_of(signal.name, signal.labels, self._work.clock(), firing=signal.firing)
        if cause is not None:
            self._causes.take(cause)
            await asyncio.to_thread(self._journal.note, cause)
        judgement = self._before_asking(signal)
        if judgement is not None:
            await self._work.decide(signal, judgement, None)
            return
        with self._work.busy_with(signal.incident):
            await self._ask_and_act(signal)

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
        return self._work.done_or_stopped(signal)

    async def _ask_and_act(self, signal: Signal) -> None:
        ref = policy.container_named_by(signal.labels)
        assert ref is not None  # noqa: S101 -- _before_asking has seen to it
        try:
            container = await self._work.performer.container(ref)
            async with self._work.lock(container.key):
                # Another signal may have been acted on while this one waited.
                if container.state in policy.RUNNING:
                    await self._pressure.look(container.id)
                container = await self._work.performer.container(container.id)
                async with self._work.deciding:
                    decision = await self._judge(signal, container)
                if decision.reason == "host_is_the_cause":
                    self._hold(signal)
                if decision.verdict == "act":
                    await self._work.act(decision)
        except (HyperdRefused, HyperdAway) as err:
            await self._work.decide(signal, no_word(err), None)

    async def _judge(self, signal: Signal, container: policy.Container) -> Decision:
        """Decide, and write down what was decided and what is proposed beside it."""
        plan = await self._plan(signal, container)
        for proposal in plan.proposals:
            if not self._work.waits(container, proposal):
                await self._work.decide(signal, proposal, container, beside=True)
        judgement = plan.judgement
        if judgement.verdict == "dry_run" and self._work.waits(container, judgement):
            judgement = replace(judgement, verdict="skip", reason="duplicate", action=None)
        return await self._work.decide(signal, judgement, container)

    async def _plan(self, signal: Signal, container: policy.Container) -> ladder.Plan:
        now, settings = self._work.clock(), self._settings
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
            history = await following.history(self._hyperd, container)
        actions = {"crash_loop": ("die",), "out_of_memory": ("oom",)}.get(rule.reason)
        if actions is None:
            return policy.Seen(container, history)
        since = now - self._settings.flap_window_s
        count = len(await self._hyperd.events(container.id, since, now, actions))
        return policy.Seen(container, history, **{"deaths" if actions == ("die",) else "ooms": count})

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
        if signal.incident not in self._over and not self._work.is_acted_on(signal):
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
        against = self._against(signal, container, self._work.clock())
        against = against or (self._pressure.judge(found[0], container) if found else None)
        return against is not None and against.reason == "host_is_the_cause"
