"""What is exported beside what independent tools say, inside the guest and on the host, for five kinds of load.

Counters are read while nothing happens, before and after the load, so that the same work is in both numbers. A reading
by tools is work of its own in the guest, a few tenths of a second of CPU under TCG: so CPU time is read last before the
load and first after it, and what one reading takes is printed and taken for what the two cannot tell apart.
"""

from __future__ import annotations

import http.server
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.host import running_host, wait_for
from tests.images.build import build
from tests.places import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images
    from tests.host import Host

LOAD_S = int(os.environ.get("HYPER_TRUTH_S", "30"))
REST_S = 3.0  # three samples
TICKS_PER_S = 100  # the guest kernel's USER_HZ
SECTOR_BYTES = 512
MIB = 1024**2
HELD_MIB, GROWN_MIB, WRITTEN_MIB, READ_MIB, SENT_MIB = 64, 64, 30, 40, 60
UNTIL = f'end=$(($(date +%s) + {LOAD_S})); while [ "$(date +%s)" -lt $end ]; do '
LOADS = {
    "idle": f"sleep {LOAD_S}",
    "cpu": f"{UNTIL} i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; done",
    "memory": f"{UNTIL} dd if=/dev/zero of=/dev/shm/grown bs=1M count={GROWN_MIB} 2>/dev/null; done",
    "disk": f"{UNTIL} dd if=/dev/zero of=/written bs=1M count={WRITTEN_MIB} conv=notrunc,fsync 2>/dev/null; "
    f"dd if=/read of=/dev/null bs=1M iflag=direct 2>/dev/null; done",
    "network": f"{UNTIL} wget -q -O /dev/null http://{{gateway}}:{{port}}/; done",
}
# So that the tools' own memory is little of what there is, something to read, and a socket that listens.
READY = (
    f"dd if=/dev/zero of=/dev/shm/held bs=1M count={HELD_MIB} 2>/dev/null; "
    f"dd if=/dev/zero of=/read bs=1M count={READ_MIB} conv=fsync 2>/dev/null; httpd -p 0.0.0.0:9 -h /tmp; "
)
CPU = "cat /proc/1/stat; vmstat -s | grep 'cpu ticks'"
OTHERS = "cat /sys/fs/cgroup/memory.current; free -b | sed -n 2p; iostat -d -k vdb | grep vdb; ss -4Htln | wc -l"
BUSY_TICKS = ("non-nice user", "nice user", "system", "IRQ", "softirq")
# What the tools cannot tell apart: ticks, the command that begins the load, the file system's own blocks.
CPU_FLOOR_S, BYTES_FLOOR = 0.06, 256 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """One reading by the tools: totals in seconds and bytes."""

    cpu_s: float
    guest_cpu_s: float
    qemu_cpu_s: float
    memory: int
    free: int
    disk_read: int
    disk_written: int
    received: int
    sent: int
    listens: int


def by_tools(host: Host, name: str, *, cpu_last: bool = False) -> Told:
    """Read them, CPU time first or last.

    In the guest proc(5), the control group's own file, free(1), vmstat(8), iostat(1) and ss(8); outside the process and
    the tap.
    """
    one = host.inspect(name)
    of_qemu = psutil.Process(one["vm"]["pid"])

    def look(commands: str) -> list[str]:
        return host.hyper("exec", name, "sh", "-c", commands).stdout.splitlines()

    if cpu_last:
        others = look(OTHERS)
        stat, *ticks = look(CPU)
        qemu_times = of_qemu.cpu_times()
    else:
        qemu_times = of_qemu.cpu_times()
        stat, *ticks = look(CPU)
        others = look(OTHERS)
    memory, free, disk, listens = others
    times = [int(field) for field in stat.rpartition(")")[2].split()[11:15]]
    busy = {line.split(maxsplit=1)[1].removesuffix(" cpu ticks"): int(line.split()[0]) for line in ticks}
    tap = Path("/sys/class/net", one["network"]["tap"], "statistics")
    fields = disk.split()  # Device tps kB_read/s kB_wrtn/s kB_dscd/s kB_read kB_wrtn kB_dscd
    return Told(
        cpu_s=sum(times) / TICKS_PER_S,
        guest_cpu_s=sum(busy[name] for name in BUSY_TICKS) / TICKS_PER_S,
        qemu_cpu_s=qemu_times.user + qemu_times.system,
        memory=int(memory),
        free=int(free.split()[3]),
        disk_read=int(fields[5]) * 1024,
        disk_written=int(fields[6]) * 1024,
        received=int((tap / "tx_bytes").read_text()),
        sent=int((tap / "rx_bytes").read_text()),
        listens=int(listens),
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
        "guest_cpu_s": value("microvm_guest_cpu_seconds_total"),
        "qemu_cpu_s": sum(billed),
        "vcpu_s": billed[0],
        "residual_s": value("microvm_view_residual_seconds"),
        "memory": value("container_memory_usage_bytes"),
        "disk_read": value("container_fs_reads_bytes_total", device="/dev/vdb"),
        "disk_written": value("container_fs_writes_bytes_total", device="/dev/vdb"),
        "vmm_read": value("microvm_block_bytes_total", device="writable", op="read"),
        "vmm_written": value("microvm_block_bytes_total", device="writable", op="write"),
        "received": value("container_network_receive_bytes_total"),
        "sent": value("container_network_transmit_bytes_total"),
        "listens": value("container_network_tcp_usage_total", tcp_state="listen"),
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
    with serving(server):
        yield server.server_address[1]


def row(
    load: str, what: str, told: float, said: float, most: float | None, *, floor: float = 0.0, per: float = MIB
) -> str | None:
    """Print a line of the table; returns what is wrong with it.

    Args:
        load, what: Which figure it is.
        told: By the tools.
        said: By the exporter.
        most: Largest error in relation to `told`; None: it is only shown.
        floor: A difference up to this is none.
        per: The unit to print.
    """
    difference = abs(said - told)
    error = f"{difference / told * 100:.2f} %" if told > floor else f"{difference / per:.2f}"
    print(f"| {load} | {what} | {told / per:.2f} | {said / per:.2f} | {error} |")
    return f"{load}: {what}: {told} {said}" if most is not None and difference > max(most * told, floor) else None


@pytest.mark.timeout(900)
def test_what_is_exported_is_what_tools_say(images: Images) -> None:
    wrong: list[str | None] = []
    images.registry.push(build("tools"), "tools")
    image = f"{images.registry.address}/tools"
    print("\n| load | what | by tools | exported | error |\n|---|---|---:|---:|---:|")
    with running_host(image, deep="true") as host:
        host.start_exporter()
        gateway = host.env["HYPER_SUBNET"].replace(".0/24", ".1")
        with blob_server(gateway) as port:
            for load, command in LOADS.items():
                wrong += one_load(host, image, load, command.format(gateway=gateway, port=port))
    assert not [line for line in wrong if line]


def one_load(host: Host, image: str, load: str, command: str) -> list[str | None]:
    """Run it in a container of its own, and print what was said of it."""
    script = f"{READY} while [ ! -e /go ]; do sleep 0.5; done; {command}; echo done; while :; do sleep 60; done"
    host.run("--name", load, "--memory", "256m", "--shm-size", "200m", image, "sh", "-c", script)
    wait_for(lambda: host.value("microvm_view_residual_seconds", name=load) is not None, "sampled", 30)
    by_tools(host, load)  # what they read of the disk, they have read
    wait_for(lambda: by_tools(host, load).listens, "the socket listens", 30)
    tools = by_tools(host, load, cpu_last=True)
    time.sleep(REST_S)  # what they took is in both numbers
    ours = exported(host, load)
    host.hyper("exec", load, "touch", "/go")
    wait_for(lambda: "done" in host.hyper("logs", load).stdout, "the load has ended", LOAD_S + 90)
    time.sleep(REST_S)
    then_ours, then_tools = exported(host, load), by_tools(host, load)
    time.sleep(REST_S)
    reading = by_tools(host, load)
    grown = {name: then_ours[name] - ours[name] for name in ours}

    def told(name: str) -> float:
        return float(getattr(then_tools, name) - getattr(tools, name))

    def cpu(what: str, name: str) -> str | None:
        cost = max(0.0, getattr(reading, name) - getattr(then_tools, name))
        print(f"| {load} | CPU of {what} for one reading, s | {cost:.2f} | | |")
        return row(load, f"CPU of {what}, s", told(name), grown[name], 0.05, floor=CPU_FLOOR_S + cost, per=1)

    def moved(what: str, name: str, ours: str | None = None) -> str | None:
        return row(load, f"{what}, MiB", told(name), grown[ours or name], 0.02, floor=BYTES_FLOOR)

    wrong = [cpu("the container", "cpu_s"), cpu("the guest", "guest_cpu_s"), cpu("QEMU", "qemu_cpu_s")]
    wrong.append(row(load, "memory of the container, MiB", then_tools.memory, then_ours["memory"], 0.02))
    row(load, "what free(1) has less, MiB", -told("free"), grown["memory"], None)
    wrong += [moved("read, control group", "disk_read"), moved("read, QEMU", "disk_read", "vmm_read")]
    wrong += [moved("written, control group", "disk_written"), moved("written, QEMU", "disk_written", "vmm_written")]
    wrong += [moved("received", "received"), moved("sent", "sent")]
    wrong.append(row(load, "sockets that listen", then_tools.listens, then_ours["listens"], 0.0, per=1))
    share = then_ours["residual_s"] / then_ours["vcpu_s"]
    print(f"| {load} | view residual, share of the vCPU's time | | {share * 100:.2f} % | |")
    wrong.append(f"{load}: residual {share:.3f}" if share > 0.05 else None)
    host.hyper("rm", "-f", load)
    return wrong
