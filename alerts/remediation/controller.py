"""The controller: one alert in, at most one action out, whatever dies in between.

The order for one alert is: judge, hold back, write the intent with the container's epoch, act, write the outcome.
hyperd raises the epoch at every start of a container. After a crash, or a connection that broke while hyperd was at
work, the epoch therefore tells whether the action was made: beyond the intent's it was, at the intent's it was not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from alerts.errors import AuditUnwritable, HyperdAway, HyperdRefused
from alerts.remediation import guards, policy
from alerts.remediation.journal import Decision, Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from alerts.remediation.hyperd import Hyperd
    from alerts.remediation.journal import Journal
    from alerts.remediation.webhook import Alert

log = logging.getLogger("hyper.remediation")

MAX_PENDING = 2000
MAX_REASON_CHARS = 2048
MAX_ACTIONS_AT_ONCE = 2
"""A redeploy costs a boot; a host on which everything went down must not have to boot all of it at once."""


class Observer(Protocol):
    """What is told of every decision and outcome, for metrics."""

    def decided(self, decision: Decision) -> None:
        """A decision stands in the audit."""

    def concluded(self, decision: Decision, outcome: Outcome) -> None:
        """An outcome stands in the audit."""

    def audit_failed(self) -> None:
        """The audit could not be written."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How patient the controller is. Times in seconds.

    Attributes:
        limits: The guards per container.
        attempts: How often hyperd is asked before giving up.
        backoff_s: Pause before the second attempt; doubles with each, with jitter.
        backoff_max_s: Longest pause between two attempts.
        settle_s: How long a container may be in transition before its epoch is taken as it stands.
        recovery_max_age_s: An unfinished action older than this is not finished after a restart.
    """

    limits: guards.Limits = field(default_factory=guards.Limits)
    attempts: int = 6
    backoff_s: float = 0.5
    backoff_max_s: float = 10.0
    settle_s: float = 180.0
    recovery_max_age_s: float = 900.0


class Controller:
    """Takes alerts, decides, acts. All its tasks live in one event loop."""

    def __init__(
        self,
        journal: Journal,
        hyperd: Hyperd,
        observer: Observer,
        stop_file: Path,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._hyperd = hyperd
        self._observer = observer
        self._stop_file = stop_file
        self._settings = settings or Settings()
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._acting = asyncio.Semaphore(MAX_ACTIONS_AT_ONCE)

    @property
    def pending(self) -> int:
        """Alerts and unfinished actions that are being worked on."""
        return len(self._tasks)

    def recover(self) -> None:
        """Take up what an earlier controller began and did not end."""
        for intent in self._journal.unfinished():
            log.warning("unfinished %s of %s from before the restart", intent.action, intent.container)
            self._busy.add(intent.incident)
            self._spawn(self._finish(intent))

    def submit(self, alerts: Sequence[Alert]) -> bool:
        """Begin work on alerts; False if there is too much of it already, and nothing was taken."""
        if len(self._tasks) + len(alerts) > MAX_PENDING:
            return False
        for alert in alerts:
            self._spawn(self._handle(alert))
        return True

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is under way, then cancel the rest: the journal knows what was not finished."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[object, object, None]) -> None:
        """One alert that goes wrong must not take the others with it."""
        try:
            await work
        except AuditUnwritable as err:
            self._observer.audit_failed()
            log.error("%s; nothing is done that is not written down first", err)  # noqa: TRY400 -- a full disk needs no traceback
        except Exception:
            log.exception("defect while working on an alert")

    async def _handle(self, alert: Alert) -> None:
        judgement = self._before_asking(alert)
        if judgement is not None:
            await self._decide(alert, judgement, None)
            return
        self._busy.add(alert.incident)
        try:
            await self._ask_and_act(alert)
        finally:
            self._busy.discard(alert.incident)

    def _before_asking(self, alert: Alert) -> policy.Judgement | None:
        """What can be said without hyperd."""
        if alert.status == "resolved":
            return policy.Judgement("skip", "resolved", "the alert is over")
        if alert.name not in policy.ACTIONS:
            return policy.Judgement("skip", "no_action_for_alert", "this alert is for people")
        if policy.container_named_by(alert.labels) is None:
            return policy.Judgement("skip", "no_container_named", "neither a label id with a whole id nor a label name")
        if alert.incident in self._busy or self._journal.acted_on(alert.incident):
            return policy.Judgement("skip", "duplicate", "this firing of this alert was acted on already")
        if self._stop_file.exists():
            return policy.Judgement("skip", "stop_switch", f"{self._stop_file} exists; remove it to allow actions")
        return None

    async def _ask_and_act(self, alert: Alert) -> None:
        ref = policy.container_named_by(alert.labels)
        assert ref is not None  # noqa: S101 -- _before_asking has seen to it
        try:
            container = await self._container(ref)
            async with self._lock(container.id):
                # Another alert may have been acted on while this one waited.
                container = await self._container(container.id)
                judgement = self._hold_back(container, policy.judge(alert.labels, container))
                decision = await self._decide(alert, judgement, container)
                if decision.verdict == "act":
                    await self._act(decision)
        except HyperdRefused as err:
            reason: policy.Reason = "container_unknown" if err.status == 404 else "hyperd_refused"
            await self._decide(alert, policy.Judgement("skip", reason, str(err)), None)
        except HyperdAway as err:
            await self._decide(alert, policy.Judgement("skip", "hyperd_away", str(err)), None)

    def _hold_back(self, container: policy.Container, judgement: policy.Judgement) -> policy.Judgement:
        if judgement.verdict != "act":
            return judgement
        limits, now = self._settings.limits, self._clock()
        acted_at = self._journal.acted_at(container.id)
        wait_s = guards.cooldown_left_s(acted_at, now, limits)
        if wait_s > 0:
            return policy.Judgement("skip", "cooldown", f"{wait_s:.0f} s of the cooldown left; {judgement.detail}")
        tokens = guards.tokens_left(acted_at, now, limits)
        if tokens < 1:
            detail = f"{limits.bucket_size} actions are spent, one comes back every {limits.refill_s:.0f} s"
            return policy.Judgement("skip", "budget_spent", f"{detail}; {judgement.detail}")
        return judgement

    async def _decide(self, alert: Alert, judgement: policy.Judgement, container: policy.Container | None) -> Decision:
        decision = Decision(
            id=uuid.uuid4().hex,
            time=self._clock(),
            verdict=judgement.verdict,
            reason=judgement.reason,
            detail=judgement.detail,
            action=None if judgement.verdict == "skip" else policy.ACTIONS[alert.name],
            alert=alert.name[:256],
            incident=alert.incident,
            container_id=container.id if container else None,
            container=container.name if container else alert.labels.get("name", "")[:128] or None,
            tenant=container.tenant if container else None,
            epoch=container.epoch if container else None,
        )
        await asyncio.to_thread(self._journal.decide, decision)
        self._observer.decided(decision)
        log.info("%s %s: %s (%s)", decision.verdict, decision.container, decision.reason, decision.detail)
        return decision

    async def _act(self, intent: Decision) -> None:
        async with self._acting:
            await self._conclude(intent, *await self._carry_out(intent))

    async def _carry_out(self, intent: Decision) -> tuple[OutcomeKind, bool, str, int | None]:
        """Redeploy once: try again only where hyperd's epoch says that it was not done."""
        container_id, epoch = intent.container_id, intent.epoch
        assert container_id is not None  # noqa: S101 -- an intent has them
        assert epoch is not None  # noqa: S101 -- an intent has them
        why = f"{intent.alert}: {intent.detail} (remediation {intent.id})"[:MAX_REASON_CHARS]
        failure, final = "", False
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(self._pause_s(attempt))
            if self._stop_file.exists():
                return "stop_switch", False, f"{self._stop_file} exists", epoch
            try:
                after = await self._hyperd.redeploy(container_id, why)
            except HyperdRefused as err:
                # It may have been tried: a port that is taken or a missing image shows only once the start has begun.
                failure, final = str(err), True
            except HyperdAway as err:
                failure = str(err)
                if not err.sent:
                    continue
            else:
                return "done", True, f"redeployed; hyperd says {after.state}", after.epoch
            try:
                seen = await self._settled(container_id)
            except HyperdRefused as err:
                return "gone", False, str(err), epoch
            except HyperdAway as err:
                failure = str(err)
                return "unknown", True, f"hyperd may have redeployed it: {failure}", epoch
            if seen.epoch > epoch:
                runs = seen.state in policy.RUNNING
                return ("done" if runs else "failed"), True, f"{failure}; hyperd says {seen.state}", seen.epoch
            if final:
                break
        return "failed", False, failure, epoch

    async def _finish(self, intent: Decision) -> None:
        """End an action that an earlier controller began: find out, or do it, once."""
        try:
            async with self._lock(intent.container_id or ""):
                await self._conclude(intent, *await self._find_out_or_do(intent))
        finally:
            self._busy.discard(intent.incident)

    async def _find_out_or_do(self, intent: Decision) -> tuple[OutcomeKind, bool, str, int | None]:
        assert intent.container_id is not None  # noqa: S101 -- an intent has them
        assert intent.epoch is not None  # noqa: S101 -- an intent has them
        attempt = 0
        while True:
            old = self._clock() - intent.time > self._settings.recovery_max_age_s
            try:
                seen = await self._settled(intent.container_id)
                break
            except HyperdRefused as err:
                return "gone", False, str(err), intent.epoch
            except HyperdAway as err:
                if old:
                    return "unknown", True, f"could not be found out after a restart: {err}", intent.epoch
            attempt += 1
            await asyncio.sleep(self._pause_s(attempt))
        if seen.epoch > intent.epoch:
            return "done", True, "done before the controller was restarted", seen.epoch
        if seen.desired != "running" or seen.state not in policy.NOT_RUNNING:
            return "not_needed", False, f"after a restart hyperd says {seen.state}, wanted {seen.desired}", seen.epoch
        if old:
            return "expired", False, "too old to be finished after a restart", seen.epoch
        async with self._acting:
            return await self._carry_out(intent)

    async def _conclude(
        self, intent: Decision, kind: OutcomeKind, carried_out: bool, detail: str, epoch: int | None
    ) -> None:
        outcome = Outcome(intent.id, self._clock(), kind, carried_out, detail, epoch)
        await asyncio.to_thread(self._journal.conclude, outcome)
        self._observer.concluded(intent, outcome)
        log.info("%s of %s: %s (%s)", intent.action, intent.container, kind, detail)

    async def _container(self, ref: str) -> policy.Container:
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
            await asyncio.sleep(self._pause_s(attempt))
        return await self._hyperd.container(ref)

    async def _settled(self, container_id: str) -> policy.Container:
        """The container once it is no longer in transition, or as it is when patience ends."""
        deadline = time.monotonic() + self._settings.settle_s
        while True:
            seen = await self._container(container_id)
            if seen.state in policy.RUNNING | policy.NOT_RUNNING or time.monotonic() > deadline:
                return seen
            await asyncio.sleep(self._settings.backoff_s)

    def _lock(self, container_id: str) -> asyncio.Lock:
        """The lock of one container, which lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(container_id, asyncio.Lock())

    def _pause_s(self, attempt: int) -> float:
        longest = min(self._settings.backoff_max_s, self._settings.backoff_s * 2.0 ** (attempt - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter is no secret
