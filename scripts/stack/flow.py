"""Do data flow? Each dashboard's queries, asked of the Prometheus of the stack; and what the exporter has written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx

from scripts.stack.settings import Settings, StackError
from tests.panels import filled, queries, young

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 90.0
POLL_S = 0.5
HOSTS = ("fleet.json", "host.json")
"""Dashboards that have data without any container."""


def check(settings: Settings) -> Iterator[str]:
    """Wait until host dashboards have data and line protocol has arrived; say how many queries of each have some.

    Raises:
        StackError: they have not in time.
    """
    prometheus = f"http://127.0.0.1:{settings.prometheus_port}/api/v1/query"
    with httpx.Client(timeout=10.0, trust_env=False) as client:

        def has_data(url: str, query: str) -> bool:
            try:
                answer = client.post(url, data={"query": query})
                return bool(answer.raise_for_status().json()["data"]["result"])
            except httpx.HTTPError:
                return False

        _wait(lambda: has_data(prometheus, 'up{job="hyper-exporter"} == 1'), "Prometheus has not scraped the exporter")
        _wait(lambda: has_data(prometheus, "rate(hyper_exporter_cpu_seconds_total[1m])"), "there are no rates yet")
        influx = f"http://{settings.influx}/api/v1/query"
        _wait(lambda: has_data(influx, "machine_cpu_cores"), "the exporter's samples have not come by line protocol")
        found: dict[str, list[bool]] = {}
        for name, _, query in queries():
            found.setdefault(name, []).append(has_data(prometheus, filled(young(query))))
        for name, each in found.items():
            if name in HOSTS and not any(each):
                raise StackError(f"the dashboard {name} has no data: see the exporter's log in {settings.run_dir}")
            yield f"dashboard {name.removesuffix('.json')}: {sum(each)} of {len(each)} queries have data now"


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"{otherwise}, after {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)
