"""What can be done to containers: create, start, stop, kill, restart, redeploy, remove, and run a command in one.

Each operation holds the container's lock, so that a wedged guest delays nobody but itself, and is written into the
journal before it is begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import shutil
import signal
import time
from typing import TYPE_CHECKING

from runtime import names, startup
from runtime.errors import Conflict, HostUnable, InvalidInput, RuntimeFault
from runtime.life import Container, Lives
from runtime.record import Lifecycle, Limits, Port, Record
from runtime.signals import signal_number
from runtime.supervisor import SIGNAL_TIMEOUT_S, Supervisor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

    from runtime.cgroups import HostCgroups
    from runtime.config import Config
    from runtime.counts import Counts
    from runtime.images.image import Image
    from runtime.images.store import ImageStore
    from runtime.network.ports import PortReservations
    from runtime.spec import ExecSpec, Spec
    from runtime.startup import Starter
    from runtime.store import Store


log = logging.getLogger(__name__)


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
    ) -> None:
        self.config = config
        self.store = store
        self.images = images
        self.starter = starter
        self.host_cgroups = host_cgroups
        self.ports = ports
        self.counts = counts
        self.lives = Lives(store)
        self.supervisor = Supervisor(
            config, self.lives, images, starter, host_cgroups, counts, ports, on_end=self._has_ended
        )
        self._background: set[asyncio.Task[None]] = set()

    async def create(self, spec: Spec) -> Container:
        """Make a container that can be started.

        Raises:
            ImageUnknown, NameInUse, PortInUse, InvalidInput, HostUnable, DiskFull: nothing is left of it then.
        """
        with self.counts.operation("create"):
            image = await self.images.resolve(spec.image)
            if not startup.arguments(spec, image):
                raise InvalidInput(
                    f"no command: the image {spec.image} has neither Entrypoint nor Cmd, so name one", field="args"
                )
            signal_number(spec.stop_signal or image.config.stop_signal or "TERM", "stop_signal")
            record = self._record(spec, image)
            self._check_ports("check", spec)
            slot, operation = self.store.insert(spec, record)
            container = self.container(slot, spec, record)
            try:
                self._check_slot(slot)
                container.data_directory.mkdir(mode=0o700, parents=True)
                self.lives.add(container)
            except BaseException:
                await self.erase(container)
                raise
            self.store.end(operation)
            return container

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
            PortInUse, CommandNotFound, CommandNotExecutable, GuestFailed, HostUnable, DiskFull: it is `exited` then.
        """
        container = self.lives.find(reference)
        async with container.lock:
            if not container.live:
                with self._operation(container, "start"):
                    await self.supervisor.start(container)
        return container

    async def stop(self, reference: str, timeout_s: float | None = None) -> Container:
        """Send the stop signal, wait, kill; one that does not run is left alone."""
        container = self.lives.find(reference)
        async with container.lock:
            if container.live:
                with self._operation(container, "stop"):
                    self.lives.change(container, "stopping", desired="stopped")
                    await self.supervisor.stop(container, timeout_s)
            elif container.record.lifecycle.desired == "running":
                self.lives.change(container, desired="stopped")
        return container

    async def kill(self, reference: str, signal_name: str) -> None:
        """Send a signal to the container's process. KILL ends the VM if the guest does not obey.

        Raises:
            Conflict: it does not run.
            InvalidInput: no such signal.
        """
        container = self.lives.find(reference)
        number = signal_number(signal_name, "signal")
        if container.state not in {"running", "paused"} or container.agent is None:
            raise Conflict(f"the container {container.record.name} is not running", field="container")
        if number != signal.SIGKILL:
            await container.agent.call("hyper-signal", SIGNAL_TIMEOUT_S, signal=number, all=False)
            return
        async with container.lock:
            if container.live:
                with self._operation(container, "stop"):
                    self.lives.change(container, "stopping", desired="stopped")
                    await self.supervisor.kill(container)

    async def restart(self, reference: str, timeout_s: float | None = None) -> Container:
        """Stop and start it, with the same writable layer."""
        container = self.lives.find(reference)
        async with container.lock:
            with self._operation(container, "restart"):
                await self._stop_to_start(container, timeout_s)
                await self.supervisor.start(container)
        return container

    async def redeploy(self, reference: str, actor: str, reason: str) -> Container:
        """Replace its VM and writable layer by fresh ones of the same image digest; name, address and ports stay.

        What was done, by whom and why is in the audit log, also when it failed.
        """
        container = self.lives.find(reference)
        async with container.lock:
            before: dict[str, object] = {"state": container.state, "exit_code": container.record.lifecycle.exit_code}
            try:
                with self._operation(container, "redeploy"):
                    await self._stop_to_start(container, None)
                    (container.data_directory / "writable.ext4").unlink(missing_ok=True)
                    await self.supervisor.start(container)
            except RuntimeFault as err:
                failure = {"before": before, "error": err.message}
                self.store.audit(actor, "redeploy", container.record, reason, "failed", failure)
                raise
            after = {"before": before, "epoch": container.record.lifecycle.epoch}
            self.store.audit(actor, "redeploy", container.record, reason, "done", after)
        return container

    async def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove it with all it has; with `force` also while it runs.

        Raises:
            Conflict: it runs, and `force` is not given.
        """
        container = self.lives.find(reference)
        if container.live and not force:
            raise Conflict(
                f"the container {container.record.name} is {container.state}: stop it first, or remove it with --force",
                field="container",
            )
        async with container.lock:
            with self._operation(container, "remove"):
                if container.live:
                    self.lives.change(container, "stopping", desired="stopped")
                    await self.supervisor.kill(container)
                await self.erase(container)

    def start_later(self, container: Container) -> None:
        """Start a container in the background, its `start` in the journal from now on; a failure is in its record."""
        operation = self.store.begin(container.id, "start")

        async def start() -> None:
            async with container.lock:
                try:
                    with self.counts.operation("start"):
                        await self.supervisor.start(container)
                except RuntimeFault as err:
                    log.warning("container %s could not be started again: %s", container.record.name, err)
                finally:
                    self.store.end(operation)

        self._in_background(start())

    async def execute(self, reference: str, spec: ExecSpec) -> tuple[Container, int]:
        """Start a command in a running container; its streams are on `container.streams` under the number returned.

        Raises:
            Conflict: it does not run.
            CommandNotFound, CommandNotExecutable, GuestFailed: the command was not started.
        """
        container = self.lives.find(reference)
        if container.state != "running" or container.agent is None or container.streams is None:
            raise Conflict(
                f"the container {container.record.name} is not running: start it first (hyper start)", field="container"
            )
        session = secrets.randbelow(2**31 - 1) + 1
        await container.streams.open(session)
        try:
            await container.agent.call("hyper-exec", session=session, **spec.model_dump(mode="json"))
        except BaseException:
            container.streams.forget(session)
            raise
        return container, session

    async def erase(self, container: Container) -> None:
        """Remove all that a container without a VM has, the store last."""
        if container.state in {"created", "exited"}:
            self.lives.change(container, "removing")
        self.ports.release(container.id)
        await asyncio.to_thread(shutil.rmtree, container.data_directory, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, container.directory, ignore_errors=True)
        self.store.delete(container.id)
        self.lives.forget(container)
        # An image that was untagged while it was in use goes with the last container that used it.
        await self.images.collect({one.record.image_digest for one in self.lives.all()})

    def _has_ended(self, container: Container) -> None:
        """Remove a container that was asked to go with its end; if it is being started again, that refuses it."""
        if not container.spec.auto_remove:
            return

        async def remove() -> None:
            with contextlib.suppress(RuntimeFault):
                await self.remove(container.id)

        self._in_background(remove())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.add(task := asyncio.create_task(work))
        task.add_done_callback(self._background.discard)

    async def _stop_to_start(self, container: Container, timeout_s: float | None) -> None:
        if container.live:
            self.lives.change(container, "stopping")
            await self.supervisor.stop(container, timeout_s)

    @contextlib.contextmanager
    def _operation(self, container: Container, kind: str) -> Iterator[None]:
        """Journal and count an operation. It is struck out however it ends, unless the daemon does."""
        operation = self.store.begin(container.id, kind)
        try:
            with self.counts.operation(kind):
                yield
        finally:
            self.store.end(operation)

    def _record(self, spec: Spec, image: Image) -> Record:
        taken = {one.record.name for one in self.lives.all()}
        return Record(
            id=secrets.token_hex(32),
            name=spec.name or names.choose(taken),
            image=spec.image,
            image_digest=image.digest,
            limits=Limits(
                memory_bytes=spec.memory_bytes or self.config.default_memory_bytes,
                vcpus=math.ceil(spec.cpus or 1),
                cpu_quota=spec.cpus,
                disk_bytes=self.config.default_disk_bytes,
            ),
            lifecycle=Lifecycle("created", "stopped", time.time()),
            tenant=spec.tenant,
            project=spec.project,
            labels=spec.labels,
        )

    def _check_ports(self, holder: str, spec: Spec) -> None:
        """Find out early that a port is taken: a start would fail, and leave a container behind."""
        self.ports.reserve(holder, tuple(Port(**port.model_dump()) for port in spec.ports))
        self.ports.release(holder)

    def _check_slot(self, slot: int) -> None:
        """A slot is an address: the subnet has one for each but itself, the bridge and the broadcast address."""
        prefix = int(self.config.subnet.partition("/")[2])
        if slot >= (1 << (32 - prefix)) - 3:
            raise HostUnable(f"the subnet {self.config.subnet} has no address left: remove containers")
