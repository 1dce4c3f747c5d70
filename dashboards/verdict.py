"""The first row of the Fleet and the Host dashboard: is it the containers themselves, their limits, or the host?

Both have the same panels in the same places, so that whoever comes from one finds the other's at once: the upper line
is about containers and what they were given, the lower one about what they stand on. The Container dashboard has its
own, of one container.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from collector.catalogue import container, hyper, machine, microvm
from dashboards.panels import ORANGE, RED, Code, Panel, stat, steps
from dashboards.promql import OF_ITS_OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashboards.promql import Chosen

NEAR_LIMIT: Final = 0.9
"""Share of its memory limit from which a container is near it."""

WAITS_FOR_DISK: Final = 0.2
"""Share of the time, waited for a disk, from which a container counts as one that waits."""

FULL: Final = (Code(0, "no", "green"), Code(1, "yes", RED))
"""What the number of `disk_full` says."""

_NO_CONTAINERS: Final = "No container is seen"
_NO_EXPORTER: Final = "No exporter is scraped"
_NO_RUNTIME: Final = "hyperd has not told anything yet"


def first_row(
    chosen: Chosen,
    last: Panel,
    *,
    container_links: Sequence[dict[str, Any]] = (),
    host_links: Sequence[dict[str, Any]] = (),
) -> list[Panel]:
    """Twelve figures, red where the trouble is.

    Args:
        chosen: Which hosts and containers.
        last: The last panel, which each dashboard has for itself.
        container_links: Ways from the number of containers in trouble to these.
        host_links: Ways from a host's figure to that host. With them the figure has the host's name beside it, as it
            is that of the worst of several.
    """
    return [*_containers(chosen, container_links), *_hosts(chosen, host_links), last]


def starved(chosen: Chosen, by: str) -> str:
    """Containers that were kept from the CPU by this in most of the last 5 minutes; one sample makes no trouble."""
    held = f"sum by (instance, id) (sum_over_time({chosen.select(microvm.STARVED_BY, by=by)}[5m]))"
    looked = f"sum by (instance, id) (sum_over_time({chosen.select(microvm.STARVED_BY)}[5m]))"
    return f"({held} / {looked} > 0.5)"


def waits_for_disk(chosen: Chosen) -> str:
    """Containers that wait for a disk."""
    return f"({chosen.rate(container.PRESSURE_IO_WAITING_SECONDS_TOTAL, '5m')} > {WAITS_FOR_DISK:g})"


def of_limit(chosen: Chosen) -> str:
    """Working set of the memory limit, by container."""
    return f"{chosen.select(container.MEMORY_WORKING_SET_BYTES)} / {chosen.select(container.SPEC_MEMORY_LIMIT_BYTES)}"


def near_limit(chosen: Chosen) -> str:
    """Containers that are near their memory limit, with how near."""
    return f"({of_limit(chosen)} > {NEAR_LIMIT:g})"


def cpu_taken(chosen: Chosen) -> str:
    """CPU time of all micro-VMs of each host, of its CPUs."""
    taken = f"sum by (instance) ({chosen.rate(microvm.HOST_CPU_SECONDS_TOTAL, '5m')})"
    return f"{taken} / sum by (instance) ({chosen.select(machine.CPU_CORES)})"


def memory_taken(chosen: Chosen) -> str:
    """Memory of all micro-VMs of each host, of its memory."""
    taken = f"sum by (instance) ({chosen.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN)})"
    return f"{taken} / sum by (instance) ({chosen.select(machine.MEMORY_BYTES)})"


def by_host(chosen: Chosen, expr: str) -> str:
    """How many series the expression has on each host, and 0 for a host that is seen and has none."""
    return f"(count by (instance) ({expr}) or count by (instance) ({chosen.select(hyper.CONTAINERS)}) * 0)"


def disk_full(chosen: Chosen) -> str:
    """1 for each host whose disk is full, 0 for others: hyperd gave up its reserve, or QEMU has halted a guest."""
    reserve = f"{chosen.select(hyper.RESERVE_MISSING_BYTES)} > 0"
    halted = f"{chosen.select(microvm.VMM_STATUS, status='io-error')} == 1"
    return f"({by_host(chosen, f'{reserve} or {halted}')} > bool 0)"


def _containers(chosen: Chosen, links: Sequence[dict[str, Any]]) -> list[Panel]:
    fails = (
        f"({chosen.select(container.HEALTH_STATE)} == 0 or on (id) {chosen.select(container.PROBE_SUCCESS)} == 0) "
        f"and on (id) {chosen.running}"
    )

    def count(title: str, description: str, expr: str, color: str = ORANGE) -> Panel:
        return stat(
            title, description, chosen.count(expr, container.STATE), empty=_NO_CONTAINERS, filled=True, links=links,
            thresholds=steps((1, color)),
        )  # fmt: skip

    return [
        count(
            "Down", "Containers that should be running and are not, quarantine included. `hyper logs NAME` has the "
            "last words of each.",
            chosen.down, RED,
        ),
        count(
            "Us: unhealthy", "Running containers whose health check or probe fails, or has not passed yet. If nothing "
            "else is red it is the application.",
            fails, RED,
        ),
        count(
            "Us: short of CPU", "Containers that in most of the last 5 minutes had more to do than CPUs, with neither "
            "a limit nor the host in the way.",
            starved(chosen, "self"),
        ),
        count(
            "Limit: short of CPU", "Containers that their CPU limit held back in most of the last 5 minutes: "
            "`hyper update --cpus N NAME` raises it.",
            starved(chosen, "limit"),
        ),
        count(
            "Limit: short of memory", f"Containers whose working set is above {NEAR_LIMIT * 100:g} % of their memory "
            "limit; at 100 % processes are killed.",
            near_limit(chosen),
        ),
        stat(
            "Limit: OOM kills, 1 h", "Processes that were killed in the last hour as the container's memory limit, or "
            "its guest's memory, was used up.",
            f"sum({chosen.increase(microvm.OOM_TOTAL, '1h', layer='container|guest')})", empty=_NO_CONTAINERS,
            thresholds=steps((0.5, ORANGE)), filled=True, links=links,
        ),
    ]  # fmt: skip


def _hosts(chosen: Chosen, links: Sequence[dict[str, Any]]) -> list[Panel]:
    full = steps((0.8, ORANGE), (0.95, RED))
    which = " The fullest host is shown." if links else ""

    def worst(title: str, description: str, expr: str, **more: Any) -> Panel:
        return stat(
            title, description, f"topk(1, {expr})", legend="{{instance}}", links=links, filled=True,
            show="value_and_name" if links else "value", **more,
        )  # fmt: skip

    return [
        stat(
            "Host: short of CPU", "Containers that the host kept from the CPU in most of the last 5 minutes: it ran "
            "something else. Neither they nor their limits are the cause.",
            chosen.count(starved(chosen, "host"), container.STATE), empty=_NO_CONTAINERS,
            thresholds=steps((1, ORANGE), (3, RED)), filled=True,
        ),
        worst(
            "Host: CPU taken", f"CPU time of all micro-VMs of a host, of its CPUs, over 5 minutes.{which}",
            cpu_taken(chosen), unit="percentunit", empty=_NO_CONTAINERS, thresholds=full,
        ),
        worst(
            "Host: memory taken", f"Memory that the micro-VMs of a host have for themselves, of its memory.{which}",
            memory_taken(chosen), unit="percentunit", empty=_NO_CONTAINERS, thresholds=full,
        ),
        worst(
            "Host: waits for its disk", f"Containers of one host that wait for a disk for {WAITS_FOR_DISK * 100:g} % "
            "of the time or more. One alone is busy; several at once: the disk of the host is slow.",
            by_host(chosen, waits_for_disk(chosen)), empty=_NO_EXPORTER, thresholds=steps((2, ORANGE), (5, RED)),
        ),
        stat(
            "Host: disk full", "Whether hyperd had to give up its reserve as the disk was full, or QEMU halted a "
            "guest for that. `hyper system df` and `hyper system prune` work on a full disk too."
            + (" Of several hosts: how many." if links else ""),
            f"sum({disk_full(chosen)})", unit="short" if links else "none", empty=_NO_RUNTIME,
            thresholds=steps((1, RED)), codes=() if links else FULL, filled=True,
        ),
    ]  # fmt: skip
