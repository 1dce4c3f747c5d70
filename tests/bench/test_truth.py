"""What is exported beside what independent tools say, inside the guest and on the host, for five kinds of load.

Counters are read while nothing happens, before and after the load, so that the same work is in both numbers.
"""

from __future__ import annotations

import http.server
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.host import running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

LOAD_S = int(os.environ.get("HYPER_TRUTH_S", "30"))
REST_S = 3.0  # three samples
TICKS_PER_S = 100  # the guest kernel's USER_HZ
SECTOR_BYTES = 512
MIB = 1024**2
HELD_MIB, WRITTEN_MIB, SENT_MIB = 64, 150, 60
LOADS = {
    "idle": f"sleep {LOAD_S}",
    "cpu": f"timeout {LOAD_S} sh -c 'while :; do :; done'",
    "memory": f"dd if=/dev/zero of=/dev/shm/held bs=1M count={HELD_MIB} 2>/dev/null",
    "disk": f"dd if=/dev/zero of=/written bs=1M count={WRITTEN_MIB} conv=fsync 2>/dev/null",
    "network": "wget -q -O /dev/null http://{gateway}:{port}/",
}
LOOK = "cat /proc/1/stat; echo; cat /sys/fs/cgroup/memory.current; free -k | sed -n 2p; grep ' vdb ' /proc/diskstats"


@dataclass(frozen=True, slots=True)
class Told:
    """One reading by the tools: totals in seconds and bytes."""

    cpu_s: float
    qemu_cpu_s: float
    memory: int
    free: int
    disk_read: int
    disk_written: int
    received: int
    sent: int


def by_tools(host: Host, name: str) -> Told:
    """Read them: proc(5), the control group's own file, free(1) and diskstats in the guest; ps and the tap outside."""
    stat, _, memory, free, disk = host.hyper("exec", name, "sh", "-c", LOOK).stdout.splitlines()
    ticks = [int(field) for field in stat.rpartition(")")[2].split()[11:15]]
    one = host.inspect(name)
    tap = Path("/sys/class/net", one["network"]["tap"], "statistics")
    times = psutil.Process(one["vm"]["pid"]).cpu_times()
    fields = disk.split()
    return Told(
        cpu_s=sum(ticks) / TICKS_PER_S,
        qemu_cpu_s=times.user + times.system,
        memory=int(memory),
        free=int(free.split()[3]) * 1024,
        disk_read=int(fields[5]) * SECTOR_BYTES,
        disk_written=int(fields[9]) * SECTOR_BYTES,
        received=int((tap / "tx_bytes").read_text()),
        sent=int((tap / "rx_bytes").read_text()),
    )


def exported(host: Host, name: str) -> dict[str, float]:
    """The same by the exporter, and what it says of residuals."""

    def value(metric: str, **labels: str) -> float:
        found = host.value(metric, name=name, **labels)
        assert found is not None, metric
        return found

    parts = ("vcpu", "iothread", "main", "other")
    billed = [host.value("microvm_host_cpu_seconds_total", name=name, part=part) or 0 for part in parts]
    return {
        "cpu_s": value("container_cpu_usage_seconds_total"),
        "qemu_cpu_s": sum(billed),
        "vcpu_s": billed[0],
        "residual_s": value("microvm_view_residual_seconds"),
        "memory": value("container_memory_usage_bytes"),
        "disk_written": value("container_fs_writes_bytes_total", device="/dev/vdb"),
        "vmm_written": value("microvm_block_bytes_total", device="writable", op="write"),
        "received": value("container_network_receive_bytes_total"),
        "sent": value("container_network_transmit_bytes_total"),
    }


@contextmanager
def blob_server(address: str) -> Iterator[int]:
    """Sends `SENT_MIB` to whoever asks; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SENT_MIB * MIB))
            self.end_headers()
            for _ in range(SENT_MIB):
                self.wfile.write(bytes(MIB))

        def log_message(self, *args: object) -> None:
            del args

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def row(load: str, what: str, told: float, said: float, most: float | None, *, per: float = MIB) -> str | None:
    """Print a line of the table; returns what is wrong with it."""
    error = abs(said - told) / told if told else abs(said)
    print(f"| {load} | {what} | {told / per:.2f} | {said / per:.2f} | {error * 100:.2f} % |")
    return f"{load}: {what}: {error:.3f}" if most is not None and error > most else None


@pytest.mark.timeout(600)
def test_what_is_exported_is_what_tools_say(images: Images) -> None:
    wrong: list[str | None] = []
    print("\n| load | what | by tools | exported | error |\n|---|---|---:|---:|---:|")
    with running_host(images.busybox, deep="true") as host:
        host.start_exporter()
        gateway = host.env["HYPER_SUBNET"].replace(".0/24", ".1")
        with blob_server(gateway) as port:
            for load, command in LOADS.items():
                wrong += one_load(host, images.busybox, load, command.format(gateway=gateway, port=port))
    assert not [line for line in wrong if line]


def one_load(host: Host, image: str, load: str, command: str) -> list[str | None]:
    """Run it in a container of its own, and print what was said of it."""
    script = f"while [ ! -e /go ]; do sleep 0.5; done; {command}; echo done; while :; do sleep 60; done"
    host.run("--name", load, "--memory", "128m", image, "sh", "-c", script)
    wait_for(lambda: host.value("microvm_view_residual_seconds", name=load) is not None, "sampled", 30)
    by_tools(host, load)  # what they read of the disk, they have read
    time.sleep(REST_S)
    tools, ours = by_tools(host, load), exported(host, load)
    host.hyper("exec", load, "touch", "/go")
    wait_for(lambda: "done" in host.hyper("logs", load).stdout, "the load has ended", LOAD_S + 60)
    time.sleep(REST_S)
    then_ours, then_tools = exported(host, load), by_tools(host, load)
    grown = {name: then_ours[name] - ours[name] for name in ours}

    def told(name: str) -> float:
        return float(getattr(then_tools, name) - getattr(tools, name))

    wrong: list[str | None] = []
    # Of an idle one the tools themselves are most of what is used: they are in its group, and not below its process.
    wrong.append(
        row(load, "CPU of the container, s", told("cpu_s"), grown["cpu_s"], 0.05 if load == "cpu" else None, per=1)
    )
    wrong.append(
        row(load, "CPU of QEMU, s", told("qemu_cpu_s"), grown["qemu_cpu_s"], 0.05 if load == "cpu" else None, per=1)
    )
    if load == "memory":
        wrong.append(row(load, "memory of the container, MiB", then_tools.memory, then_ours["memory"], 0.02))
        row(load, "the same, by what free(1) has less, MiB", -told("free"), grown["memory"], None)
    if load == "disk":
        wrong.append(row(load, "written, MiB, control group", told("disk_written"), grown["disk_written"], 0.02))
        wrong.append(row(load, "written, MiB, QEMU", told("disk_written"), grown["vmm_written"], 0.02))
    if load == "network":
        wrong.append(row(load, "received, MiB", told("received"), grown["received"], 0.02))
        wrong.append(row(load, "sent, MiB", told("sent"), grown["sent"], 0.02))
    share = then_ours["residual_s"] / then_ours["vcpu_s"]
    print(f"| {load} | view residual, share of the vCPU's time | | {share * 100:.2f} % | |")
    wrong.append(f"{load}: residual {share:.3f}" if share > 0.05 else None)
    host.hyper("rm", "-f", load)
    return wrong
