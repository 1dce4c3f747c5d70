"""Two clones of one template are two machines: in their randomness, their identity, their address and their clock."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from runtime.vm.agent import Agent
from tests.host import Host, about, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

CLOCK_S = 0.05
AGE_S = 5.0
PAUSE_S = 3.0
READS = 15
# The very first that a container's process sees.
LOOK = (
    "head -c 64 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /etc/machine-id; hostname;"
    "cat /sys/class/net/eth0/address /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; sleep 100000"
)


class Identity(NamedTuple):
    urandom: str
    machine_id: str
    hostname: str
    mac: str
    boot_id: str
    uuid: str


@pytest.fixture(scope="module")
def hosts(images: Images) -> Iterator[dict[str, Host]]:
    """One host whose clones are made for a start, and one whose clones wait in a pool; all are some seconds old."""
    made = {"template": Host(accel="tcg"), "pool": Host(accel="tcg", pool_depth=3)}
    try:
        for one in made.values():
            one.start()
            one.hyper("pull", images.busybox)
            wait_for(lambda one=one: "templates ready: 1" in one.hyper("info").stdout, "the template is built", 90)
            # An image that has a machine-id: only there is one of ours seen.
            one.run("--name", "base", images.busybox, "sh", "-c", "echo 0 > /etc/machine-id; sleep 100000")
            wait_for(
                lambda one=one: one.hyper("exec", "base", "cat", "/etc/machine-id", check=False).stdout,
                "its machine-id",
            )
            one.hyper("commit", "base", "with-id:1")
            one.hyper("rm", "-f", "base")
        wait_for(lambda: about(made["pool"])["pool_waiting"] >= 3, "the pool is full", 90)
        full = time.monotonic()
        wait_for(lambda: time.monotonic() - full > AGE_S, "template and clones have an age", AGE_S + 1)
        yield made
    except BaseException:
        for one in made.values():
            print(one.hyperd.log.read_text()[-3000:])
        raise
    finally:
        for one in made.values():
            one.close()


def identity(host: Host, name: str) -> Identity:
    lines = wait_for(lambda: (found := host.hyper("logs", name).stdout.split()) and len(found) == 6 and found, name)
    return Identity(*lines)


def clock_error_s(host: Host, name: str, path: Path | None = None) -> float:
    """How far the guest's clock is from the host's, by the shortest of some exchanges; at most half of that more."""
    path = path or host.state_dir / "containers" / host.inspect(name)["id"] / "agent-stats.sock"

    async def exchanges() -> list[tuple[float, float]]:
        agent, found = Agent(path), []
        await agent.call("guest-ping")
        for _ in range(READS):
            before = time.time()
            told = await agent.call("guest-get-time") / 1e9
            after = time.time()
            found.append((after - before, told - (before + after) / 2))
        agent.close()
        return found

    shortest, error_s = min(asyncio.run(exchanges()))
    print(f"{name}: clock {1e3 * error_s:+.2f} ms off, exchange {1e3 * shortest:.2f} ms")
    assert shortest < CLOCK_S, "a longer exchange says nothing"
    return abs(error_s)


@pytest.mark.parametrize("path", ["template", "pool"])
def test_clones_differ(hosts: dict[str, Host], path: str) -> None:
    host = hosts[path]
    names = [f"{path}-{number}" for number in range(3)]
    for name in names:
        host.run("--name", name, "with-id:1", "sh", "-c", LOOK)
    shown = [host.inspect(name) for name in names]
    assert {one["vm"]["start_path"] for one in shown} == {path}
    found = [identity(host, name) for name in names]
    for member in Identity._fields:
        values = [getattr(one, member) for one in found]
        assert len(set(values)) == len(values), (member, values)
    for one, told in zip(shown, found, strict=True):
        assert told.machine_id == one["id"][:32]
        assert told.hostname == one["id"][:12]
        assert told.mac == one["network"]["mac"]
        assert len(told.urandom) == 128
    # Bytes in the same place are equal as often as chance has it: 1 in 256.
    for one in found:
        for other in found:
            if one is not other:
                pairs = zip(bytes.fromhex(one.urandom), bytes.fromhex(other.urandom), strict=True)
                assert sum(left == right for left, right in pairs) < 8
    for name in names:
        assert clock_error_s(host, name) < CLOCK_S
    host.hyper("rm", "-f", *names)


@pytest.mark.parametrize("path", ["template", "pool"])
def test_a_container_that_is_started_again_is_another_machine(hosts: dict[str, Host], path: str) -> None:
    """Its names stay; nothing that is to be unguessable does."""
    host = hosts[path]
    host.run("--name", "again", "with-id:1", "sh", "-c", LOOK)
    first = identity(host, "again")
    host.hyper("restart", "-t", "0", "again")
    lines = wait_for(
        lambda: len(found := host.hyper("logs", "again").stdout.split()) == 12 and found, "the second look"
    )
    second = Identity(*lines[6:])
    assert first[1:4] == second[1:4]
    assert not {first.urandom, first.boot_id, first.uuid} & {second.urandom, second.boot_id, second.uuid}
    assert clock_error_s(host, "again") < CLOCK_S
    host.hyper("rm", "-f", "again")


def test_the_layer_that_a_template_has_mounted_becomes_each_containers_own(
    hosts: dict[str, Host], images: Images
) -> None:
    """Through an end in order, one without, and a template that is loaded again; no layer meets another's memory."""
    host = hosts["template"]
    names = ("stopped", "killed", "loaded")

    def check(name: str, starts: int) -> None:
        def read() -> str:
            return host.hyper("exec", name, "cat", "/mine", check=False).stdout

        wait_for(lambda: read().count("\n") >= starts, "it writes to its disk")
        assert read() == f"{name}\n" * starts
        assert "barrier" in host.hyper("exec", name, "cat", "/proc/fs/ext4/vdb/options").stdout.split()
        assert host.inspect(name)["vm"]["start_path"] == "template"

    def run(name: str) -> None:
        host.run("--name", name, images.busybox, "sh", "-c", f"echo {name} >> /mine; sync; exec sleep 100000")
        check(name, 1)

    run("stopped")
    run("killed")
    host.hyperd.stop()
    host.hyperd.start()
    host.hyperd.ready(lambda: "templates ready: 1" in host.hyper("info").stdout)
    run("loaded")
    os.kill(host.inspect("killed")["vm"]["pid"], signal.SIGKILL)
    wait_for(lambda: host.inspect("killed")["state"] == "exited", "its QEMU is gone")
    host.hyper("stop", "-t", "0", "stopped", "loaded")
    for name in names:
        host.hyper("start", name)
        check(name, 2)
    ids = [host.inspect(name)["id"] for name in names]
    host.hyper("stop", "-t", "0", *names)
    for id_ in ids:
        file = host.data_dir / "containers" / id_ / "writable.ext4"
        looked = subprocess.run(["e2fsck", "-f", "-n", str(file)], capture_output=True, text=True, check=False)
        assert looked.returncode == 0, looked.stdout
    host.hyper("rm", *names)


@pytest.mark.parametrize("path", ["template", "pool"])
def test_the_clock_is_right_after_a_pause(hosts: dict[str, Host], path: str) -> None:
    host = hosts[path]
    host.run("--name", "paused", "with-id:1", "sleep", "100000")
    host.hyper("pause", "paused")
    paused = time.monotonic()
    wait_for(lambda: time.monotonic() - paused > PAUSE_S, "it has stood still for a while", PAUSE_S + 1)
    host.hyper("unpause", "paused")
    assert clock_error_s(host, "paused") < CLOCK_S
    # What a process of the container sees is the same clock.
    before = time.time()
    seen = float(host.hyper("exec", "paused", "date", "+%s").stdout)
    assert before - 1 - CLOCK_S <= seen <= time.time() + CLOCK_S
    host.hyper("rm", "-f", "paused")


def test_a_clock_that_is_wrong_is_set_when_the_daemon_has_come_back(hosts: dict[str, Host], images: Images) -> None:
    """While it was away, the host's clock may have jumped; here the guest's is set wrong instead."""
    host = hosts["template"]
    host.run("--name", "hours", images.busybox, "sleep", "100000")
    path = host.state_dir / "containers" / host.inspect("hours")["id"] / "agent.sock"
    host.hyperd.kill()

    async def set_wrong() -> None:
        agent = Agent(path)
        await agent.call("guest-set-time", time=time.time_ns() - 3600 * 10**9)
        agent.close()

    asyncio.run(set_wrong())
    assert clock_error_s(host, "hours", path.with_name("agent-stats.sock")) > 3000
    host.start()
    wait_for(lambda: clock_error_s(host, "hours") < CLOCK_S, "its clock is right")
    assert "the clock of hours was -3" in host.hyperd.log.read_text()
    host.hyper("rm", "-f", "hours")
