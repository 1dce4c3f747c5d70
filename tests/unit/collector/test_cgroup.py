from __future__ import annotations

from typing import TYPE_CHECKING

from collector.sources.cgroup import CgroupReader, CgroupSample
from runtime.record import Cgroups

if TYPE_CHECKING:
    from pathlib import Path

NOT_READ = b"this is never read\n"


def test_of_two_hierarchies_each_file_is_read_where_its_controller_is(tmp_path: Path) -> None:
    """On a hybrid host CPU time is v2's, which needs no controller there, and memory is v1's, which has it."""
    files = {
        "v2/cpu.stat": b"usage_usec 2000000\n",
        "v2/memory.events": NOT_READ,
        "v2/memory.stat": NOT_READ,
        "v2/memory.max": NOT_READ,
        "cpuacct/cpuacct.usage": NOT_READ,
        "cpu/cpu.stat": b"nr_periods 7\nthrottled_time 3000000000\n",
        "memory/memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        "memory/memory.stat": b"cache 5000\nshmem 1000\n",
        "memory/memory.limit_in_bytes": b"6000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    reader = CgroupReader(Cgroups("/v2", {name: f"/{name}" for name in ("cpu", "cpuacct", "memory")}), tmp_path)
    assert reader.read(deep=True) == CgroupSample(2.0, 3.0, 4, page_cache_bytes=4000, memory_limit_bytes=6000)
    (tmp_path / "v2/cpu.stat").unlink()
    (tmp_path / "cpuacct/cpuacct.usage").write_bytes(b"5000000000\n")
    reader.close()
    assert reader.read().cpu_s == 5.0, "the group is not in v2 yet, or any more"
    reader.close()
