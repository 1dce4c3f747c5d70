"""What the stack shows: addresses, and whether data flow from the exporter to each dashboard's queries."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

from scripts.stack.service import POLL_S
from scripts.stack.settings import StackError
from tests.panels import filled, queries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.stack.settings import Settings

FLOW_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 10.0
NO_GRAFANA = (
    "Grafana: not here. Debian 12 has no package of it; the dashboards are in dashboards/generated, to be imported into"
    " a Grafana of yours, or with docker compose (docs/how-to/run-in-docker.md)"
)


def addresses(settings: Settings) -> Iterator[str]:
    """A line for each thing to open."""
    config = settings.config
    yield f"metrics           http://{config.exporter_listen}/metrics"
    yield f"Prometheus        http://127.0.0.1:{settings.prometheus_port}/"
    yield f"Alertmanager      http://127.0.0.1:{settings.alertmanager_port}/"
    yield f"VictoriaMetrics   http://127.0.0.1:{settings.influx_port}/vmui   (takes what is written to InfluxDB)"
    yield f"remediation       http://{config.remediation_listen}/audit"
    yield f"registry          http://{settings.registry}/v2/"


def ask(client: httpx.Client, base: str, expr: str) -> list[dict[str, Any]]:
    """What Prometheus, or a server with its API, answers to an expression now.

    Raises:
        StackError: it refuses the expression, or does not answer.
    """
    try:
        answer = client.post(f"{base}/api/v1/query", data={"query": expr}).json()
    except (httpx.HTTPError, ValueError) as err:
        raise StackError(f"{base} does not answer a query: {err}") from err
    if answer.get("status") != "success":
        raise StackError(f"{base} refuses {expr}: {answer.get('error', 'it does not say why')}")
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def wait_for(client: httpx.Client, base: str, expr: str, what: str) -> None:
    """Wait until an expression has data.

    Raises:
        StackError: it has none within FLOW_TIMEOUT_S.
    """
    deadline = time.monotonic() + FLOW_TIMEOUT_S
    while not ask(client, base, expr):
        if time.monotonic() > deadline:
            raise StackError(f"{what} within {FLOW_TIMEOUT_S:.0f} s: {base} has nothing for {expr}")
        time.sleep(POLL_S)


def check(settings: Settings) -> Iterator[str]:
    """Ask Prometheus all that the dashboards ask; a line for each dashboard.

    What a host without containers has no data of is no failure.

    Raises:
        StackError: no data flow, or Prometheus refuses a query.
    """
    prometheus = f"http://127.0.0.1:{settings.prometheus_port}"
    influx = f"http://127.0.0.1:{settings.influx_port}"
    with httpx.Client(timeout=QUERY_TIMEOUT_S, trust_env=False) as client:
        wait_for(client, prometheus, "min(up) == 1 and count(up) >= 2", "not every target was scraped")
        wait_for(client, prometheus, "hyper_influx_written_total > 0", "the exporter wrote nothing to InfluxDB's port")
        wait_for(client, influx, 'count({__name__!=""}) > 0', "nothing that the exporter wrote can be read")
        asked: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        for board, _, expr in queries():
            asked[board] += 1
            answered[board] += bool(ask(client, prometheus, filled(expr)))
    for board, number in asked.items():
        yield f"dashboard {board.removesuffix('.json')}: {answered[board]} of {number} queries have data"
