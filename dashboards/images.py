"""The Images dashboard: how the containers of one image digest do, beside those of the digest before."""

from __future__ import annotations

from typing import Any, Final

from collector.catalogue import container, microvm
from dashboards import links, marks
from dashboards.layout import dashboard
from dashboards.panels import ORANGE, RED, SHORT_DIGESTS, Column, Panel, Query, stat, steps, table, time_series
from dashboards.promql import OF_ITS_OWN, Chosen
from dashboards.variables import chain, of_label

UID: Final = links.IMAGES

_NAMES: Final = ("instance", "namespace", "image")
_ALL: Final = Chosen(_NAMES)
_NO_IMAGE: Final = "No container of this image is seen"
_NOT_BOTH: Final = "Both digests need a container"
_BY: Final = "image, digest"


def images() -> dict[str, Any]:
    """The dashboard as JSON."""
    digests = f'{container.INFO.name}{{instance=~"$instance", namespace=~"$namespace", image=~"$image"}}'
    return dashboard(
        UID,
        "Images by digest: is the new one worse than the old one?",
        [
            *chain(_NAMES),
            of_label("digest", "New digest", digests, "digest", single=True),
            of_label("baseline", "Old digest", digests, "digest", single=True),
        ],
        [
            ("Is the new digest worse than the old one?", _regression()),
            ("How healthy are the containers of each digest?", _health()),
            ("What does a container of each digest use?", _resources()),
            ("Which digests run where?", _inventory()),
        ],
        [marks.digests(_ALL), marks.actions()],
        since="now-6h",
    )


def _joined(expr: str, digest: str = "") -> str:
    """The expression, which has the label `id`, with the digest of each container's image."""
    info = _ALL.select(container.INFO, **({"digest": digest} if digest else {}))
    return f"({expr}) * on (id) group_left (digest) {info}"


def _mean(expr: str, digest: str = "") -> str:
    by = "" if digest else f" by ({_BY})"
    return f"avg{by} ({_joined(expr, digest)})"


def _cpu(window: str = "$__rate_interval") -> str:
    return f"sum by (id, image) ({_ALL.rate(container.CPU_USAGE_SECONDS_TOTAL, window)})"


def _memory() -> str:
    return f"sum by (id, image) ({_ALL.select(container.MEMORY_WORKING_SET_BYTES)})"


def _host_memory() -> str:
    return f"sum by (id, image) ({_ALL.select(microvm.HOST_MEMORY_BYTES, part=OF_ITS_OWN)})"


def _waiting(window: str = "$__rate_interval") -> str:
    return f"sum by (id, image) ({_ALL.rate(container.PRESSURE_CPU_WAITING_SECONDS_TOTAL, window)})"


def _start_time() -> str:
    return f"sum by (id, image) ({_ALL.select(microvm.START_SECONDS)})"


def _ratio(expr: str) -> str:
    """Mean over the containers of the new digest, as a multiple of that of the old one."""
    return f"{_mean(expr, '$digest')} / ({_mean(expr, '$baseline')} > 0)"


def _difference(expr: str) -> str:
    return f"{_mean(expr, '$digest')} - {_mean(expr, '$baseline')}"


def _regression() -> list[Panel]:
    worse = steps((1.2, ORANGE), (1.5, RED))
    restarts, kills = (_ALL.increase(metric, "1h") for metric in (container.RESTARTS_TOTAL, container.OOM_EVENTS_TOTAL))
    return [
        stat(
            "CPU: new / old", "CPU time of a container of the new digest, as a multiple of the old one's; means of an "
            "hour.",
            _ratio(_cpu("1h")), unit="suffix:x", empty=_NOT_BOTH, thresholds=worse, filled=True, width=4,
        ),
        stat(
            "Memory: new / old", "Working set of a container of the new digest, as a multiple of the old one's.",
            _ratio(_memory()), unit="suffix:x", empty=_NOT_BOTH, thresholds=worse, filled=True, width=4,
        ),
        stat(
            "Time to start: new / old", "Time that the last start of a container took, as a multiple of the old one's.",
            _ratio(_start_time()), unit="suffix:x", empty=_NOT_BOTH, thresholds=worse, width=4,
        ),
        stat(
            "Restarts: more than old", "Restarts of a container in an hour, more than with the old digest.",
            _difference(restarts), unit="short", empty=_NOT_BOTH, thresholds=steps((0.5, ORANGE), (2, RED)),
            filled=True,
            width=4,
        ),
        stat(
            "OOM kills: more than old", "OOM kills in a container in an hour, more than with the old digest.",
            _difference(kills), unit="short", empty=_NOT_BOTH, thresholds=steps((0.5, RED)), filled=True, width=4,
        ),
        stat(
            "Waiting: more than old", "Share of an hour in which some task waited for a CPU, more than with the old "
            "digest.",
            _difference(_waiting("1h")), unit="percentunit", empty=_NOT_BOTH, thresholds=steps((0.1, ORANGE), (0.3,
            RED)),
            width=4,
        ),
    ]  # fmt: skip


def _over_time(title: str, description: str, expr: str, unit: str, *, bars: bool = False) -> Panel:
    return time_series(
        title, description, [Query(_mean(expr), "{{image}} {{digest}}")], unit=unit, empty=_NO_IMAGE, bars=bars,
        links=[links.from_series(links.IMAGES, ("image", "digest"))], transformations=[SHORT_DIGESTS], width=8,
    )  # fmt: skip


def _health() -> list[Panel]:
    running = f"{_ALL.running} or on (id) {_ALL.select(container.DESIRED_RUNNING)} * 0"
    healthy = f"{_ALL.select(container.HEALTH_STATE)} >= 0"
    return [
        _over_time("Running", "Share of the containers of each digest whose process runs.", running, "percentunit"),
        _over_time("Healthy", "Share of the containers with a health check that pass it.", healthy, "percentunit"),
        _over_time("Restarts in an hour", "Starts after the first, for each container.",
                   _ALL.increase(container.RESTARTS_TOTAL, "1h"), "short"),
        _over_time("OOM kills in an hour", "Processes killed for want of memory, for each container.",
                   _ALL.increase(container.OOM_EVENTS_TOTAL, "1h"), "short"),
        _over_time("Segments sent again", "TCP segments sent again a second, for each container.",
                   _ALL.rate(microvm.TCP_RETRANSMITS_TOTAL), "short"),
        _over_time("Connections refused", "A second, as an accept queue was full, for each container.",
                   _ALL.rate(microvm.TCP_LISTEN_OVERFLOWS_TOTAL), "short"),
    ]  # fmt: skip


def _resources() -> list[Panel]:
    return [
        _over_time("CPU by digest", "CPUs in use, for each container.", _cpu(), "suffix: CPUs"),
        _over_time("Memory by digest", "Working set, for each container. One that only grows leaks.", _memory(),
        "bytes"),
        _over_time("Memory of the host by digest", "Memory of the host that each micro-VM takes for itself alone.",
                   _host_memory(), "bytes"),
        _over_time("Waiting for a CPU by digest",
        "Share of time in which some task waited for a CPU, for each container.",
                   _waiting(), "percentunit"),
        _over_time("Network by digest", "Bytes a second, received and sent, for each container.",
                   f"sum by (id, image) ({_ALL.rate(container.NETWORK_RECEIVE_BYTES_TOTAL)}) + "
                   f"sum by (id, image) ({_ALL.rate(container.NETWORK_TRANSMIT_BYTES_TOTAL)})", "Bps"),
        _over_time("Time of the last start by digest", "All phases together, for each container.", _start_time(), "s"),
    ]  # fmt: skip


def _inventory() -> list[Panel]:
    def total(expr: str) -> str:
        return f"sum by ({_BY}) ({_joined(expr)})"

    return [
        table(
            "Digests", "Every image digest that a container has, with what its containers did.",
            [
                Column("Image", label="image"),
                Column("Digest", label="digest"),
                Column("Containers", expr=f"count by ({_BY}) ({_ALL.select(container.INFO)})"),
                Column("Running", expr=f"count by ({_BY}) ({_joined(_ALL.running)})"),
                Column("Restarts", expr=total(_ALL.select(container.RESTARTS_TOTAL)),
                       thresholds=((1, ORANGE), (10, RED))),
                Column("OOM kills", expr=total(_ALL.select(container.OOM_EVENTS_TOTAL)), thresholds=((1, RED),)),
                Column("CPU", unit="suffix: CPUs", expr=total(_cpu())),
                Column("Memory", unit="bytes", expr=total(_memory())),
            ],
            empty=_NO_IMAGE, links=[links.from_row(links.IMAGES, {"image": "Image", "digest": "Digest"})], width=24,
        ),
        time_series(
            "Containers by digest", "How many containers each digest has: a roll-out is one taking over from another.",
            [Query(f"count by ({_BY}) ({_joined(_ALL.running)})", "{{image}} {{digest}}")],
            unit="short", empty=_NO_IMAGE, stacked=True, transformations=[SHORT_DIGESTS],
        ),
        table(
            "Containers", "Which containers run the new digest.",
            [
                Column("Host", label="instance"), Column("Tenant", label="namespace"), Column("Pod", label="pod"),
                Column("Container", label="container"), Column("Image", label="image"),
                Column("Epoch", label="epoch"),
                Column("Seen", expr=_ALL.select(container.INFO, digest="$digest")),
            ],
            empty=_NO_IMAGE,
            links=[links.from_row(links.CONTAINER, {"instance": "Host", "namespace": "Tenant", "pod": "Pod",
                                                    "container": "Container"})],
        ),
    ]  # fmt: skip
