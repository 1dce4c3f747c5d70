"""Whether the host keeps a container from the CPU at the moment of a decision: the exporter's last word on it.

The alerts that say so come late, as each has its `for`; a health check is lost to a busy host within seconds. What
pressure can explain is that something is slow: a check that fails, an alert on a container that runs. It does not
explain an end, and what has ended has no vCPU that could wait.

The exporter's verdict, `microvm_starved_by`, needs the guest's word as well. A guest that is starved altogether is
silent, or has slept through it and knows of no want; one that is wedged, for which a restart is right, is silent, too.
They differ by how long their vCPUs wait, which the host alone tells, and of which two samples have to be seen.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from alerts.errors import NoSamples
from alerts.remediation import policy
from alerts.remediation.policy import Judgement
from collector.catalogue import microvm

if TYPE_CHECKING:
    from collections.abc import Callable

    from alerts.remediation.policy import Container, Rule
    from alerts.remediation.samples import Exporter

log = logging.getLogger("hyper.remediation")

EXPLAINED: Final = frozenset({"unhealthy", "alert_rule"})
"""Reasons for an action that may be nothing but slowness."""
FRESH_S: Final = 1.0
"""How long an answer of the exporter serves further decisions: many containers may be sick at once on such a host."""
PATIENCE_COUNT: Final = 20
"""How often it is asked for a second sample: for twice the exporter's interval."""
MAX_CONTAINERS: Final = 10_000
WAITED_RATIO: Final = 0.25
"""Share of the time that vCPUs wait from which on a container is starved, if they also wait for longer than they run.

An idle one, too, waits for as long as it runs, but of that nothing becomes slow that anybody would see.
"""
MIN_INTERVAL_S: Final = 0.5
"""Between two samples of one container; what is closer is the same one."""
MAX_INTERVAL_S: Final = 60.0
"""Between them; over more than that they tell little of this moment."""
_NAMES: Final = tuple(
    f"{metric.name}{{".encode()
    for metric in (
        microvm.STARVED_BY,
        microvm.HOST_VCPU_WAIT_SECONDS_TOTAL,
        microvm.HOST_CPU_SECONDS_TOTAL,
        microvm.SAMPLE_AGE_SECONDS,
    )
)
_LABEL = re.compile(rb'[{,](id|by|part|source)="([0-9a-z]*)"')


@dataclass(frozen=True, slots=True)
class Sample:
    """What the exporter tells of one container; None is what it does not.

    Attributes:
        by: Its verdict on what keeps the container from the CPU.
        waited_s: How long the vCPUs have waited for a CPU of the host, all in all.
        ran_s: How long they have run.
        age_s: How long ago these were read.
    """

    by: str | None = None
    waited_s: float | None = None
    ran_s: float | None = None
    age_s: float | None = None


def parse_samples(lines: bytes) -> dict[str, Sample]:
    """The samples by container; what is no such line is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines.splitlines():
        head, _, text = line.rpartition(b"} ")
        labels = {name.decode(): value.decode() for name, value in _LABEL.findall(head)}
        try:
            value = float(text.split()[0])
        except (ValueError, IndexError):
            continue
        one = found.setdefault(labels.get("id", ""), {})
        if line.startswith(_NAMES[0]) and value == 1:
            one["by"] = labels.get("by")
        elif line.startswith(_NAMES[1]):
            one["waited_s"] = value
        elif line.startswith(_NAMES[2]) and labels.get("part") == "vcpu":
            one["ran_s"] = value
        elif line.startswith(_NAMES[3]) and labels.get("source") == "host":
            one["age_s"] = value
    return {container_id: Sample(**one) for container_id, one in found.items() if container_id}


@dataclass(frozen=True, slots=True)
class Waited:
    """The last sample of how long vCPUs have waited and run; `starved` is what it and the one before tell, or None."""

    at: float
    waited_s: float
    ran_s: float
    starved: bool | None = None


class Pressure:
    """What the exporter said last, and when each container was starved by the host; seconds since 1970."""

    def __init__(self, exporter: Exporter, ttl_s: float, rest_s: float, clock: Callable[[], float] = time.time) -> None:
        self._exporter = exporter
        self._ttl_s = ttl_s
        self._rest_s = rest_s
        self._clock = clock
        self._now: frozenset[str] = frozenset()
        self._unknown: frozenset[str] = frozenset()
        self._waited: dict[str, Waited] = {}
        self._at: OrderedDict[str, float] = OrderedDict()
        self._looked_at = 0.0
        self._looking = asyncio.Lock()

    async def look(self, container_id: str = "") -> None:
        """Ask the exporter, unless it was just asked; about one container, until two samples of it were seen.

        What the exporter cannot tell is no pressure.
        """
        await self._ask()
        for _ in range(PATIENCE_COUNT):
            if container_id not in self._unknown:
                break
            await asyncio.sleep(FRESH_S)
            await self._ask()

    async def _ask(self) -> None:
        async with self._looking:
            if 0 <= self._clock() - self._looked_at < FRESH_S:
                return
            samples: dict[str, Sample] = {}
            try:
                samples = parse_samples(await self._exporter.lines(lambda line: line.startswith(_NAMES)))
            except NoSamples as err:
                log.info("nothing is known of the host's pressure: %s", err)
            self._looked_at = self._clock()
            waited = ((one, self._wait_of(one, sample)) for one, sample in samples.items())
            self._waited = {one: found for one, found in waited if found is not None}
            verdicts = {one: self._verdict(one, sample) for one, sample in samples.items()}
            self._now = frozenset(one for one, starved in verdicts.items() if starved)
            self._unknown = frozenset(one for one, starved in verdicts.items() if starved is None)
            for one in self._now:
                self._at[one] = self._looked_at
                self._at.move_to_end(one)
                if len(self._at) > MAX_CONTAINERS:
                    self._at.popitem(last=False)

    def _wait_of(self, container_id: str, sample: Sample) -> Waited | None:
        if sample.waited_s is None or sample.ran_s is None or sample.age_s is None:
            return None
        now = Waited(self._looked_at - sample.age_s, sample.waited_s, sample.ran_s)
        before = self._waited.get(container_id)
        if before is None or now.at - before.at > MAX_INTERVAL_S:
            return now
        if now.at - before.at < MIN_INTERVAL_S:
            return before
        waited_s, ran_s = now.waited_s - before.waited_s, now.ran_s - before.ran_s
        if waited_s < 0 or ran_s < 0:
            return now  # it was started anew
        return replace(now, starved=waited_s >= ran_s and waited_s / (now.at - before.at) >= WAITED_RATIO)

    def _verdict(self, container_id: str, sample: Sample) -> bool | None:
        if sample.by in {"host", "limit"}:
            return sample.by == "host"  # vCPUs that a quota holds back seem to wait as well
        found = self._waited.get(container_id)
        return found.starved if found else False

    def judge(self, rule: Rule, container: Container) -> Judgement | None:
        """Why nothing is to be done about what this rule is about, by the last look; None if it is not the host."""
        if rule.reason not in EXPLAINED or container.state in policy.NOT_RUNNING:
            return None
        if container.id in self._now:
            return Judgement("skip", "host_is_the_cause", "the host keeps its vCPUs from the CPU at this moment")
        # What a check said then says nothing about the container, and stands until the next one. Nor does one of soon
        # after: the guest has much to make up for, and a check that began in the pressure may still run.
        starved_at = self._at.get(container.id)
        if starved_at is None or container.health != "unhealthy" or self._clock() - starved_at > self._ttl_s:
            return None
        if any(check.began > starved_at + self._rest_s for check in container.checks):
            return None
        return Judgement(
            "skip", "host_is_the_cause", "the host kept it from the CPU, and no check was made in peace yet"
        )
