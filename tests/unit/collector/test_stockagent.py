"""What differs between versions of qemu-ga, of which `tests/contract/test_exporter_stock_agent.py` asks one."""

from __future__ import annotations

import pytest

from collector.errors import MalformedError
from collector.sources import stockagent


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"total-bytes": 95, "used-bytes": 40}, (95, 40)),
        ({"total-bytes": 95, "total-bytes-privileged": 100, "used-bytes": 40}, (100, 40)),
        ({"used-bytes": 40}, None),
        ({}, None),
    ],
    ids=["7.1", "9.1", "no size", "3.0"],
)
def test_the_root_s_size_is_with_what_is_kept_for_root_where_that_is_told(
    told: dict[str, int], found: tuple[int, int] | None
) -> None:
    other = {"mountpoint": "/boot", "total-bytes": 7, "used-bytes": 1, "name": "vda1", "type": "ext4", "disk": []}
    answer = [other, {"mountpoint": "/", "name": "vda2", "type": "ext4", "disk": [], **told}]
    assert stockagent.parse_root(answer) == found


def test_a_device_number_has_at_most_ten_digits() -> None:
    stats = {"read-ios": 1, "write-ios": 1, "total-ticks": 1}
    entry = {"name": "vda", "major": 254, "minor": 10**10 - 1, "stats": stats}
    assert stockagent.parse_disks([entry])[1]["vda"][0] == b"254:9999999999"
    with pytest.raises(MalformedError):
        stockagent.parse_disks([{**entry, "minor": 10**10}])
