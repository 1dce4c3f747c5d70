"""What makes and ends containers: create, start, stop, kill, restart, redeploy, remove; and running a command in one.

Each operation holds the container's lock, so that a wedged guest delays nobody but itself, and is written into the
journal before it is begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING

from runtime import creation, quarantine, restarts, sessions, startup
from runtime.changes.book import Book, health_of
from runtime.changes.knowngood import KnownGood
from runtime.changes.requests import Requests
from runtime.changes.rollouts import Rollouts
from runtime.errors import Conflict, GuestFailed, HostUnable, RuntimeFault
from runtime.events import Event, Events, of_container
from runtime.life import Container, Lives
from runtime.rotation import Rotation
from runtime.signals import signal_number
from runtime.spec import RestartSpec
from runtime.supervisor import SIGNAL_TIMEOUT_S, Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any

    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.counts import Counts
    from runtime.images.store import ImageStore
    from runtime.network.ports import PortReservations
    from runtime.record import Record
    from runtime.spec import ExecSpec, Spec
    from runtime.startup import Starter
    from runtime.store import Operation, Store
    from runtime.volumes import Volumes


log = logging.getLogger(__name__)
_CLIENT_S = 10.0  # that a client may take to come for what a container wrote, or to remove it after that
_NEARLY_FULL = 0.1  # share of a disk that is free


class Engine:
    """The operations of one host."""

    def __init__(
        self,
        config: Config,
        store: Store,
        images: ImageStore,
        starter: Starter,
        host_cgroups: HostCgroups,
        ports: PortReservations,
        counts: Counts,
        volumes: Volumes,
    ) -> None:
        self.volumes = volumes
        self.config = config
        self.store = store
        self.images = images
        self.starter = starter
        self.host_cgroups = host_cgroups
        self.ports = ports
        self.counts = counts
        self.events = Events(store)
        self.lives = Lives(store, self.events)
        self.rotation = Rotation(self.lives, config.log_max_bytes)
        self.supervisor = Supervisor(
            config, self.lives, images, starter, host_cgroups, counts, ports, self.events, on_end=self._has_ended
        )
        self._background: set[asyncio.Task[None]] = set()
        self._going_down = False
        self.book = Book(store)
        self.rollouts = Rollouts(self, self.book)
        self.requests = Requests(self.book)
        self.known_good = KnownGood(self.lives, self.book, config.known_good_after_s)

    async def create(self, spec: Spec, pulled_s: float | None = None) -> Container:
        """Make a container that can be started; as `creation.create`, and raises what that does."""
        return await creation.create(self, spec, pulled_s)

    def container(self, slot: int, spec: Spec, record: Record) -> Container:
        """A container in memory, with its two directories."""
        return Container(
            record.id,
            slot,
            spec,
            record,
            self.config.state_dir / "containers" / record.id,
            self.config.data_dir / "containers" / record.id,
        )

    async def start(self, reference: str) -> Container:
        """Start it; one that runs is left alone.

        Raises:
            Conflict: it is paused.
            DiskFull: there is no room for it; it stays as it is.
            PortInUse, CommandNotFound, CommandNotExecutable, GuestFailed, HostUnable, DiskFull: it is `exited` then.
        """
        container = self.lives.find(reference)
        async with container.lock:
            if container.record.quarantine is not None and container.live:
                await quarantine.lift(self, container)
            if container.state == "paused":
                name = container.record.name
                raise Conflict(
                    f"the container {name} is paused: let it go on instead (hyper unpause {name})", field="container"
                )
            if not container.live:
                self.store.reserve.demand_room()
                with self.operation(container, "start"):
                    await self.supervisor.start(container)
        return container

    async def stop(self, reference: str, timeout_s: float | None = None, signal_name: str | None = None) -> Container:
        """Send the stop signal (or another), wait, kill; one that does not run is left alone."""
        container = self.lives.find(reference)
        number = None if signal_name is None else signal_number(signal_name, "signal")
        async with container.lock:
            if container.live:
                with self.operation(container, "stop", "stop"):
                    await self._begin_to_stop(container, desired="stopped")
                    await self.supervisor.stop(container, timeout_s, number)
            elif container.record.lifecycle.desired == "running":
                self.lives.change(container, desired="stopped", retry_at=None)
        return container

    async def kill(self, reference: str, signal_name: str) -> None:
        """Send a signal to the container's process. KILL ends the VM if the guest does not obey.

        After one that is to stop it the restart policy does not start it again, also if it goes on for a while. A stop
        that is under way is not waited for: it is over when the container has ended.

        Raises:
            Conflict: it does not run, or it is paused and could not take the signal.
            InvalidInput: no such signal.
        """
        container = self.lives.find(reference)
        name = container.record.name
        number = signal_number(signal_name, "signal")
        stops = await self._is_to_stop(container, number)
        if stops and container.waits_to_retry:
            self.lives.change(container, desired="stopped", retry_at=None)
            return
        if container.state not in {"running", "paused", "stopping"} or container.agent is None:
            raise Conflict(f"the container {name} is not running", field="container")
        if number != signal.SIGKILL:
            if container.state == "paused":
                raise Conflict(
                    f"the container {name} is paused and takes no signal but KILL: hyper unpause {name} first",
                    field="container",
                )
            container.demand_going()
            if stops:  # before it is sent: the end may come at once
                self.lives.change(container, stop_epoch=container.record.lifecycle.epoch)
            self.events.tell(of_container(container.record, "kill", signal=number))
            await container.agent.call("hyper-signal", SIGNAL_TIMEOUT_S, signal=number, all=False)
            return
        if container.state == "stopping":
            await self.supervisor.kill(container)
            return
        async with container.lock:
            if container.live:
                with self.operation(container, "kill"):
                    await self._begin_to_stop(container, desired="stopped")
                    await self.supervisor.kill(container)

    async def _is_to_stop(self, container: Container, number: int) -> bool:
        """Whether a signal counts as a stop: the stop signal does, and where none is configured, those of a terminal.

        There any would in Docker, and what was told to read its configuration again would never be restarted.
        """
        if number == signal.SIGKILL:
            return True
        image = await self.images.resolve(container.record.image_digest)
        configured = container.spec.stop_signal or image.config.stop_signal
        if configured:
            return number == signal_number(configured, "stop_signal")
        return number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}

    async def restart(
        self, reference: str, timeout_s: float | None = None, signal_name: str | None = None
    ) -> Container:
        """Stop and start it, with the same writable layer.

        Raises:
            DiskFull: there is no room for a start: it runs on.
            RuntimeFault: as `start`.
        """
        container = self.lives.find(reference)
        number = None if signal_name is None else signal_number(signal_name, "signal")
        async with container.lock:
            self.store.reserve.demand_room()
            with self.operation(container, "restart", "restart"):
                await self._stop_to_start(container, timeout_s, number)
                await self.supervisor.start(container)
        return container

    async def redeploy(
        self, reference: str, actor: str, reason: str, done: Callable[[], None] = lambda: None
    ) -> Container:
        """Replace its VM and writable layer by fresh ones of the same image digest; name, address and ports stay.

        What was done, by whom and why is in the audit log and in the history, also when it failed. `done` is called
        when it is done, before the journal forgets it.

        Raises:
            Conflict: its image is being changed, or it is in quarantine.
            DiskFull: there is no room for a start: it runs on.
            RuntimeFault: as `start`.
        """
        container = self.lives.find(reference)
        async with container.lock:
            self.rollouts.demand_none(container)
            quarantine.demand_none(container)
            self.store.reserve.demand_room()
            health = health_of(container.record)
            before: dict[str, object] = {"state": container.state, "exit_code": container.record.lifecycle.exit_code}
            try:
                with self.operation(container, "redeploy", "redeploy"):
                    await self._stop_to_start(container, None)
                    (container.data_directory / "writable.ext4").unlink(missing_ok=True)
                    revision = self.book.next_revision(container.record)
                    self.lives.change(
                        container,
                        revision=revision,
                        and_also=lambda: self.book.redeployed(container.record, revision, actor, reason, health),
                    )
                    await self.supervisor.start(container)
                    done()
            except RuntimeFault as err:
                failure = {"before": before, "error": err.message}
                self.store.audit(actor, "redeploy", container.record, reason, "failed", failure)
                raise
            after = {"before": before, "epoch": container.record.lifecycle.epoch}
            self.store.audit(actor, "redeploy", container.record, reason, "done", after)
        return container

    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it with all it has; with `force` also while it runs, with `volumes` also its anonymous volumes.

        A stop that is under way is cut short: it may have long to wait.

        Raises:
            Conflict: it runs, and `force` is not given.
        """
        container = self.lives.find(reference)

        def demand_over() -> None:
            if not force and not container.over:
                what = container.state if container.live else "waiting to be restarted"
                raise Conflict(
                    f"the container {container.record.name} is {what}: stop it first, or remove it with --force",
                    field="container",
                )

        demand_over()
        if container.state == "stopping":
            await self.supervisor.kill(container)
        async with container.lock:
            demand_over()  # it may have been started meanwhile
            self.lives.find(container.id)  # or removed
            with self.operation(container, "remove"):
                if container.live:
                    await self._begin_to_stop(container, desired="stopped", retry_at=None)
                    await self.supervisor.kill(container)
                await self.erase(container, volumes=volumes)

    async def go_down(self) -> None:
        """Stop all containers side by side, because the host goes down. Nothing can be asked of this daemon any more.

        They are wanted as before: their restart policies bring them back when the host has booted. What is in
        quarantine is not woken for that.
        """
        self._going_down = True
        for task in self._background:
            task.cancel()

        async def stop(container: Container) -> None:
            async with container.lock:
                # One that was just being started is in the journal: it is started when the host has booted.
                if container.live and container.state != "starting" and container.record.quarantine is None:
                    container.goes_with_host = True
                    with self.operation(container, "stop", "stop"):
                        await self._stop_to_start(container, None)

        containers = self.lives.all()
        for container, result in zip(
            containers, await asyncio.gather(*map(stop, containers), return_exceptions=True), strict=True
        ):
            if isinstance(result, BaseException):
                log.warning("container %s could not be stopped with the host: %s", container.record.name, result)

    def start_later(self, container: Container, *, retry: bool = False) -> None:
        """Start a container in the background, its `start` in the journal from now on; a failure is in its record."""
        operation = self.store.begin(container.id, "start")

        async def start() -> None:
            async with container.lock:
                with self._journaled(operation, []):
                    try:
                        with self.counts.operation("start"):
                            await self.supervisor.start(container, retry=retry)
                    except (RuntimeFault, OSError) as err:
                        log.warning("container %s could not be started again: %s", container.record.name, err)
            if container.state == "exited":
                self._has_ended(container)

        self.in_background(start())

    def retry_later(self, container: Container) -> None:
        """Start a container again when its restart policy says, unless something else happens to it before."""
        planned = container.record.lifecycle.retry_at
        if not container.waits_to_retry or self._going_down:
            return

        async def retry() -> None:
            await asyncio.sleep(restarts.left_s(container.record.lifecycle, time.time()))
            async with container.lock:
                if not container.waits_to_retry or container.record.lifecycle.retry_at != planned:
                    return
                try:
                    with self.operation(container, "start"):
                        await self.supervisor.start(container, retry=True)
                except (RuntimeFault, OSError) as err:
                    log.warning("container %s could not be restarted: %s", container.record.name, err)
            self.retry_later(container)

        self.in_background(retry())

    async def execute(self, reference: str, spec: ExecSpec) -> tuple[Container, int]:
        """Start a command in a running container; its streams are on `container.streams` under the number returned.

        Raises:
            Conflict: it does not run, or is paused.
            CommandNotFound, CommandNotExecutable, GuestFailed: the command was not started.
        """
        container = self.lives.find(reference)
        command = " ".join(spec.args)
        session = await sessions.begin(container, spec)
        self.events.tell(
            of_container(container.record, f"exec_create: {command[:256]}", execID=session),
            of_container(container.record, f"exec_start: {command[:256]}", execID=session),
        )
        return container, session

    def command_ended(self, container: Container, session: int, exit_code: int) -> None:
        """A command that `execute` started has ended: say so."""
        self.events.tell(of_container(container.record, "exec_die", execID=session, exitCode=exit_code))

    def limit(self, container: Container) -> None:
        """Give a VM that runs the limits of its record."""
        record = container.record
        if record.vm is not None:
            memory = record.vm.ram_bytes + startup.VMM_RESERVE_BYTES
            self.host_cgroups.limit(record.cgroups, memory_bytes=memory, cpus=record.limits.cpu_quota)

    async def erase(self, container: Container, *, volumes: bool = False) -> None:
        """Remove all that a container without a VM has, the store last; the journal knows of it.

        Its anonymous volumes go where it is wanted, with one that was to go by itself, and with one that never ran.

        Raises:
            HostUnable: its files cannot be removed; it is `dead` then, and may be removed again.
        """
        if container.state in {"created", "exited", "dead"}:
            spec = container.spec
            if volumes:  # as if that had been wanted at its creation: so it is known also after a crash
                spec = spec.model_copy(update={"auto_remove": True, "restart": RestartSpec()})
            self.lives.change(container, "removing", spec=spec, retry_at=None)
        self.ports.release(container.id)
        async with self._freed_later(container.data_directory / "writable.ext4"):
            for directory in (container.data_directory, container.directory):
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
                if directory.exists():
                    text = f"{directory} cannot be removed: see what holds it, then hyper rm {container.record.name}"
                    self.lives.change(container, "dead", error=text)
                    raise HostUnable(text)
        if container.spec.auto_remove or not container.record.lifecycle.epoch:
            await self.volumes.forget(container)
        self.store.delete(container.id, of_container(container.record, "destroy"))
        self.events.wake()
        self.lives.forget(container)
        # An image that was untagged while it was in use goes with the last container that used it.
        await self.images.collect(self.images_in_use)

    @contextlib.asynccontextmanager
    async def _freed_later(self, file: Path) -> AsyncIterator[None]:
        """Hold a file open while it is unlinked: freeing its blocks takes longest, and nobody has to wait for that.

        But on a disk that is nearly full, where the next one may need them.
        """
        try:
            held = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        space = os.fstatvfs(held)
        try:
            yield
        finally:
            closed = asyncio.to_thread(os.close, held)
            if space.f_bavail < space.f_blocks * _NEARLY_FULL:
                await closed
            else:
                self.in_background(closed)

    def images_in_use(self) -> set[str]:
        """Digests of the images that containers were made from, or that a rollback of one may need."""
        return {one.record.image_digest for one in self.lives.all()} | self.book.pinned_digests()

    def _has_ended(self, container: Container) -> None:
        """What follows an end: the next start by its restart policy, or the removal that was asked for at its creation.

        If it is being started again meanwhile, that refuses the removal.
        """
        self.retry_later(container)
        if container.spec.auto_remove and not self.rollouts.holds(container.id):
            self.in_background(self.remove_when_left(container))

    async def remove_when_left(self, container: Container) -> None:
        """Remove a container that has ended, as was wanted at its creation.

        One that a client is to remove waits for that, and goes where none is there any more: killed, or detached.
        """
        awaited = not container.spec.removes_itself
        while awaited:
            await asyncio.sleep(_CLIENT_S)
            awaited = self.rotation.attended(container)
        with contextlib.suppress(RuntimeFault):
            await self.remove(container.id)

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let it go on by itself, until it has ended or the host goes down."""
        self._background.add(task := asyncio.create_task(work))
        task.add_done_callback(self._background.discard)
        return task

    def rollout_ended(self, container_id: str) -> None:
        """A change of image has let go of its old container, which may have ended meanwhile."""
        for one in self.lives.all():
            if one.id == container_id and one.over and one.state == "exited":
                self._has_ended(one)

    async def stop_held(self, container: Container) -> None:
        """Stop a container whose lock the caller holds; that it is to run stays wanted."""
        with self.operation(container, "stop", "stop"):
            await self._stop_to_start(container, None)

    async def _stop_to_start(self, container: Container, timeout_s: float | None, number: int | None = None) -> None:
        if container.live:
            await self._begin_to_stop(container)
            await self.supervisor.stop(container, timeout_s, number)

    async def _begin_to_stop(self, container: Container, **changes: Any) -> None:
        """Set it to `stopping`. One that is paused goes on for that: it could not obey."""
        if container.state == "paused":
            with contextlib.suppress(GuestFailed):
                await self.supervisor.resume(container)
        self.lives.change(container, "stopping", **changes)

    @contextlib.contextmanager
    def operation(self, container: Container, kind: str, action: str | None = None) -> Iterator[None]:
        """Journal and count an operation. It is struck out however it ends, unless the daemon does.

        One that goes well is told as the event `action`, if there is one.
        """
        told: list[Event] = []
        with self._journaled(self.store.begin(container.id, kind), told):
            with self.counts.operation(kind):
                yield
            if action is not None:
                told.append(of_container(container.record, action))

    @contextlib.contextmanager
    def _journaled(self, operation: Operation, told: list[Event]) -> Iterator[None]:
        """Strike an operation out at its end, with the events that this is.

        Only the daemon's own end cancels one: then the next daemon finds it in the journal, as after a kill -9.
        """
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._strike_out(operation, told)
            raise
        self._strike_out(operation, told)

    def _strike_out(self, operation: Operation, told: list[Event]) -> None:
        self.store.end(operation, *told)
        self.events.wake()
