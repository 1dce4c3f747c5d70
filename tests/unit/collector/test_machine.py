from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector.catalogue import machine
from collector.errors import MalformedError
from collector.sources.machine import MachineReader, parse_topology_id

if TYPE_CHECKING:
    from pathlib import Path


def host(root: Path, cpus: list[tuple[str, str]]) -> MachineReader:
    """A host whose CPUs have these sockets and cores."""
    (root / "proc").mkdir(exist_ok=True)
    lines = "".join(f"cpu{n} 1 2 3 4 5 6 7 8 9 10\n" for n in range(len(cpus)))
    (root / "proc/stat").write_text(f"cpu  1 2 3 4 5 6 7 8 9 10\n{lines}")
    (root / "proc/meminfo").write_text("MemTotal:  1000 kB\nMemFree: 10 kB\nSwapTotal: 20 kB\n")
    for number, (socket, core) in enumerate(cpus):
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "physical_package_id").write_text(socket)
        (topology / "core_id").write_text(core)
    return MachineReader(root)


def told(reader: MachineReader) -> dict[str, float]:
    return {point.metric.name: point.value for point in reader.read()}


def test_two_sockets_of_two_cores_with_two_threads(tmp_path: Path) -> None:
    cpus = [(f"{socket}\n", f"{core}\n") for _ in range(2) for socket in range(2) for core in range(2)]
    reader = host(tmp_path, cpus)
    assert told(reader) == {
        machine.CPU_CORES.name: 8,
        machine.CPU_PHYSICAL_CORES.name: 4,
        machine.CPU_SOCKETS.name: 2,
        machine.MEMORY_BYTES.name: 1_024_000,
        machine.SWAP_BYTES.name: 20_480,
    }
    host(tmp_path, [*cpus, ("2\n", "0\n")])
    assert told(reader)[machine.CPU_SOCKETS.name] == 3, "a CPU was plugged in"
    reader.close()


@pytest.mark.parametrize("text", ["", "x", "99999999999999999999999"])
def test_a_topology_that_is_none_is_absent(text: str, tmp_path: Path) -> None:
    reader = host(tmp_path, [(text, "0\n")])
    assert machine.CPU_SOCKETS.name not in told(reader)
    assert told(reader)[machine.CPU_CORES.name] == 1
    reader.close()


def test_firmware_that_tells_no_id() -> None:
    assert parse_topology_id(b"-1\n") == -1
    with pytest.raises(MalformedError):
        parse_topology_id(b"-2\n")


def test_a_host_without_files_tells_nothing(tmp_path: Path) -> None:
    reader = MachineReader(tmp_path)
    assert reader.read() == ()
    reader.close()
