"""kill -9 of the daemons and a wedged QEMU: containers go on, both come back to the same state, nobody else waits."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.network import links
from tests.host import free_port, get, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def test_who_calls_while_hyperd_comes_back_is_not_turned_away(host: Host) -> None:
    network = ipaddress.IPv4Network(host.env["HYPER_SUBNET"])
    assert links.is_set_up(host.bridge, network), "and it takes no time for its bridge"
    assert not links.is_set_up(host.bridge, ipaddress.IPv4Network("192.0.2.0/24"))
    assert not links.is_set_up("lo", network)
    place = host.state_dir / "stand-in"  # any user can reach it, as VMs have users of their own
    place.mkdir()
    gate, qemu = place / "gate", place / "qemu"
    os.mkfifo(gate)
    gate.chmod(0o644)
    qemu.write_text(f'#!/bin/sh\nread line < {gate}\nexec qemu-system-x86_64 "$@"\n')
    qemu.chmod(0o755)
    host.hyperd.kill()
    host.hyperd.env["HYPER_QEMU"] = str(qemu)
    try:
        host.hyperd.start()
        with gate.open("w"):  # which the daemon has come to when this returns: it is asking for the version
            calling = subprocess.Popen(
                [host.hyper_program, "ps", "-q"], env={**os.environ, **host.env}, stderr=subprocess.DEVNULL
            )
            arrived = f"{host.state_dir}/hyperd.sock"
            wait_for(lambda: connections(arrived) > 0 or calling.poll() is not None, "the call has arrived")
            assert calling.poll() is None
        assert calling.wait(60) == 0
        assert "Warning" not in host.hyperd.log.read_text()
    finally:
        host.hyperd.env.pop("HYPER_QEMU")
        host.hyperd.kill()
        shutil.rmtree(place)
        host.start()


def connections(path: str) -> int:
    """How many have connected to a unix socket (proc(5), net/unix: 01 is who listens)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(row[-1] == path and row[5] != "01" for row in rows)


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


OURS, THEIRS = "0123456789abcdef" * 4, "fedcba9876543210" * 4


def orphans(host: Host) -> list[Path]:
    """Make what a daemon that is killed at various points leaves, beside a VM."""
    data = host.data_dir
    directories = [
        *(parent / "containers" / OURS for parent in (host.state_dir, data)),
        *(data / kind / name for kind in ("volumes", "snapshots") for name in (".new-half", ".gone-half")),
        data / "images" / ".tmp-half",
        data / "images" / OURS,
        *groups(host, f"{host.cgroup_parent}/{OURS}"),
        *groups(host, f"{host.cgroup_parent}/files-{OURS}"),
    ]
    for one in directories:
        one.mkdir(parents=True)
    files = [data / "blobs/sha256" / name for name in (f".{OURS}.4711", f".trash-{OURS}.0123")]
    for one in files:
        one.write_text("half")
    return [*directories, *files]


def groups(host: Host, name: str) -> list[Path]:
    """Control groups of a name in each hierarchy that the host's daemon uses."""
    trees = [
        path.parent for level in ("", "*/") for path in Path("/sys/fs/cgroup").glob(f"{level}{host.cgroup_parent}")
    ]
    return [tree / name for tree in trees]


@contextlib.contextmanager
def foreign(host: Host) -> Iterator[Callable[[], dict[str, object]]]:
    """Look-alikes of what is ours, beside it, above it and in the midst of it; gives how to look at all of them."""
    data, tag = host.data_dir, host.bridge[-4:]
    tap, bridge, table = f"hyp{THEIRS[:8]}{tag}", f"hyz{tag}", f"hyper_hyz{tag}"
    disk, mounted = data / "disk.img", data / "volumes/theirs"
    made = [*groups(host, f"{host.cgroup_parent}/somebody"), *groups(host, f"{host.cgroup_parent}-other/{THEIRS}")]
    # Volumes whose rows a database that was lost had: what they hold is somebody's.
    lost = [data / kind / "norow" for kind in ("volumes", "snapshots")]
    directories = [
        *(
            data / kind / name
            for kind in ("containers", "volumes", "snapshots", "images")
            for name in ("lost+found", "x")
        ),
        *(host.state_dir / kind / "theirs" for kind in ("containers", "pool")),
        data / "pool/theirs",
        mounted,
    ]
    command = ["-c", "import time; time.sleep(600)", "-name", f"hyper-{THEIRS}"]
    like_qemu = [
        subprocess.Popen(["qemu-system-x86_64", *command], executable=sys.executable, stdin=subprocess.DEVNULL)
        for _ in range(2)
    ]
    with contextlib.ExitStack() as stack:
        for process in like_qemu:
            stack.callback(process.wait)
            stack.callback(process.kill)

        def run(*arguments: str | Path, undo: tuple[str | Path, ...]) -> str:
            done = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()
            stack.callback(subprocess.run, undo, check=True, capture_output=True)
            return done

        for one in made:
            one.mkdir(parents=True)
            if one.parent.name.endswith("-other"):
                stack.callback(one.parent.rmdir)
            stack.callback(one.rmdir)
            (one / "cgroup.procs").write_text(str(like_qemu[0].pid))
        for one in made:
            stack.callback((one.parents[1] / "cgroup.procs").write_text, str(like_qemu[0].pid))
        run("ip", "tuntap", "add", tap, "mode", "tap", undo=("ip", "link", "del", tap))
        run("ip", "link", "add", bridge, "type", "bridge", undo=("ip", "link", "del", bridge))
        run("nft", "add", "table", "ip", table, undo=("nft", "delete", "table", "ip", table))
        for one in directories:
            one.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, one, ignore_errors=True)
        for one in lost:
            one.mkdir()
            stack.callback(shutil.rmtree, one, ignore_errors=True)
        run("mount", "-t", "tmpfs", "theirs", mounted, undo=("umount", mounted))
        files = {one / "kept" for one in directories if one.name != "lost+found"}
        files |= {one.with_name("note") for one in directories} | {data / "blobs/sha256/note", disk}
        files |= {one / "volume.ext4" for one in lost}
        for one in files:
            one.write_text("theirs")
            stack.callback(one.unlink)
        os.truncate(disk, 1 << 20)
        loop = run("losetup", "--show", "-f", disk, undo=("true",))
        stack.callback(subprocess.run, ["losetup", "-d", loop], check=True)

        def seen() -> dict[str, object]:
            return {
                "processes": [process.poll() for process in like_qemu],
                "groups": [(one / "cgroup.procs").read_text().split() for one in made],
                "links": [Path(f"/sys/class/net/{one}/ifindex").read_text() for one in (tap, bridge)],
                "table": subprocess.run(
                    ["nft", "-a", "list", "table", "ip", table], check=True, capture_output=True
                ).stdout,
                "directories": [
                    (one.stat().st_ino, sorted(path.name for path in one.iterdir())) for one in directories
                ],
                "files": [(one.stat().st_ino, one.stat().st_mtime_ns, one.read_bytes()[:6]) for one in files],
                "mount": os.path.ismount(mounted),
                "loop": Path(f"/sys/block/{Path(loop).name}/loop/backing_file").read_text(),
            }

        yield seen


def test_orphans_are_swept_and_what_is_not_ours_stays_as_it_is(host: Host, images: Images) -> None:
    host.run("--name", "orphan", "-p", "80", images.busybox, "sleep", "600")
    host.run("--name", "well", "-p", "80", images.busybox, "sleep", "600")
    orphan, well = host.inspect("orphan"), host.inspect("well")
    with foreign(host) as seen:
        host.hyperd.kill()
        with contextlib.closing(sqlite3.connect(host.data_dir / "hyper.db")) as store, store:
            store.execute("DELETE FROM containers WHERE id = ?", (orphan["id"],))
        left = orphans(host)
        before = seen()
        host.start()
        assert seen() == before
        assert [one for one in left if one.exists()] == []
        wait_for(lambda: not Path(f"/proc/{orphan['vm']['pid']}").exists(), "the VM that nobody owns is gone")
        assert host.inspect("well")["vm"] == well["vm"]
        assert [one for one in host.leftovers() if one.startswith("hyp")] == [well["network"]["tap"]]
        for parent in (host.state_dir, host.data_dir, *groups(host, host.cgroup_parent)):
            assert not list(parent.glob(f"**/{orphan['id']}"))
        rules = subprocess.run(["nft", "list", "table", "ip", f"hyper_{host.bridge}"], capture_output=True, check=True)
        assert orphan["network"]["address"].encode() not in rules.stdout
        assert well["network"]["address"].encode() in rules.stdout
