"""The life of a container: its states, which may follow which, and the one place that changes them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime import events
from runtime import record as records
from runtime.errors import Conflict, DiskFull, NotFound, RuntimeFault
from runtime.reserve import is_full

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from runtime.events import Events
    from runtime.record import Record, State
    from runtime.spec import Spec
    from runtime.store import Store
    from runtime.vm.agent import Agent
    from runtime.vm.process import Process
    from runtime.vm.streams import Streams

log = logging.getLogger(__name__)

FOLLOWING: Mapping[State, frozenset[State]] = {
    "created": frozenset({"starting", "removing"}),
    "starting": frozenset({"running", "exited"}),
    "running": frozenset({"paused", "stopping", "exited"}),
    "paused": frozenset({"running", "stopping", "exited"}),
    "stopping": frozenset({"exited"}),
    "exited": frozenset({"starting", "removing"}),
    "dead": frozenset({"removing"}),
    "removing": frozenset({"dead"}),
}
# What is seen and not begun; to every other state leads an operation, which the journal has first.
_OBSERVED: frozenset[State] = frozenset({"exited", "dead"})


CHECKS_KEPT = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One health check that was made. Times are seconds since 1970; `output` is cut."""

    began: float
    ended: float
    exit_code: int
    output: str


@dataclass(eq=False, slots=True)
class Container:
    """A container while the daemon runs. `record` and `spec` are replaced, never changed, and only by `Lives.change`.

    `lock` is held by the one operation under way. `changed` is set, and replaced, at every change of the record.
    """

    id: str
    slot: int
    spec: Spec
    record: Record
    directory: Path
    data_directory: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    process: Process | None = None
    agent: Agent | None = None
    streams: Streams | None = None
    watcher: asyncio.Task[None] | None = None
    checker: asyncio.Task[None] | None = None
    checks: deque[Check] = field(default_factory=lambda: deque(maxlen=CHECKS_KEPT))
    failing_streak: int = 0
    failed_checks: int = 0  # that counted, since this daemon came up
    goes_with_host: bool = False  # it is stopped because the host goes down, and wanted as before
    killed_by_host: int | None = None  # processes of the VM that runs, for want of memory; None: nobody counts
    awaited: bool = False  # a change of image waits for it to become healthy
    halted_at: float | None = None  # QEMU has stopped its VM since then (seconds since 1970), as the disk was full
    unwritten: bool = False  # the state directory was full: its record there is an old one

    def count_host_kills(self, kills: int | None) -> None:
        """Take what its groups say, as long as they are there; None: nothing.

        An end that could not be written down is looked at again, when the groups are gone.
        """
        if kills is not None:
            self.killed_by_host = max(self.killed_by_host or 0, kills)

    @property
    def log_path(self) -> Path:
        """What the container wrote, over all its starts."""
        return self.data_directory / "container.log"

    @property
    def state(self) -> State:
        """Its state now."""
        return self.record.lifecycle.state

    @property
    def live(self) -> bool:
        """Whether it has a VM, or is getting one."""
        return self.state in records.LIVE_STATES

    @property
    def waits_to_retry(self) -> bool:
        """Whether its restart policy is about to start it again."""
        return self.state == "exited" and self.record.lifecycle.retry_at is not None

    def demand_going(self) -> None:
        """Refuse what its guest would have to answer while QEMU does not let it.

        Raises:
            DiskFull: the host's disk is full.
        """
        if self.halted_at is not None and self.state == "running":
            raise DiskFull(
                f"the container {self.record.name} stands still, as the host's disk is full: free some below data_dir"
                " (hyper rm, hyper system prune), and it goes on by itself",
                field="container",
            )

    @property
    def over(self) -> bool:
        """Whether it neither runs nor will by itself: what `wait` waits for."""
        return not self.live and not self.waits_to_retry


@dataclass(frozen=True, slots=True)
class Change:
    """What is to change of one container: members of its record or lifecycle, and its spec if one is given."""

    container: Container
    members: Mapping[str, object]
    spec: Spec | None = None


class Lives:
    """All containers, and the only way to change one."""

    def __init__(self, store: Store, events: Events) -> None:
        self._store = store
        self._events = events
        self._containers: dict[str, Container] = {}

    def add(self, container: Container) -> None:
        """Take in a container; its record is written to the state directory."""
        self._containers[container.id] = container
        container.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        records.write(container.directory, container.record)

    def forget(self, container: Container) -> None:
        """Let go of a container that has been removed, and wake whoever waits for it."""
        self._containers.pop(container.id, None)
        container.changed.set()

    def all(self) -> list[Container]:
        """All containers, in the order of their creation."""
        return list(self._containers.values())

    def find(self, reference: str) -> Container:
        """The container with this name, id, or unambiguous beginning of an id.

        Raises:
            NotFound: there is none.
            Conflict: several ids begin like that.
        """
        if reference in self._containers:
            return self._containers[reference]
        by_name = [one for one in self._containers.values() if one.record.name == reference]
        by_id = [one for id_, one in self._containers.items() if reference and id_.startswith(reference)]
        found = by_name or by_id
        if not found:
            raise NotFound(f"there is no container {reference!r}: 'hyper ps -a' lists them all", field="container")
        if len(found) > 1:
            raise Conflict(f"{reference!r} is the beginning of {len(found)} ids: give more of it", field="container")
        return found[0]

    def change(
        self,
        container: Container,
        state: State | None = None,
        *,
        spec: Spec | None = None,
        and_also: Callable[[], None] | None = None,
        **changes: object,
    ) -> None:
        """Move a container to a state, and change its record, and its spec if one is given.

        A container that is in the state already stays there. Keywords are members of `record.Lifecycle` or of
        `record.Record`. The store is written first, with the events that the change is, then the state directory. One
        that is full keeps the old record until `write_again`; the store wins at start. What `and_also` writes to the
        store is in the same transaction.

        Raises:
            Conflict: the state does not follow from the present one.
            NameInUse: it was to be renamed, and another container has the name.
            RuntimeFault: a defect: the journal knows of no operation that leads to the state.
            DiskFull, OSError: it could not be written; a state directory that is full is no error.
        """
        record = self._changed(container, state, changes)
        with self._store.transaction():
            if and_also is not None:
                and_also()
            self._store.save(record, *events.of_change(container.record, record), spec=spec)
        self._apply(container, record, spec)
        self._events.wake()

    def change_together(self, *changes: Change, and_also: Callable[[], None] = lambda: None) -> None:
        """Change several containers, none of them its state, and let `and_also` write to the store: all or nothing.

        They are written in the order given: a name is free for the next one when the one before has lost it.

        Raises:
            NameInUse, DiskFull, OSError: as `change`; nothing has changed.
        """
        pairs = [(one, self._changed(one.container, None, one.members)) for one in changes]
        with self._store.transaction():
            for one, record in pairs:
                self._store.save(record, spec=one.spec)
            and_also()
        for one, record in pairs:
            self._apply(one.container, record, one.spec)
        self._events.wake()

    def _changed(self, container: Container, state: State | None, changes: Mapping[str, object]) -> Record:
        """The record with the changes, checked."""
        old = container.record
        if state not in (None, old.lifecycle.state):
            if state not in FOLLOWING[old.lifecycle.state]:
                raise Conflict(f"the container {old.name} is {old.lifecycle.state}: it cannot become {state}")
            if state not in _OBSERVED and not self._store.is_under_way(container.id):
                raise RuntimeFault(f"a defect: {old.name} was to become {state} before the journal knew of it")
        names = {one.name for one in dataclasses.fields(old.lifecycle)}
        lifecycle_changes = {name: value for name, value in changes.items() if name in names}
        if state is not None:
            lifecycle_changes["state"] = state
        record_changes = {name: value for name, value in changes.items() if name not in names}
        lifecycle = dataclasses.replace(old.lifecycle, **lifecycle_changes)  # type: ignore[arg-type]  # checked by name
        return dataclasses.replace(old, lifecycle=lifecycle, **record_changes)  # type: ignore[arg-type]  # same

    def _apply(self, container: Container, record: Record, spec: Spec | None) -> None:
        """The store has it: so have we, and the state directory."""
        container.record = record
        container.spec = spec or container.spec
        self._write(container)
        event, container.changed = container.changed, asyncio.Event()
        event.set()

    def write_again(self) -> None:
        """Write the records that the state directory had no room for."""
        for container in self._containers.values():
            if container.unwritten:
                self._write(container)

    def _write(self, container: Container) -> None:
        """Write the record to the state directory. What is removed or stopped there must not fail for want of room."""
        if not container.directory.is_dir():
            return
        try:
            records.write(container.directory, container.record)
        except OSError as err:
            if not is_full(err):
                raise
            if not container.unwritten:
                log.warning(
                    "the record of %s has no room in the state directory, and is written later", container.record.name
                )
            container.unwritten = True
        else:
            container.unwritten = False
