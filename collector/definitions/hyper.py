"""`hyper_*`: ourselves. Scope `host` is hyperd's own count in runtime.json, scope `self` is the exporter."""

from __future__ import annotations

from collector.metric import Metric

_RUNTIME = "once hyperd has written runtime.json"
_USED = "once hyperd has written runtime.json, and there was one"
_INFLUX = "only with influx_url set"

RUNTIME_INFO = Metric(
    "hyper_runtime_info", "gauge", "", "Always 1: version and accelerator of hyperd.",
    "hyper_runtime", "runtime.json", labels=("version", "accel"), scope="host", when=_RUNTIME,
)  # fmt: skip
RUNTIME_START_TIME_SECONDS = Metric(
    "hyper_runtime_start_time_seconds", "gauge", "seconds", "Time that hyperd was started, since 1970.",
    "hyper_runtime", "runtime.json started_at", scope="host", when=_RUNTIME,
)  # fmt: skip
RUNTIME_LAST_UPDATE_TIMESTAMP_SECONDS = Metric(
    "hyper_runtime_last_update_timestamp_seconds", "gauge", "seconds",
    "Time that hyperd last wrote its counters, since 1970.",
    "hyper_runtime", "runtime.json updated_at", scope="host", when=_RUNTIME,
)  # fmt: skip
OPERATIONS_TOTAL = Metric(
    "hyper_operations_total", "counter", "", "Operations of hyperd by kind and outcome.",
    "hyper", "runtime.json operations", labels=("kind", "outcome"), scope="host", when=_USED,
)  # fmt: skip
OPERATION_SECONDS_TOTAL = Metric(
    "hyper_operation_seconds_total", "counter", "seconds", "Time that hyperd spent in operations of a kind.",
    "hyper", "runtime.json operations", labels=("kind",), scope="host", when=_USED,
)  # fmt: skip
STARTS_TOTAL = Metric(
    "hyper_starts_total", "counter", "", "VM starts by the path taken.",
    "hyper", "runtime.json starts", labels=("path",), scope="host", when=_USED,
)  # fmt: skip
START_FALLBACKS_TOTAL = Metric(
    "hyper_start_fallbacks_total", "counter", "", "Starts that took a slower path than they could have, by reason.",
    "hyper", "runtime.json fallbacks", labels=("reason",), scope="host", when=_USED,
)  # fmt: skip
TEMPLATES_READY = Metric(
    "hyper_templates_ready", "gauge", "", "VM templates that can be cloned.",
    "hyper", "runtime.json templates_ready", scope="host", when=_RUNTIME,
)  # fmt: skip
POOL_WAITING = Metric(
    "hyper_pool_waiting", "gauge", "", "VMs of the pool that can be handed out now.",
    "hyper_pool", "runtime.json pool_waiting", scope="host", when=_RUNTIME,
)  # fmt: skip
RESERVE_MISSING_BYTES = Metric(
    "hyper_reserve_missing_bytes", "gauge", "bytes",
    "What hyperd has given up of the room that it keeps on its disk for giving room back, as the disk was full.",
    "hyper_reserve", "runtime.json reserve_missing_bytes", scope="host", when=_RUNTIME,
)  # fmt: skip
IMAGES = Metric(
    "hyper_images", "gauge", "", "Images on this host.",
    "hyper", "runtime.json images", scope="host", when=_RUNTIME,
)  # fmt: skip
CONTAINERS = Metric(
    "hyper_containers", "gauge", "", "Containers on this host, running or not.",
    "hyper", "state directory", scope="host",
)  # fmt: skip
RECORDS_UNREADABLE = Metric(
    "hyper_records_unreadable", "gauge", "", "Container records that could not be read in the last round.",
    "hyper", "state directory", scope="host",
)  # fmt: skip

COLLECTOR_DURATION_SECONDS = Metric(
    "hyper_collector_duration_seconds", "gauge", "seconds",
    "Wall time of the slowest container's read in the last round.",
    "hyper_collector", "collector", labels=("source",), scope="self", when="with a running container",
)  # fmt: skip
COLLECTOR_ROUND_SECONDS = Metric(
    "hyper_collector_round_seconds", "gauge", "seconds", "Wall time of the last round over all containers.",
    "hyper_collector", "collector", scope="self",
)  # fmt: skip
COLLECTOR_CONTAINER_CPU_SECONDS = Metric(
    "hyper_collector_container_cpu_seconds", "gauge", "seconds",
    "CPU time of the last round for each container, with the scrapes that were answered meanwhile.",
    "hyper_collector", "collector: clock_gettime", scope="self", when="with a container",
)  # fmt: skip
COLLECTOR_SERIES_DROPPED_TOTAL = Metric(
    "hyper_collector_series_dropped_total", "counter", "",
    "Series left out as their container had more than 1000, and interfaces and disks that a guest renamed too often.",
    "hyper_collector", "collector", scope="self",
)  # fmt: skip
COLLECTOR_DEEP_CONTAINERS = Metric(
    "hyper_collector_deep_containers", "gauge", "", "Containers that were sampled deep in the last round.",
    "hyper_collector", "collector", scope="self",
)  # fmt: skip
COLLECTOR_ALERTMANAGER_FAILURES_TOTAL = Metric(
    "hyper_collector_alertmanager_failures_total", "counter", "", "Times that Alertmanager did not tell its alerts.",
    "hyper_collector", "collector", scope="self", when="only with alertmanager_url set",
)  # fmt: skip
EXPORTER_INFO = Metric(
    "hyper_exporter_info", "gauge", "", "Always 1: version of the exporter.",
    "hyper_exporter", "exporter", labels=("version",), scope="self",
)  # fmt: skip
EXPORTER_SERIES = Metric(
    "hyper_exporter_series", "gauge", "", "Series of containers and host in the last round.",
    "hyper_exporter", "exporter", scope="self",
)  # fmt: skip
EXPORTER_CPU_SECONDS_TOTAL = Metric(
    "hyper_exporter_cpu_seconds_total", "counter", "seconds", "CPU time of the exporter itself.",
    "hyper_exporter", "exporter: getrusage", scope="self",
)  # fmt: skip
EXPORTER_RESIDENT_MEMORY_BYTES = Metric(
    "hyper_exporter_resident_memory_bytes", "gauge", "bytes", "Resident memory of the exporter itself.",
    "hyper_exporter", "exporter: /proc/self/statm", scope="self",
)  # fmt: skip
EXPORTER_OPEN_FDS = Metric(
    "hyper_exporter_open_fds", "gauge", "", "File descriptors that the exporter holds.",
    "hyper_exporter", "exporter: /proc/self/fd", scope="self",
)  # fmt: skip
SCRAPE_DURATION_SECONDS = Metric(
    "hyper_scrape_duration_seconds", "gauge", "seconds", "Time that the exporter took to answer the scrape before.",
    "hyper_scrape", "exporter", scope="self", when="from the second scrape on",
)  # fmt: skip
INFLUX_BACKLOG_BYTES = Metric(
    "hyper_influx_backlog_bytes", "gauge", "bytes", "Samples on disk that InfluxDB has not taken yet.",
    "hyper_influx", "exporter", scope="self", when=_INFLUX,
)  # fmt: skip
INFLUX_WRITTEN_TOTAL = Metric(
    "hyper_influx_written_total", "counter", "", "Batches that InfluxDB took.",
    "hyper_influx", "exporter", scope="self", when=_INFLUX,
)  # fmt: skip
INFLUX_DROPPED_TOTAL = Metric(
    "hyper_influx_dropped_total", "counter", "", "Batches lost: the spool was full, or InfluxDB refused them.",
    "hyper_influx", "exporter", labels=("reason",), scope="self", when=_INFLUX,
)  # fmt: skip
INFLUX_FAILURES_TOTAL = Metric(
    "hyper_influx_failures_total", "counter", "", "Writes to InfluxDB that failed and are tried again.",
    "hyper_influx", "exporter", scope="self", when=_INFLUX,
)  # fmt: skip
