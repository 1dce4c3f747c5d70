from __future__ import annotations

import pytest

from collector import details
from collector.errors import MalformedError
from collector.sources import links
from tests.fakevm.scenario import BASE


def test_a_tap_is_found_among_the_host_s_interfaces() -> None:
    found = links.index((BASE / "host/proc/net/dev").read_bytes())
    tap = links.counters("hyp3f", found)
    assert tap is not None
    points = {(p.metric.name, *p.label_values): p.value for p in details.tap_points(tap)}
    assert points["microvm_host_network_bytes_total", "transmit"] == 4212, "what the host received"
    assert points["microvm_host_network_bytes_total", "receive"] == 5390
    assert points["microvm_host_network_dropped_total", "receive"] == 2
    assert links.counters("hyp", found) is None
    with pytest.raises(MalformedError):
        links.counters("x", {"x": b" 1 2"})
