"""hyperd's events as signals: ends, OOM kills and failing health checks, also where no Prometheus tells of them.

One source alone is believed only if it lasts: what is told is looked at again after `sustain_s`. Events that pass by
while hyperd is away are not made up for, but what is unhealthy when it is back is seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from alerts.errors import HyperdAway, HyperdRefused
from alerts.remediation import policy, signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from alerts.remediation.hyperd import Event, Hyperd
    from alerts.remediation.pressure import Pressure
    from alerts.remediation.settings import Settings

log = logging.getLogger("hyper.remediation")

ACTIONS: Final = ("die", "oom", "health_status")
MAX_CONTAINERS: Final = 10_000
_ENDED_BY_REQUEST: Final = frozenset({"0", "130", "143"})
"""Exit codes with which a program ends that was asked to: a person's restarts are no loop."""


class Follower:
    """Follows the stream of events; `submit` takes the signals."""

    def __init__(
        self,
        hyperd: Hyperd,
        submit: Callable[[signals.Signal], None],
        pressure: Pressure,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hyperd = hyperd
        self._submit = submit
        self._pressure = pressure
        self._settings = settings
        self._clock = clock
        self._deaths: OrderedDict[str, deque[float]] = OrderedDict()
        self._held: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow until cancelled, through every absence of hyperd."""
        failures = 0
        try:
            while True:
                try:
                    await self._scan()
                    async for event in self._hyperd.follow(ACTIONS):
                        failures = 0
                        self.take(event)
                except (HyperdAway, HyperdRefused) as err:
                    if not failures:
                        log.warning("no events from hyperd for now: %s", err)
                failures += 1
                pause_s = self._settings.backoff_s * 2.0 ** min(failures, 16)
                await asyncio.sleep(min(self._settings.backoff_max_s, pause_s))
        finally:
            for task in self._held.values():
                task.cancel()

    def take(self, event: Event) -> None:
        """One event."""
        if event.action == "oom":
            self._submit(_signal(policy.OUT_OF_MEMORY, event))
        elif event.action == "health_status: unhealthy":
            self._hold(_signal(policy.UNHEALTHY, event))
        elif event.action == "die":
            self._hold(_signal(policy.DOWN, event))
            if event.attributes.get("exitCode") not in _ENDED_BY_REQUEST and self._is_loop(event):
                self._submit(_signal(policy.FLAPPING, event))

    async def _scan(self) -> None:
        for container in await self._hyperd.containers():
            if container.health == "unhealthy" and container.state == "running":
                incident = f"epoch {container.epoch}"
                self._hold(
                    signals.Signal(
                        "hyperd", policy.UNHEALTHY, f"hyperd/{policy.UNHEALTHY}/{container.id}/{incident}",
                        self._clock(), labels={"id": container.id, "name": container.name}, says="unhealthy when seen",
                    )
                )  # fmt: skip

    def _is_loop(self, event: Event) -> bool:
        times = self._deaths.setdefault(event.id, deque(maxlen=self._settings.flap_count))
        self._deaths.move_to_end(event.id)
        if len(self._deaths) > MAX_CONTAINERS:
            self._deaths.popitem(last=False)
        times.append(event.time_s)
        full = len(times) == self._settings.flap_count
        return full and times[-1] - times[0] <= self._settings.flap_window_s

    def _hold(self, signal: signals.Signal) -> None:
        key = (signal.name, signal.labels["id"])
        if key not in self._held and len(self._held) < MAX_CONTAINERS:
            task = asyncio.get_running_loop().create_task(self._look_again(signal))
            self._held[key] = task
            task.add_done_callback(lambda _: self._held.pop(key, None))

    async def _look_again(self, signal: signals.Signal) -> None:
        if signal.name == policy.UNHEALTHY:
            await self._pressure.look()  # by the time that it counts the host may have come to rest
        await asyncio.sleep(self._settings.sustain_s)
        try:
            seen = await self._hyperd.container(signal.labels["id"])
        except (HyperdAway, HyperdRefused) as err:
            log.info("%s is not followed up: %s", signal.to_text(), err)
            return
        lasts = seen.health == "unhealthy" if signal.name == policy.UNHEALTHY else seen.state in policy.NOT_RUNNING
        if lasts and seen.desired == "running":
            self._submit(signal)


def _signal(name: str, event: Event) -> signals.Signal:
    return signals.of_event(name, event.action, event.id, event.time_s, event.attributes)
