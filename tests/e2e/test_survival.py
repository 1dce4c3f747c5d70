"""kill -9 of the daemons and a wedged QEMU: containers go on, both come back to the same state, nobody else waits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.host import free_port, get, wait_for

if TYPE_CHECKING:
    from tests.e2e.conftest import Images
    from tests.host import Host


def comparable(host: Host, name: str) -> dict[str, object]:
    """What of a container must not change by a restart of the daemon."""
    found = host.inspect(name)
    del found["status"]
    return found


def test_containers_outlive_hyperd(host: Host, images: Images) -> None:
    port = free_port()
    host.run("--name", "lives", "-p", f"{port}:80", images.nginx)
    wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "nginx answers")
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
    host.run("--name", "counts", images.busybox, "sh", "-c", script)
    host.run("--name", "ends", images.busybox, "sh", "-c", "sleep 2; exit 7")
    wait_for(lambda: host.hyper("logs", "counts").stdout, "the first line")
    before = {name: comparable(host, name) for name in ("lives", "counts")}
    host.hyperd.kill()
    assert "Hello" in get(f"http://127.0.0.1:{port}/"), "the port is published without the daemon"
    time.sleep(2.5)  # `ends` ends meanwhile; there is nothing to ask
    host.start()
    assert {name: comparable(host, name) for name in ("lives", "counts")} == before
    ended = host.inspect("ends")
    assert (ended["state"], ended["exit_code"]) == ("exited", 7)
    lines = host.hyper("logs", "counts").stdout.split()
    assert lines == [str(i) for i in range(1, len(lines) + 1)], "no line lost or doubled"
    assert len(lines) > 40
    assert host.hyper("exec", "counts", "echo", "hello").stdout == "hello\n"
    host.hyper("stop", "lives")
    assert host.inspect("lives")["state"] == "exited"


def test_a_start_that_was_interrupted_is_finished(host: Host, images: Images) -> None:
    host.hyper("create", "--name", "late", images.busybox, "sleep", "600")
    starting = subprocess.Popen(
        [host.hyper_program, "start", "late"], env={**os.environ, **host.env}, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: list(host.state_dir.glob("containers/*/qemu.log")), "QEMU is being started", interval_s=0.002)
    host.hyperd.kill()
    starting.wait()
    host.start()
    wait_for(lambda: host.inspect("late")["state"] == "running", "the start is finished", 60)
    assert host.hyper("exec", "late", "echo", "hello").stdout == "hello\n"
    assert len([one for one in host.leftovers() if one.startswith("process")]) == 1


def test_exporter_comes_back(host: Host, images: Images) -> None:
    host.run("--name", "seen", images.busybox, "sleep", "600")
    wait_for(lambda: host.value("container_start_time_seconds", name="seen"), "seen before")
    before = host.value("container_start_time_seconds", name="seen")
    host.hyper_exporter.kill()
    assert host.inspect("seen")["state"] == "running"
    host.start_exporter()
    wait_for(lambda: host.value("container_memory_usage_bytes", name="seen"), "seen after")
    assert host.value("container_start_time_seconds", name="seen") == before


def test_qemu_killed(host: Host, images: Images) -> None:
    host.run("--name", "dies", images.busybox, "sleep", "600")
    os.kill(host.inspect("dies")["vm"]["pid"], signal.SIGKILL)
    ended = wait_for(lambda: (one := host.inspect("dies"))["state"] == "exited" and one, "the end is noticed")
    assert ended["exit_code"] == 137
    assert "without a word" in ended["error"]
    assert ended["desired"] == "running"
    host.hyper("start", "dies")
    assert host.hyper("exec", "dies", "echo", "back").stdout == "back\n"


def test_a_wedged_guest_delays_nobody(host: Host, images: Images) -> None:
    host.run("--name", "wedged", images.busybox, "sleep", "600")
    host.run("--name", "well", images.busybox, "sleep", "600")
    wait_for(lambda: host.value("microvm_source_up", name="wedged", source="guest") == 1, "sampled")
    pid = host.inspect("wedged")["vm"]["pid"]
    before = min(timed(host.metrics) for _ in range(5))
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: host.value("microvm_source_up", name="wedged", source="guest") == 0, "found to be wedged")
        during = min(timed(host.metrics) for _ in range(5))
        print(f"\nscrape: {before * 1000:.1f} ms before, {during * 1000:.1f} ms with a wedged guest")
        assert during < 3 * before + 0.05
        began = time.monotonic()
        assert host.hyper("exec", "well", "echo", "hello").stdout == "hello\n"
        host.run("--name", "new", images.busybox, "sleep", "600")
        assert time.monotonic() - began < 10
        wait_for(lambda: host.value("container_memory_usage_bytes", name="new"), "the new one is sampled")
        age = host.value("microvm_sample_age_seconds", name="well", source="guest")
        assert age is not None
        assert age < 5
        host.hyper("rm", "-f", "wedged")
        assert not Path(f"/proc/{pid}").exists()
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def timed(call: object) -> float:
    began = time.monotonic()
    call()  # type: ignore[operator]  # a function without arguments
    return time.monotonic() - began
