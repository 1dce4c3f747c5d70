"""One rollout from its beginning to its end: each step is written down, then done.

Side by side: the new container is started beside the old one without ports, proves itself, is observed, and is given
name and ports; the old one ends its connections and is removed. In place, where two cannot have one disk: the old one
is stopped, the new one is started under the name, and if it does not come up the old one is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from runtime import creation, evidence, health, labels
from runtime.changes import readiness, signals, switching
from runtime.changes.book import health_of
from runtime.changes.comparison import compare, doubt, silence
from runtime.changes.knowngood import has_failed
from runtime.changes.rollout import Rollout
from runtime.changes.telling import Stopped, Telling
from runtime.errors import NotFound, RuntimeFault
from runtime.life import Change
from runtime.record import Lifecycle, Record

if TYPE_CHECKING:
    from runtime.changes.rollout import Compared, State
    from runtime.life import Container

log = logging.getLogger(__name__)

OBSERVE_INTERVAL_S = 1.0
DRAIN_INTERVAL_S = 0.2
_MIN_OBSERVE_INTERVAL_S = 0.05
_LOOKS = 10  # at least, in an observation however short
_WATCH_POLL_S = 1.0


class Course(Telling):
    """One rollout under way."""

    # --- from the beginning to the switch

    async def run(self) -> None:
        """Do it; the rollout has begun in the store, and nothing of it has been done.

        However it fails, the old container has the name and what it had, and the new one is gone. A cancelled one is
        left as it is: whoever comes back finishes or undoes it.
        """
        try:
            old = self._container(self.rollout.old)
            if self.rollout.kind == "rollback" or has_failed(old.record.lifecycle):
                await self._keep(old, self.rollout.reason or f"before the {self.rollout.kind}")
            new = await self._make(old)
            if self.rollout.in_place and old.record.lifecycle.desired == "running":
                await self._change_in_place(old, new)
            else:
                await self._change_side_by_side(old, new)
        except Stopped as why:
            await self.undo(why.state, why.detail, why.comparison)
        except (RuntimeFault, OSError) as err:
            await self.undo("failed", str(err))
        except Exception as err:
            log.exception("the rollout of %s", self.rollout.name)
            await self.undo("failed", f"an error of hyperd itself ({type(err).__name__}): its log has the details")
        else:
            await self.complete()

    async def begin_again(self) -> None:
        """Do a rollback anew that the end of a daemon has interrupted before the switch."""
        side = dataclasses.replace(self.rollout.new, container_id=secrets.token_hex(32))
        again = dataclasses.replace(self.rollout, state="starting", new=side, attempts=self.rollout.attempts + 1)
        self.rollout = self._book.advance(again, None, "begun again")
        await self.run()

    async def _make(self, old: Container) -> Container:
        """The new container, which has its id already and is not started."""
        side, record = self.rollout.new, old.record
        self._say("making the new container")
        self._told("starting")
        name = switching.other_name(self.rollout.name, "new", side.container_id)
        image = await self._engine.images.resolve(side.digest)
        made = Record(
            id=side.container_id,
            name=name,
            image=side.image,
            image_digest=side.digest,
            limits=record.limits,
            lifecycle=Lifecycle("created", "stopped", time.time()),
            tenant=record.tenant,
            project=record.project,
            labels=labels.of_container(image.config.labels, old.spec.labels),
        )
        spec = switching.candidate_spec(old.spec, name, side)
        new = await creation.add(self._engine, spec, made, lambda: None)
        new.awaited = True
        return new

    async def _change_side_by_side(self, old: Container, new: Container) -> None:
        starts = old.record.lifecycle.desired == "running"
        if starts:
            await self._start(new, await readiness.accepted_ports(old))
            if self.rollout.canary_s:
                await self._observe(old, new)
        async with old.lock, new.lock:
            self._demand_unchanged(old, new, starts=starts)
            self._advance("switching", "switching name and ports")
            spec = switching.final_spec(old.spec, self.rollout.name, self.rollout.new)
            with self._uncommitted():
                await switching.hand_over(
                    self._engine,
                    old,
                    new,
                    self.rollout.name,
                    spec,
                    lambda: self._commit(new),
                    revision=self._next_revision(),
                )
        self._told("switched")

    async def _change_in_place(self, old: Container, new: Container) -> None:
        engine, name = self._engine, self.rollout.name
        ports = await readiness.accepted_ports(old)
        async with old.lock, new.lock:
            self._demand_unchanged(old, new, starts=False)
            self._advance("switching", "stopping the old container: what it has mounted cannot be with two")
            switching.swap_names(engine, old, new, name)
            if old.live:
                await engine.stop_held(old)
        await self._start(new, ports)
        async with old.lock, new.lock:
            spec = switching.final_spec(old.spec, name, self.rollout.new)
            change = Change(new, {"revision": self._next_revision()}, spec)
            with self._uncommitted():
                engine.lives.change_together(change, and_also=lambda: self._commit(new))
        self._told("switched")

    async def _start(self, new: Container, ports: frozenset[int] | tuple[int, ...]) -> None:
        """Start the new container and wait until it is ready.

        Raises:
            Stopped: it could not be started, or is not ready in time.
        """
        self._say("starting")
        try:
            async with asyncio.timeout(self.rollout.timeout_s):
                async with new.lock:
                    with self._engine.operation(new, "start"):
                        await self._engine.supervisor.start(new)
                self._say("running")
                await readiness.ready(new, ports)
        except TimeoutError as err:
            lacks = readiness.waits_for(new, ports)
            raise Stopped("failed", f"not ready within {self.rollout.timeout_s:g} s: {lacks}") from err
        except RuntimeFault as err:
            raise Stopped("failed", f"the new container did not come up: {err.message}") from err
        checked = new.record.lifecycle.health == "healthy"
        self._say("healthy" if checked else "accepting connections" if ports else "up")

    async def _observe(self, old: Container, new: Container) -> None:
        """Look at both for the time asked for, and compare.

        Raises:
            Stopped: the new one does worse, or not enough is known, or somebody has meddled.
        """
        rollout = self.rollout
        self._advance("observing", f"observing for {rollout.canary_s:g} s")
        watches = (signals.Watch(old, await self._check_of(old)), signals.Watch(new, await self._check_of(new)))
        interval_s = max(_MIN_OBSERVE_INTERVAL_S, min(OBSERVE_INTERVAL_S, rollout.canary_s / _LOOKS))
        began = time.monotonic()
        epoch = new.record.lifecycle.epoch
        while True:
            await asyncio.gather(*(watch.look() for watch in watches))
            observed_s = min(time.monotonic() - began, rollout.canary_s)
            rows, verdict = compare(watches[0].seen(), watches[1].seen())
            self.rollout = self._book.advance(self.rollout, observed_s=round(observed_s, 1), comparison=rows)
            try:
                readiness.still_runs(new, epoch)
            except readiness.NotReady as err:
                raise Stopped("failed", f"while it was observed the new container failed: {err.message}", rows) from err
            if new.record.lifecycle.health == "unhealthy":
                raise Stopped("failed", "the new container became unhealthy while it was observed", rows)
            self._demand_unchanged(old, new, starts=True)
            if observed_s >= rollout.canary_s:
                break
            await asyncio.sleep(min(interval_s, rollout.canary_s - observed_s))
        if verdict == "worse" and "worse" in rollout.rollback_on:
            worse = ", ".join(f"{row.signal} ({row.old} → {row.new})" for row in rows if row.verdict == "worse")
            raise Stopped("failed", f"the new container does worse: {worse}", rows)
        if verdict == "inconclusive":
            raise Stopped("inconclusive", doubt(rows, rollout.name), rows)
        self._say(f"observed for {rollout.canary_s:g} s: {verdict}{silence(rows)}")

    async def _check_of(self, container: Container) -> tuple[str, ...]:
        """What its health check runs; empty: it has none."""
        image = await self._engine.images.resolve(container.record.image_digest)
        check = health.effective(container.spec.health, image.config, container.record.labels)
        return check.args if check is not None else ()

    def _demand_unchanged(self, old: Container, new: Container, *, starts: bool) -> None:
        """See that nobody has meddled with the two meanwhile."""
        known = {one.id for one in self._engine.lives.all()}
        name = self.rollout.name
        if old.id not in known:
            raise Stopped("failed", f"{name} was removed meanwhile")
        if new.id not in known:
            raise Stopped("failed", "the new container was removed meanwhile")
        if old.record.quarantine is not None:
            raise Stopped("inconclusive", f"{name} is in quarantine now: hyper start {name}, then try again")
        if starts and old.record.lifecycle.desired != "running" and self._stopped_by_somebody(old):
            raise Stopped("inconclusive", f"{name} was stopped meanwhile: change it as it is, by the same command")
        if starts and new.state != "running":
            raise Stopped("failed", f"the new container is {new.state}")

    @staticmethod
    def _stopped_by_somebody(old: Container) -> bool:
        """Whether it was stopped, rather than having ended with 0 by itself (ADR 6)."""
        return old.record.lifecycle.exit_code != 0

    # --- after the switch

    async def complete(self) -> None:
        """What follows a switch: the old container ends, the new one is watched. Also of a daemon that came back."""
        if self.rollout.state == "draining":
            await self._end_old()
            watch_s = self.rollout.watch_s
            if watch_s > 0 and self._new() is not None:
                self._advance("watching", f"watching for {watch_s:g} s", watch_until=time.time() + watch_s)
        if self.rollout.state == "watching":
            reason = await self._watch()
            if reason is not None:
                await self._roll_back(reason)
                return
        self._finish("done", self.rollout.detail)

    async def _end_old(self) -> None:
        """Let the connections of the old container come to their end, stop it, and remove it."""
        old, engine = self._old(), self._engine
        if old is None:
            return
        try:
            if old.state == "running" and not self.rollout.in_place:
                await self._drain(old)
            if old.live:
                await engine.stop(old.id)
            await engine.remove(old.id, force=True)
        except NotFound:
            pass
        except (RuntimeFault, OSError) as err:
            log.warning("the old container of %s stays as %s: %s", self.rollout.name, old.record.name, err)
            detail = f"the old container could not be removed: hyper rm -f {old.record.name} ({err})"
            self.rollout = self._book.advance(self.rollout, detail=detail)
        self._say("drained")

    async def _drain(self, old: Container) -> None:
        """Wait until two looks in a row find no connection open, or the time is over."""
        ports = [port for port in self._published() if port.protocol == "tcp"]
        if not ports:
            return
        quiet = 0
        deadline = time.monotonic() + self.rollout.drain_s
        while quiet < 2 and time.monotonic() < deadline and old.state == "running":
            await asyncio.sleep(min(DRAIN_INTERVAL_S, max(deadline - time.monotonic(), 0)))
            open_ = await signals.connections(old, ports)
            quiet = quiet + 1 if open_ == 0 else 0
        if quiet < 2:
            self._say(f"connections were still open after {self.rollout.drain_s:g} s")

    def _published(self) -> tuple[Any, ...]:
        new = self._new()
        return new.record.network.ports if new is not None and new.record.network else ()

    async def _watch(self) -> str | None:
        """Watch the new container for the time asked for; why it is to be rolled back, or None."""
        rollout = self.rollout
        new = self._new()
        if new is None:
            return None
        while (left_s := (rollout.watch_until or 0.0) - time.time()) > 0:
            changed, lifecycle = new.changed, new.record.lifecycle
            if self._new() is None or new.record.quarantine is not None:
                return None  # somebody has taken care of it
            ended = lifecycle.state == "exited" and lifecycle.desired == "running"
            if "exit" in rollout.rollback_on and (ended or lifecycle.retries > 0):
                return f"it ended with {lifecycle.exit_code}" if ended else "it ended and was started again"
            if "unhealthy" in rollout.rollback_on and lifecycle.health == "unhealthy":
                return "it became unhealthy"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _WATCH_POLL_S)):
                    await changed.wait()
        return None

    async def _roll_back(self, why: str) -> None:
        """Back to the image before: a rollout of its own, begun in the transaction in which this one ends."""
        new = self._new()
        back = rolled_back(
            self.rollout,
            f"{why} while it was watched after an update",
            health_of(new.record) if new is not None else "",
        )
        with self._engine.store.transaction():
            self._book.begin(back)
            self._settle("rolled_back")
            self.rollout = self._book.advance(
                self.rollout,
                "rolled_back",
                "rolling back",
                detail=why,
                rolled_back_by=back.id,
                finished_at=time.time(),
                health_after=health_of(new.record) if new is not None else "",
            )
        self._tell_end()
        after = Course(self._engine, self._book, back)
        await after.run()
        if after.rollout.state != "done":
            detail = f"{why}; and the rollback {after.rollout.state}: {after.rollout.detail}"
            self.rollout = self._book.advance(self.rollout, detail=detail)

    # --- the end

    async def undo(self, state: State, detail: str, comparison: tuple[Compared, ...] = ()) -> None:
        """Remove the new container; the old one has, or gets back, what it had."""
        engine, rollout = self._engine, self.rollout
        new, old = self._new(), self._old()
        new_record = new.record if new is not None else None
        if new is not None:
            await self._keep(new, detail)
        try:
            if new is not None and old is not None and new.record.name == rollout.name:
                async with old.lock, new.lock:  # in place alone: otherwise the name is given with the commit
                    if new.live:
                        await engine.stop_held(new)
                    switching.swap_back(engine, old, new, rollout.name)
            if new is not None:
                with contextlib.suppress(NotFound):
                    await engine.remove(new.id, force=True)
            await self._restore(old)
        except (RuntimeFault, OSError) as err:
            log.warning("the rollout of %s could not be undone as a whole: %s", rollout.name, err)
            detail += f"; undoing it failed: {err}"
        if comparison:
            self.rollout = self._book.advance(self.rollout, comparison=comparison)
        self._finish(state, detail, new_record)

    async def _keep(self, container: Container, why: str) -> None:
        """Save what a container was like that is about to be thrown away because of how it is."""
        path = await evidence.keep(self._engine, container, why)
        if path is not None:
            with contextlib.suppress(RuntimeFault, OSError):  # the path is told for convenience
                self.rollout = self._book.advance(self.rollout, evidence=(*self.rollout.evidence, path))

    async def _restore(self, old: Container | None) -> None:
        """Start the old container again, if it was stopped for the new one.

        Raises:
            RuntimeFault: as `Supervisor.start`.
        """
        if old is None or not self.rollout.in_place:
            return
        async with old.lock:
            if not old.live and old.record.lifecycle.desired == "running":
                self._say("starting the old container again")
                with self._engine.operation(old, "start"):
                    await self._engine.supervisor.start(old)


def rolled_back(rollout: Rollout, reason: str, health_before: str) -> Rollout:
    """The rollout that undoes a promoted one."""
    return Rollout(
        id=secrets.token_hex(16),
        name=rollout.name,
        tenant=rollout.tenant,
        kind="rollback",
        state="starting",
        old=rollout.new,
        new=dataclasses.replace(rollout.old, container_id=secrets.token_hex(32)),
        reason=reason,
        actor="hyperd",
        request_id=None,
        started_at=time.time(),
        timeout_s=rollout.timeout_s,
        drain_s=0.0,
        in_place=rollout.in_place,
        health_before=health_before,
    )
