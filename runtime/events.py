"""What happens to containers and images, in Docker's words, kept in the database within bounds.

An event about a change of state is written in the same transaction as the change: either both are there after a crash
or neither is. Readers take them from the database, so that a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import InvalidInput, RuntimeFault
from runtime.images import reference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from runtime.record import Record
    from runtime.store import Store

log = logging.getLogger(__name__)

Kind = Literal["container", "image"]

MAX_ATTRIBUTES_BYTES = 8192
_MAX_VALUE_CHARACTERS = 1024
_BATCH = 200
FILTERS = ("container", "event", "image", "label", "type")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `id` is a container's id or an image's reference; `seq` is 0 until it is kept."""

    type: Kind
    action: str
    id: str
    attributes: Mapping[str, str]
    time_ns: int
    seq: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As `docs/reference/api.md` has it."""
        return {
            "seq": self.seq,
            "time_ns": self.time_ns,
            "type": self.type,
            "action": self.action,
            "id": self.id,
            "attributes": dict(self.attributes),
        }


def of_container(record: Record, action: str, **more: object) -> Event:
    """An event about a container: it has name, image and labels, as far as they are not too long."""
    own = {name: str(value)[:_MAX_VALUE_CHARACTERS] for name, value in more.items() if value is not None}
    own |= {"name": record.name, "image": record.image}
    room = MAX_ATTRIBUTES_BYTES
    labels = {}
    for name, value in record.labels.items():
        room -= len(name) + len(value)
        if room < 0:
            break
        labels[name] = value
    return Event("container", action, record.id, {**labels, **own}, time.time_ns())


def of_image(action: str, reference: str, digest: str | None = None) -> Event:
    """An event about an image."""
    attributes = {"name": reference} | ({"digest": digest} if digest else {})
    return Event("image", action, reference, attributes, time.time_ns())


def of_change(old: Record, new: Record) -> Iterator[Event]:
    """The events that a change of a container's record is."""
    before, after = old.lifecycle, new.lifecycle
    if before.state != after.state:
        if after.state == "running":
            yield of_container(new, "unpause" if before.state == "paused" else "start")
        elif after.state == "paused":
            yield of_container(new, "pause")
        elif after.state == "exited":
            if after.oom_killed:
                yield of_container(new, "oom")
            yield of_container(new, "die", exitCode=after.exit_code)
    if before.health != after.health and after.health in {"healthy", "unhealthy"}:
        yield of_container(new, f"health_status: {after.health}")
    if old.name != new.name:
        yield of_container(new, "rename", oldName=old.name)


class Events:
    """Keeps events, and tells those who wait that there are new ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Event()

    def tell(self, *events: Event) -> None:
        """Keep events that belong to no change of a record. A full disk loses them; what they tell of goes on."""
        try:
            self._store.keep(events)
        except RuntimeFault as err:
            log.warning("events were lost (%s): %s", ", ".join(event.action for event in events), err)
        self.wake()

    def wake(self) -> None:
        """Somebody else has kept events: wake those who wait for them."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def read(self, wanted: Wanted, since_ns: int | None, until_ns: int | None) -> AsyncIterator[Event]:
        """Events in their order: from `since_ns` (None: only new ones) to `until_ns` (None: without an end)."""
        seq = self._store.last_event() if since_ns is None else 0
        while True:
            changed = self._changed
            found = self._store.events(seq, since_ns or 0, _BATCH)
            for event in found:
                seq = event.seq
                if until_ns is not None and event.time_ns > until_ns:
                    return
                if wanted.has(event):
                    yield event
            if len(found) == _BATCH:
                continue
            left_s = None if until_ns is None else (until_ns - time.time_ns()) / 1e9
            if left_s is not None and left_s <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await changed.wait()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events to give: any of the values of each member that has some; all of the labels.

    An image is one of the values with its tag or, as in Docker, without.
    """

    container: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    type: tuple[str, ...] = ()

    def has(self, event: Event) -> bool:
        """Whether the event is one of them."""
        attributes = event.attributes
        if self.type and event.type not in self.type:
            return False
        if self.event and not {event.action, event.action.partition(":")[0]} & set(self.event):
            return False
        if self.container:
            if event.type != "container":
                return False
            if not any(one == attributes["name"] or event.id.startswith(one) for one in self.container):
                return False
        image = attributes["image"] if event.type == "container" else event.id
        if self.image and not {image, _without_tag(image)} & set(self.image):
            return False
        return all(_has_label(attributes, label) for label in self.label)


def _without_tag(image: str) -> str:
    try:
        return reference.parse(image).familiar_name
    except InvalidInput:
        return image


def _has_label(attributes: Mapping[str, str], label: str) -> bool:
    name, equals, value = label.partition("=")
    return name in attributes and (not equals or attributes[name] == value)
