"""An application on the loopback of a real guest is relayed, probed, stopped and killed; nothing else notices."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.host import wait_for

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host

SERVER = """
mkdir /www
cat > /www/metrics <<END
# HELP orders_total Orders taken.
# TYPE orders_total counter
orders_total{id="mine",kind="book"} 7
# TYPE container_memory_usage_bytes gauge
container_memory_usage_bytes 0
# TYPE secret_total counter
secret_total 1
END
httpd -p 127.0.0.1:8080 -h /www
exec sleep 600
"""
LABELS = {
    "hyper.metrics": "8080/metrics",
    "hyper.metrics.allow": "orders_,container_",
    "hyper.metrics.timeout": "2s",
    "hyper.probe": "http:8080/metrics",
    "hyper.probe.timeout": "500ms",
}
SERVED = ("relay_up", "probe_success")


def told(host: Host, *names: str) -> list[float | None]:
    return [host.value(f"container_{name}", name="shop") for name in names]


@pytest.mark.timeout(120)
def test_an_application_is_seen_without_a_way_to_it(host: Host, images: Images) -> None:
    labels = [word for key, value in LABELS.items() for word in ("--label", f"{key}={value}")]
    check = ("--health-cmd", "true", "--health-interval", "1s")
    host.run("--name", "shop", *labels, *check, images.busybox, "sh", "-c", SERVER)
    wait_for(lambda: told(host, *SERVED) == [1.0, 1.0], "relayed and probed")

    text = host.metrics()
    (orders,) = re.findall(r"^orders_total\{(.*)\} 7.0$", text, re.MULTILINE)
    container = host.inspect("shop")
    assert orders.startswith(f'id="{container["id"]}",name="shop",')
    assert orders.endswith(',exported_id="mine",kind="book"')
    assert "secret_total" not in text, "it is not on the list"
    assert re.search(r'container_relay_dropped_total\{[^}]*name="shop"[^}]*reason="reserved"\} [1-9]', text)
    for line in text.splitlines():
        assert not line.startswith("container_memory_usage_bytes") or not line.endswith(" 0.0"), "a forged series"
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    families = {family.name: family for family in parse_openmetrics(host.metrics("application/openmetrics-text"))}
    assert (families["orders"].type, families["orders"].samples[0].value) == ("counter", 7)
    wait_for(lambda: (told(host, "healthcheck_duration_seconds_count")[0] or 0) >= 2, "its health check has durations")

    # The kernel takes connections of a process that is stopped; the process does not.
    host.hyper("exec", "shop", "sh", "-c", "kill -STOP $(pidof httpd)")
    wait_for(lambda: told(host, *SERVED) == [0.0, 0.0], "it does not answer")
    text = host.metrics()
    assert "orders_total" not in text, "what it said before it stopped is not said any more"
    for reason in ("relay", "probe"):
        assert re.search(rf'container_{reason}_failures_total\{{[^}}]*reason="timeout"\}} [1-9]', text)
    rounds = host.value("container_last_seen", name="shop")
    assert rounds is not None
    wait_for(lambda: (host.value("container_last_seen", name="shop") or 0) >= rounds + 2, "rounds go on")
    assert [host.value("microvm_source_up", name="shop", source=source) for source in ("host", "vmm", "guest")] == [
        1.0, 1.0, 1.0,
    ]  # fmt: skip
    assert host.hyper("exec", "shop", "echo", "here").stdout == "here\n"

    host.hyper("exec", "shop", "sh", "-c", "kill -CONT $(pidof httpd)")
    wait_for(lambda: told(host, *SERVED) == [1.0, 1.0], "it answers again")
    host.hyper("exec", "shop", "sh", "-c", "kill -KILL $(pidof httpd)")
    wait_for(lambda: told(host, *SERVED) == [0.0, 0.0], "nobody listens")
    wait_for(
        lambda: re.search(r'container_probe_failures_total\{[^}]*reason="refused"\} [1-9]', host.metrics()), "refused"
    )
    assert host.value("container_state", name="shop", state="running") == 1.0
