"""Health checks: a command that is run in the container every now and then, by Docker's rules.

A check that fails `retries` times in a row makes the container unhealthy, one that succeeds makes it healthy. Failures
in the start period do not count until the first success. A check that takes too long has failed; the guest cannot end
a single command, so the next one is made only when that has ended, and until then each time counts as a failure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from runtime import labels, sessions
from runtime.errors import Conflict, RuntimeFault
from runtime.healthcounts import HealthCounts, Reason
from runtime.life import Check
from runtime.record import HEALTHY
from runtime.spec import ExecSpec
from runtime.vm.streams import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.images.image import ImageConfig
    from runtime.life import Container, Lives
    from runtime.record import Health
    from runtime.spec import HealthSpec

log = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 4096
AWAITED_INTERVAL_S = 0.5
_DEFAULT_INTERVAL_S = 30.0
_DEFAULT_RETRIES = 3
_EXIT_NOT_MADE = -1
_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_WHY: dict[int, Reason | None] = {0: None, _EXIT_NOT_MADE: "error"}
"""Why a check failed, by exit code: by any other it said so itself."""


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """A check as it is made."""

    args: tuple[str, ...]
    interval_s: float
    timeout_s: float
    start_period_s: float
    retries: int


def effective(
    spec: HealthSpec | None, config: ImageConfig, of_labels: Mapping[str, str] = _NO_LABELS
) -> Healthcheck | None:
    """The container's check: what its spec says, then its labels, then its image, then Docker's defaults.

    None if it has none.
    """
    image = _of_image(config.healthcheck or {})
    given = spec.model_dump(exclude_none=True) if spec else {}
    merged = {**image, **labels.check(of_labels), **given}
    kind, *words = merged.get("test") or ("NONE",)
    if kind == "CMD-SHELL" and len(words) == 1:
        args = ("/bin/sh", "-c", words[0])
    elif kind == "CMD" and words:
        args = tuple(words)
    else:
        return None
    return Healthcheck(
        args,
        float(merged.get("interval_s") or _DEFAULT_INTERVAL_S),
        float(merged.get("timeout_s") or _DEFAULT_INTERVAL_S),
        float(merged.get("start_period_s") or 0.0),
        int(merged.get("retries") or _DEFAULT_RETRIES),
    )


def _of_image(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An image's `Healthcheck`, whose times are nanoseconds; what is not of the right type is not there."""
    found: dict[str, Any] = {}
    test = raw.get("Test")
    if isinstance(test, list | tuple) and all(isinstance(word, str) for word in test):
        found["test"] = tuple(test)
    for name, member in (("Interval", "interval_s"), ("Timeout", "timeout_s"), ("StartPeriod", "start_period_s")):
        value = raw.get(name)
        if isinstance(value, int) and value > 0:
            found[member] = value / 1e9
    retries = raw.get("Retries")
    if isinstance(retries, int) and retries > 0:
        found["retries"] = retries
    return found


class Checker:
    """Checks one container for as long as its VM runs."""

    def __init__(self, container: Container, lives: Lives, check: Healthcheck) -> None:
        self._container = container
        self._lives = lives
        self._check = check
        self._lingering: asyncio.Task[tuple[int, str]] | None = None
        self._counts = HealthCounts(container.directory, container.record.lifecycle.epoch)

    async def run(self) -> None:
        """Check until cancelled.

        A container that somebody waits for is checked more often until it is healthy; only the checks that are due by
        its interval count against it.
        """
        container = self._container
        loop = asyncio.get_running_loop()
        due = loop.time() + self._check.interval_s
        try:
            while True:
                eager = container.awaited and container.record.lifecycle.health == "starting"
                left_s = max(0.0, due - loop.time())
                await asyncio.sleep(min(left_s, AWAITED_INTERVAL_S) if eager else left_s)
                counts = not eager or loop.time() >= due
                if self._goes():
                    began = time.time()
                    clock = time.monotonic()
                    exit_code, output, reason = await self._once()
                    if self._goes() and (counts or exit_code == 0):
                        self._counts.add(time.monotonic() - clock, reason)
                        self._take(Check(began, time.time(), exit_code, output))
                if counts:
                    due = loop.time() + self._check.interval_s
        finally:
            if self._lingering is not None:
                self._lingering.cancel()

    def _goes(self) -> bool:
        return self._container.state == "running" and self._container.halted_at is None

    async def _once(self) -> tuple[int, str, Reason | None]:
        """Exit code, output, and why it failed if it did."""
        if self._lingering is not None:
            if not self._lingering.done():
                return _EXIT_NOT_MADE, "the check before this one still runs", "timeout"
            if not self._lingering.cancelled():
                self._lingering.exception()  # a failure of it was counted when its time was over
            self._lingering = None
        task = asyncio.create_task(self._execute())
        done, _ = await asyncio.wait({task}, timeout=self._check.timeout_s)
        if not done:
            self._lingering = task
            return _EXIT_NOT_MADE, f"the check did not end within {self._check.timeout_s:g} s", "timeout"
        try:
            exit_code, output = task.result()
        except Conflict:
            return _EXIT_NOT_MADE, "the container was not running", "error"
        except RuntimeFault as err:
            return _EXIT_NOT_MADE, err.message, "error"
        return exit_code, output, _WHY.get(exit_code, "exit")

    async def _execute(self) -> tuple[int, str]:
        streams = self._container.streams
        session = await sessions.begin(self._container, ExecSpec(args=self._check.args))
        written = bytearray()
        exit_code = _EXIT_NOT_MADE
        if streams is not None:
            async for event in streams.output(session):
                if isinstance(event, Exit):
                    exit_code = event.exit_code
                elif len(written) < MAX_OUTPUT_BYTES:
                    written += event.data[: MAX_OUTPUT_BYTES - len(written)]
        return exit_code, written.decode(errors="replace")

    def _take(self, made: Check) -> None:
        container, lifecycle = self._container, self._container.record.lifecycle
        container.checks.append(made)
        health: Health = lifecycle.health
        phases = container.record.start_phases
        if made.exit_code == 0:
            container.failing_streak = 0
            health = "healthy"
            if HEALTHY not in phases and lifecycle.started_at is not None:
                phases = {**phases, HEALTHY: max(0.0, made.ended - lifecycle.started_at)}
        else:
            starting = health == "starting" and lifecycle.started_at is not None
            if starting and made.began - (lifecycle.started_at or 0.0) < self._check.start_period_s:
                return
            container.failing_streak += 1
            container.failed_checks += 1
            if container.failing_streak >= self._check.retries:
                health = "unhealthy"
        if health != lifecycle.health:
            log.info("container %s is %s", container.record.name, health)
            try:
                self._lives.change(container, health=health, start_phases=phases)
            except (RuntimeFault, OSError) as err:
                log.warning("the health of %s cannot be written down: %s", container.record.name, err)
