"""What only two views together tell: overhead, residuals, and who starves the container.

All is computed on samples of one round, as the growth between two rounds or the memory of one moment. What cannot be
known is absent, and no difference comes out below zero. docs/explanation/collection.md defines each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from collector.definitions import microvm
from collector.kerneltext import NSEC_PER_S, USEC_PER_S
from collector.snapshot import Point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector.sources.cgroup import CgroupSample
    from collector.sources.guest import GuestSample
    from collector.sources.process import ProcessSample

STARVED_RATIO: Final = 0.1
"""Share of the time that a cause has to take the CPU from the container to be named; below, scheduling is like that."""
MIN_INTERVAL_S: Final = 0.05
"""Between two samples; over less, their clocks' distance counts for more than what they count."""
MIN_CPU_S: Final = 0.001
"""CPU time of the host between two samples below which no share of it is told."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What kept the container from the CPU between two samples, each a share of the time, 0 to 1.

    Attributes:
        wanted: CPUs that the container used, as it believes, and the time that it waited for one; may be above 1.
        waiting: some task of the container was runnable and did not run (PSI of its group).
        limit: a quota held it back, in the guest or on the host, whichever did so more.
        host: a vCPU was runnable and the host ran something else, its quota apart; the mean over the vCPUs.
    """

    wanted: float
    waiting: float
    limit: float
    host: float

    @property
    def starved_by(self) -> str:
        """The cause with the largest share, if that is `STARVED_RATIO` at least; the tasks themselves get the rest.

        PSI sees all three: a task that is throttled waits, and one whose vCPU does not run waits longer. Who wants no
        CPU is not starved, however long the guest's own ticks had to wait.
        """
        if self.wanted < STARVED_RATIO:
            return "none"
        own = max(0.0, self.waiting - self.limit - self.host)
        causes = (("limit", self.limit), ("host", self.host), ("self", own))
        by, share = max(causes, key=lambda cause: cause[1])
        return by if share >= STARVED_RATIO else "none"


@dataclass(frozen=True, slots=True)
class Pair:
    """Host and guest of one round: totals in seconds, and when each was read by a monotonic clock."""

    guest_at_s: float
    host_at_s: float
    usage_s: float | None
    waiting_s: float | None
    guest_throttled_s: float
    host_throttled_s: float
    host_cpu_s: float
    vcpu_s: float | None
    wait_s: float | None
    main_s: float | None
    busy_s: float | None


def pair(guest: GuestSample, guest_at_s: float, process: ProcessSample, cgroup: CgroupSample, host_at_s: float) -> Pair:
    """Take what is compared."""
    cpu = guest.cpu or {}
    usage_us = cpu.get(b"usage_usec")
    pressure = guest.pressure.get("cpu")
    return Pair(
        guest_at_s=guest_at_s,
        host_at_s=host_at_s,
        usage_s=None if usage_us is None else usage_us / USEC_PER_S,
        waiting_s=None if pressure is None else pressure.some_s,
        guest_throttled_s=cpu.get(b"throttled_usec", 0) / USEC_PER_S,
        host_throttled_s=cgroup.throttled_s or 0.0,
        host_cpu_s=process.cpu_s if cgroup.cpu_s is None else cgroup.cpu_s,
        vcpu_s=None if process.vcpus is None else process.vcpus.run_s,
        wait_s=None if process.vcpus is None else process.vcpus.wait_s,
        main_s=None if process.main is None else process.main.run_s + process.main.wait_s,
        busy_s=_busy_s(guest),
    )


def _busy_s(guest: GuestSample) -> float | None:
    """How long the guest's CPUs were not idle, by its own clock: what was shorter than a tick is in it."""
    cpu = guest.details.cpu if guest.details is not None else None
    if cpu is None or cpu.idle_s is None or guest.uptime_ns is None:
        return None if cpu is None else cpu.busy_s
    return guest.uptime_ns / NSEC_PER_S * len(cpu.by_cpu) - cpu.idle_s - cpu.steal_s


def _interval_s(before: Pair, now: Pair) -> float:
    return min(now.host_at_s - before.host_at_s, now.guest_at_s - before.guest_at_s)


def overhead_cpu(before: Pair, now: Pair) -> float | None:
    """Share of the host's CPU time between two rounds that was not the container's own work, 0 to 1."""
    host_s, guest_s = now.host_at_s - before.host_at_s, now.guest_at_s - before.guest_at_s
    if before.usage_s is None or now.usage_s is None or _interval_s(before, now) < MIN_INTERVAL_S:
        return None
    bill_s, used_s = now.host_cpu_s - before.host_cpu_s, now.usage_s - before.usage_s
    if bill_s < MIN_CPU_S or used_s < 0:
        return None
    return max(0.0, 1.0 - (used_s / guest_s) / (bill_s / host_s))


def shares(before: Pair, now: Pair, vcpus: int) -> Shares | None:
    """What kept the container from the CPU between two rounds; None while a view does not tell."""
    host_s, guest_s = now.host_at_s - before.host_at_s, now.guest_at_s - before.guest_at_s
    if _interval_s(before, now) < MIN_INTERVAL_S:
        return None
    if before.waiting_s is None or now.waiting_s is None or before.wait_s is None or now.wait_s is None:
        return None
    if before.usage_s is None or now.usage_s is None:
        return None
    host_limit = _share(now.host_throttled_s - before.host_throttled_s, host_s)
    guest_limit = _share(now.guest_throttled_s - before.guest_throttled_s, guest_s)
    host_wait = _share(now.wait_s - before.wait_s, host_s * max(1, vcpus))
    waiting = _share(now.waiting_s - before.waiting_s, guest_s)
    return Shares(
        wanted=max(0.0, now.usage_s - before.usage_s) / guest_s + waiting,
        waiting=waiting,
        limit=max(host_limit, guest_limit),
        host=max(0.0, host_wait - host_limit),  # run delay goes on while the host's quota holds a vCPU back
    )


def _share(grown_s: float, of_s: float) -> float:
    return min(1.0, max(0.0, grown_s / of_s))


def residual_seconds(first: Pair, now: Pair) -> float | None:
    """CPU time on which host and guest disagree since `first`.

    A guest that is not shown steal counts what it waited as time that it was busy. A vCPU waits for a CPU of the host,
    its run delay, and for QEMU's main loop, which is not longer than that ran or waited itself. So anything between
    the time that the vCPUs ran and that plus both is explained. The distance from there is not.
    """
    if first.vcpu_s is None or first.wait_s is None or first.busy_s is None:
        return None
    if now.vcpu_s is None or now.wait_s is None or now.busy_s is None:
        return None
    ran_s, busy_s = now.vcpu_s - first.vcpu_s, now.busy_s - first.busy_s
    waited_s = max(0.0, now.wait_s - first.wait_s) + max(0.0, (now.main_s or 0.0) - (first.main_s or 0.0))
    if ran_s < 0 or busy_s < 0:
        return None
    return max(0.0, ran_s - busy_s, busy_s - ran_s - waited_s)


def memory_points(guest: GuestSample, process: ProcessSample, ram_bytes: int, *, deep: bool) -> Iterator[Point]:
    """Overhead and residual of memory, of one moment."""
    memory = process.memory
    if memory is None or memory.guest_ram is None or memory.template_shared is None or memory.vmm is None:
        return
    if guest.memory_bytes is not None:
        overhead = max(0, memory.guest_ram + memory.vmm - guest.memory_bytes)
        yield Point(microvm.OVERHEAD_MEMORY_BYTES, (), overhead)
    if deep and guest.memory_free_bytes is not None:
        held = memory.guest_ram + memory.template_shared
        in_use = max(0, ram_bytes - guest.memory_free_bytes)
        yield Point(microvm.VIEW_RESIDUAL_BYTES, (), max(0, held - in_use))


class Views:
    """One VM's views over one epoch."""

    def __init__(self, ram_bytes: int, vcpus: int) -> None:
        self._ram_bytes = ram_bytes
        self._vcpus = vcpus
        self._before: Pair | None = None
        self._first_busy: Pair | None = None
        self._memory: dict[bool, list[Point]] = {}

    def points(self, now: Pair, guest: GuestSample, process: ProcessSample, *, deep: bool) -> Iterator[Point]:
        """What this round adds. The memory's points stay until `smaps` is read again with the guest."""
        before = self._before
        if before is None or _interval_s(before, now) >= MIN_INTERVAL_S:
            self._before = now
        if before is not None:
            if (ratio := overhead_cpu(before, now)) is not None:
                yield Point(microvm.OVERHEAD_CPU_RATIO, (), ratio)
            if (found := shares(before, now, self._vcpus)) is not None:
                yield Point(microvm.STARVED_BY, (found.starved_by,), 1.0)
        if deep and now.busy_s is not None:
            if self._first_busy is None:
                self._first_busy = now
            elif (seconds := residual_seconds(self._first_busy, now)) is not None:
                yield Point(microvm.VIEW_RESIDUAL_SECONDS, (), seconds)
        if process.memory_is_new:
            self._memory = {
                tier: [*memory_points(guest, process, self._ram_bytes, deep=tier)] for tier in (False, True)
            }
        yield from self._memory.get(deep, ())
