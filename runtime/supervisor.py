"""The VMs of containers: starting one, watching it, ending it, and what is to be done when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import TYPE_CHECKING

from runtime import health, keeping, restarts
from runtime.errors import GuestFailed, HostUnable, RuntimeFault
from runtime.events import of_container
from runtime.network import flows, nft
from runtime.output import last_words, size_of, write_end
from runtime.record import Port
from runtime.signals import signal_number
from runtime.vm import launch, monitor
from runtime.vm.monitor import Command
from runtime.vm.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.counts import Counts
    from runtime.events import Events
    from runtime.images.image import Image
    from runtime.images.store import ImageStore
    from runtime.life import Container, Lives
    from runtime.network.ports import PortReservations
    from runtime.startup import Running, Starter
    from runtime.vm.monitor import Monitor
    from runtime.vm.process import Process

log = logging.getLogger(__name__)

DEFAULT_STOP_TIMEOUT_S = 10.0
SIGNAL_TIMEOUT_S = 2.0
_MONITOR_TIMEOUT_S = 5.0
_PAUSE_TIMEOUT_S = 30.0  # QEMU first writes out what its disks hold
_GO_ON_RETRY_S = 1.0
# A guest writes its files out before it says that its container has ended: it has time as long as its disks change.
_SILENT_S = 1.5
_ENDING_S = 3.0  # the same for one that has confirmed the kill: its disks may flush what is written
_WRITING_S = 30.0
_EXIT_KILLED = 137
_END_RETRY_S = 1.0
_WITH_HOST = "the host went down while it ran"
_WITHOUT_A_WORD = "the VM ended without a word from its guest"
_KILLED_BY_HOST = "the host killed the VM: it had come to its limit of memory, the guest's RAM and QEMU's own need"


class Supervisor:
    """Starts, watches and ends VMs. Whoever calls holds the container's lock; a VM's end is handled without it.

    `on_end` is called when a container has exited, however that came about.
    """

    def __init__(
        self,
        config: Config,
        lives: Lives,
        images: ImageStore,
        starter: Starter,
        host_cgroups: HostCgroups,
        counts: Counts,
        ports: PortReservations,
        events: Events,
        on_end: Callable[[Container], None],
    ) -> None:
        self._config = config
        self._lives = lives
        self._images = images
        self._starter = starter
        self._host_cgroups = host_cgroups
        self._counts = counts
        self._ports = ports
        self._events = events
        self._on_end = on_end
        self._publishing = asyncio.Lock()
        self._going_on: set[asyncio.Task[None]] = set()

    async def start(self, container: Container, *, retry: bool = False) -> None:
        """Start the VM of a container that has none; the caller holds its lock.

        With `retry` it is the restart policy's start: it counts as one, and if it fails the policy goes on.
        """
        lifecycle = container.record.lifecycle
        again = lifecycle.epoch > 0
        self._lives.change(
            container,
            "starting",
            desired="running",
            epoch=lifecycle.epoch + 1,
            restarts=lifecycle.restarts + again,
            exit_code=None,
            error=None,
            oom_killed=False,
            finished_at=None,
            start_phases={} if again else container.record.start_phases,  # before the first: of a pull
            retries=lifecycle.retries + 1 if retry else 0,
            retry_at=None,
            retry_delay_s=lifecycle.retry_delay_s if retry else 0.0,
            quarantine=None,
            log_start=size_of(container.log_path),
        )
        ports = tuple(Port(**port.model_dump()) for port in container.spec.ports)
        running: Running | None = None
        try:
            ports = self._ports.reserve(container.id, ports)
            image = await self._images.resolve(container.record.image_digest)
            running = await self._starter.start(container, image, ports)
            if ports:  # before it is said to run: with ports that nft refuses it could not be reached
                await self.publish(*((running.network.address, port) for port in ports))
        except BaseException as err:
            if running is not None:
                running.started.agent.close()
                await asyncio.shield(running.started.process.kill())
                await asyncio.shield(self._host_cgroups.remove(running.groups))
            self._ports.release(container.id)
            self.clear(container)
            if isinstance(err, asyncio.CancelledError):
                raise  # the daemon ends: the next one starts it anew
            code = err.exit_code if isinstance(err, RuntimeFault) else RuntimeFault.exit_code
            if running is not None:
                write_end(container.log_path, container.record.lifecycle.log_start, code, str(err))
            now = time.time()
            self._lives.change(
                container,
                "exited",
                finished_at=now,
                exit_code=code,
                error=str(err) or type(err).__name__,
                **(
                    self._ending(container, code, now, ran=False)
                    if retry
                    else {"desired": "running" if again else "stopped"}
                ),
            )
            raise
        container.process = running.started.process
        container.agent = running.started.agent
        path, reason = running.vm.start_path, running.vm.start_path_reason
        self._counts.starts[path] += 1
        if reason:
            # Of the text behind it there may be any number: a guest has a say in it.
            self._counts.fallbacks[reason.partition(":")[0]] += 1
            log.info("container %s took the %s path: %s", container.record.name, path, reason)
        self._lives.change(
            container,
            "running",
            started_at=running.started_at,
            vm=running.vm,
            network=running.network,
            cgroups=running.groups,
            start_phases={**container.record.start_phases, **running.phases},
            health="none" if self._check(container, image) is None else "starting",
        )
        container.failing_streak = 0
        container.checks.clear()
        self.attend(container, image)
        if ports:
            await flows.forget_udp_elsewhere(running.network.address, ports)

    def attend(self, container: Container, image: Image) -> None:
        """Watch a VM that runs, until it ends, and check its container's health."""
        container.streams = Streams(container.directory / "streams.sock")
        check = self._check(container, image)
        if check is not None:
            checker = health.Checker(container, self._lives, check)
            checking = keeping.keep(f"the health checks of {container.record.name}", checker.run)
            container.checker = asyncio.create_task(checking, name=f"check {container.id[:12]}")
        container.watcher = asyncio.create_task(self._watch(container), name=f"watch {container.id[:12]}")

    @staticmethod
    def _check(container: Container, image: Image) -> health.Healthcheck | None:
        return health.effective(container.spec.health, image.config, container.record.labels)

    async def stop(self, container: Container, timeout_s: float | None, number: int | None = None) -> None:
        """Stop signal (the container's, or this one), time to obey, then the end of the VM."""
        if container.halted_at is not None:
            await self._end(container.watcher, container.process)
            return
        default_s = container.spec.stop_timeout_s
        timeout_s = timeout_s if timeout_s is not None else default_s
        timeout_s = DEFAULT_STOP_TIMEOUT_S if timeout_s is None else timeout_s
        if number is None:
            image = await self._images.resolve(container.record.image_digest)
            number = signal_number(container.spec.stop_signal or image.config.stop_signal or "TERM", "stop_signal")
        if container.agent is not None and timeout_s > 0:
            self._events.tell(of_container(container.record, "kill", signal=number))
            until = time.monotonic() + timeout_s
            with contextlib.suppress(GuestFailed):  # as while it writes its files out, since its container has ended
                # Another call may take its time before this one's turn comes.
                most_s = max(SIGNAL_TIMEOUT_S, timeout_s)
                await container.agent.call("hyper-signal", most_s, signal=number, all=False)
            await self._ended_within(container, max(0.0, until - time.monotonic()))
        await self.kill(container)

    async def kill(self, container: Container) -> None:
        """Kill the container's processes, so that the guest ends in order; then the VM, if it has not ended.

        A guest that has written the container's end has nothing to do but to end itself: its disks are synced. One that
        QEMU has stopped cannot obey.

        Without the lock it cuts a stop short, which holds that: the VM that is there now is killed, and no later one.
        """
        watcher, process = container.watcher, container.process
        if watcher is None or watcher.done():
            return
        said_end = last_words(container.log_path, container.record.lifecycle.log_start) is not None
        if said_end or container.halted_at is not None:
            await self._end(watcher, process)
            return
        self._events.tell(of_container(container.record, "kill", signal=int(signal.SIGKILL)))
        if container.agent is not None:
            idle_s = _SILENT_S
            with contextlib.suppress(GuestFailed):
                await container.agent.call("hyper-signal", SIGNAL_TIMEOUT_S, signal=int(signal.SIGKILL), all=True)
                idle_s = _ENDING_S
            await self._while_it_writes(watcher, process, idle_s)
        await self._end(watcher, process)

    @staticmethod
    async def _while_it_writes(watcher: asyncio.Task[None], process: Process | None, idle_s: float) -> None:
        """Wait for a VM's end until nothing was written to its disks for `idle_s`, or for `_WRITING_S` in all."""
        until, before, wrote = time.monotonic() + _WRITING_S, -1, 0
        while not watcher.done() and process is not None and before != wrote and time.monotonic() < until:
            before = process.wrote_at_ns()
            await asyncio.wait({watcher}, timeout=idle_s)
            wrote = process.wrote_at_ns()

    async def _end(self, watcher: asyncio.Task[None] | None, process: Process | None) -> None:
        if watcher is not None and not watcher.done():
            if process is not None:
                process.signal(signal.SIGKILL)
            await asyncio.shield(watcher)

    async def pause(self, container: Container) -> None:
        """Stop the VM's processors.

        Raises:
            GuestFailed: QEMU does not answer. It goes on, in the end also if QEMU takes longer.
        """
        with contextlib.closing(await self._monitor(container)) as qmp:
            try:
                await qmp.run(Command("stop"), timeout_s=_PAUSE_TIMEOUT_S)
            except (GuestFailed, asyncio.CancelledError):
                self._going_on.add(task := asyncio.create_task(self._go_on(container)))
                task.add_done_callback(self._going_on.discard)
                raise

    async def resume(self, container: Container) -> None:
        """Let the VM's processors go on, and set its clock, which stood still with them.

        Raises:
            GuestFailed: QEMU does not answer.
        """
        with contextlib.closing(await self._monitor(container)) as qmp:
            await qmp.run(Command("cont"), timeout_s=_MONITOR_TIMEOUT_S)
        if container.agent is not None:
            try:
                await container.agent.connect(SIGNAL_TIMEOUT_S)
                await container.agent.set_clock(SIGNAL_TIMEOUT_S)
            except GuestFailed as err:
                log.warning("the clock of %s is behind by its pause: %s", container.record.name, err)

    async def _go_on(self, container: Container) -> None:
        """Let a VM go on that was to be paused, and that QEMU may have stopped without an answer, or be about to.

        Whatever comes over a new connection, QEMU does after that. One in quarantine may stand still.
        """
        log.warning(
            "container %s was not paused in time: it is let go on as soon as QEMU answers", container.record.name
        )
        while True:
            async with container.lock:
                if container.state != "running" or container.record.quarantine is not None:
                    return
                with contextlib.suppress(GuestFailed):
                    await self.resume(container)
                    return
            await asyncio.sleep(_GO_ON_RETRY_S)

    async def _monitor(self, container: Container) -> Monitor:
        """QEMU's monitor, for the caller to close."""
        try:
            async with asyncio.timeout(_MONITOR_TIMEOUT_S):
                return await monitor.connect(container.directory)
        except TimeoutError as err:
            raise GuestFailed(f"QEMU's monitor did not answer within {_MONITOR_TIMEOUT_S:g} s") from err

    async def publish(self, *more: tuple[str, Port], without: str = "") -> None:
        """Give the kernel the published ports of all VMs that run, in one transaction.

        Args:
            more: Addresses and ports beside those of the records, which are to have them in a moment.
            without: The id of a container that is to have none any more.
        """
        async with self._publishing:
            published = [
                (network.address, port)
                for container in self._lives.all()
                if container.live and container.id != without and (network := container.record.network)
                for port in network.ports
            ]
            published += more
            await nft.apply(nft.render(self._config.bridge, self._config.subnet, published))

    def clear(self, container: Container) -> None:
        """Close what belonged to a VM that has ended, and remove its sockets."""
        if container.agent is not None:
            container.agent.close()
        if container.streams is not None:
            container.streams.close()
        if container.checker is not None:
            container.checker.cancel()
        container.agent = container.streams = container.process = container.checker = container.halted_at = None
        for name in launch.SOCKETS:
            (container.directory / name).unlink(missing_ok=True)

    async def after_end(self, container: Container, *, with_host: bool = False) -> None:
        """A VM has ended: find its exit code, give back what it had, and say that the container has exited.

        `with_host`: it ended because the host went down.
        """
        log_start = container.record.lifecycle.log_start
        words = last_words(container.log_path, log_start)
        stopping = container.state == "stopping"
        with_host = with_host or container.goes_with_host
        error = None
        container.count_host_kills(self._host_cgroups.oom_kills(container.record.cgroups))
        if words is None:
            error = None if stopping else _WITH_HOST if with_host else _WITHOUT_A_WORD
            if container.killed_by_host:
                error = _KILLED_BY_HOST
            killed = bool(container.killed_by_host)
            words = write_end(container.log_path, log_start, _EXIT_KILLED, error, oom_killed=killed)
        oom_kills = dict(container.record.oom_kills)
        for layer, kills in {**words.oom_kills, "host": container.killed_by_host}.items():
            if kills is not None:
                oom_kills[layer] = oom_kills.get(layer, 0) + kills
        network = container.record.network
        self._ports.release(container.id)
        await self._host_cgroups.remove(container.record.cgroups)
        self.clear(container)
        now = time.time()
        lifecycle = container.record.lifecycle
        follows: dict[str, Any] = {}  # of an end that was asked for
        if with_host or not stopping:
            if lifecycle.stop_epoch == lifecycle.epoch:
                follows = {"desired": "stopped"}
            else:
                follows = self._ending(container, words.exit_code, now, with_host=with_host)
        self._lives.change(
            container,
            "exited",
            finished_at=now,
            exit_code=words.exit_code,
            oom_killed=words.oom_killed,
            error=error,
            vm=None,
            network=None,
            health="none",
            oom_kills=oom_kills,
            **follows,
        )
        container.killed_by_host = None
        if network and network.ports:
            try:
                await self.publish()
                await flows.forget_udp(network.address, network.ports)
            except HostUnable as err:
                log.warning("the ports of %s are still published: %s", container.record.name, err)

    def _ending(
        self, container: Container, exit_code: int, now: float, *, with_host: bool = False, ran: bool = True
    ) -> dict[str, Any]:
        """What follows from an end that nobody asked for, as changes of the record; not `ran`: it did not start."""
        lifecycle = container.record.lifecycle
        if container.record.quarantine is not None:
            return restarts.Ending("stopped", None, 0.0)._asdict()
        restart = container.spec.restart
        return restarts.ending(restart, lifecycle, exit_code, now, with_host=with_host, ran=ran)._asdict()

    async def _watch(self, container: Container) -> None:
        if container.process is not None:
            code = await container.process.ended()
            if code is not None and code < 0 and code != -signal.SIGKILL:
                log.warning("container %s: its QEMU crashed (signal %d)", container.record.name, -code)
        told = ""
        while True:
            try:
                await self.after_end(container)
            except Exception as err:  # noqa: BLE001 -- told
                # A full disk, above all: the end must not be forgotten for it, nor for a defect.
                if (cause := repr(err)) != told:
                    keeping.tell(f"the end of {container.record.name} cannot be written down yet", err)
                told = cause
                await asyncio.sleep(_END_RETRY_S)
            else:
                break
        self._on_end(container)

    async def _ended_within(self, container: Container, timeout_s: float) -> None:
        if container.watcher is not None:
            await asyncio.wait({container.watcher}, timeout=timeout_s)
