"""The disk of a host is full to the last block: giving room back works, taking some is refused, VMs wait for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.test_faults import state_of
from tests.host import Host, about, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

MIB = 1 << 20
PAGE = 4096
WRITES = "while :; do i=$((i+1)); echo $i; dd if=/dev/urandom of=/f$((i%40)) bs=64k count=8 conv=fsync 2>&-; done"


class SmallHost(Host):
    """A host whose data directory is a small file system; its logs are elsewhere."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        kernels = (self.data_dir / "kernels").readlink()
        (self.data_dir / "kernels").unlink()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "none", self.data_dir], check=True)
        (self.data_dir / "kernels").symlink_to(kernels)
        self.hyperd.log = self.state_dir / "hyperd.log"
        self.filler = self.data_dir / "filler"

    def fill(self, but_bytes: int = 0) -> None:
        """Take all room, but for so much; others may take and give some meanwhile."""
        with self.filler.open("ab") as file:
            room = os.fstatvfs(file.fileno())
            step = max(0, room.f_bfree * room.f_frsize - but_bytes)
            while step >= PAGE:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, step)
                except OSError as err:
                    if err.errno != errno.ENOSPC:
                        raise
                    step = step // 2 // PAGE * PAGE
                else:
                    step = 0 if but_bytes else step

    def free(self) -> None:
        """Give it all back."""
        self.filler.unlink(missing_ok=True)

    def close(self) -> None:
        if self.hyperd.process is not None:
            self.free()
        try:
            super().close()
        finally:
            subprocess.run(["umount", "-l", self.data_dir], check=True)
            self.data_dir.rmdir()


@pytest.fixture(scope="module")
def small(images: Images) -> Iterator[SmallHost]:
    with running_host(images.busybox, kind=SmallHost) as one:
        assert isinstance(one, SmallHost)
        yield one


@pytest.fixture(autouse=True)
def _room(small: SmallHost) -> Iterator[None]:
    yield
    small.free()
    names = small.hyper("ps", "-a", "-q", "--no-trunc").stdout.split()
    if names:
        small.hyper("rm", "-f", *names)


def status(host: Host, name: str) -> str:
    shown = host.hyper("ps", "-a", "--filter", f"name={name}", "--format", "{{.Status}}").stdout
    return shown.strip()


def no_room(host: Host, *arguments: str) -> None:
    """Run it, and see that it is refused in one line for want of room."""
    done = host.hyper(*arguments, check=False)
    assert done.returncode == 125, (arguments, done.stdout)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no space left" in done.stderr or "disk is full" in done.stderr


def actions(host: Host, since: float) -> list[str]:
    shown = host.hyper("events", "--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--format", "json").stdout
    return [json.loads(line)["action"] for line in shown.splitlines()]


def test_a_full_disk_locks_nobody_out(small: SmallHost, images: Images) -> None:
    tagged = f"{images.busybox}:again"
    small.hyper("tag", images.busybox, tagged)
    small.hyper("volume", "create", "data")
    for name in ("never", "unused"):
        small.hyper("create", "--name", name, images.busybox, "true")
    for name in ("one", "two"):
        small.run("--name", name, images.busybox, "sleep", "600")
    small.hyper("exec", "two", "dd", "if=/dev/urandom", "of=/large", "bs=1M", "count=24")

    before = state_of(small)
    small.fill(16 * MIB)
    no_room(small, "commit", "two", "new:1")  # it is begun, and breaks off
    for command in (
        ("run", "-d", images.busybox, "true"), ("commit", "two", "new:1"), ("restart", "two"),
        ("volume", "create", "more"),
    ):  # fmt: skip
        small.fill()
        no_room(small, *command)
    assert state_of(small) == before
    assert small.inspect("two")["state"] == "running"

    def on_full(*arguments: str) -> str:
        small.fill()
        return small.hyper(*arguments).stdout

    on_full("stop", "-t", "0", "one")
    on_full("rm", "never")
    # What was given up stays given up over a crash: the daemon comes back on what is left of it.
    small.hyperd.kill()
    small.fill()
    small.start()
    assert about(small)["reserve_missing_bytes"] > 0
    on_full("kill", "two")
    on_full("rm", "-f", "two")
    on_full("volume", "rm", "data")
    on_full("rmi", tagged)
    unused = small.inspect("unused")["id"]
    assert unused in on_full("system", "prune", "-f")
    assert small.hyper("ps", "-aq").stdout == ""
    small.free()
    wait_for(lambda: about(small)["reserve_missing_bytes"] == 0, "the reserve is whole again")


def test_a_vm_waits_for_room_and_goes_on_by_itself(small: SmallHost, images: Images, tmp_path: Path) -> None:
    began = time.time()
    small.run("--name", "writer", images.busybox, "sh", "-c", WRITES)
    small.fill()
    wait_for(lambda: status(small, "writer").endswith("(stopped: disk full)"), "it is told that it stands still")
    shown: dict[str, Any] = small.inspect("writer")
    assert shown["state"] == "running"
    assert shown["halted"]["reason"] == "disk full"
    for command in (("exec", "writer", "true"), ("cp", "writer:/f1", str(tmp_path)), ("top", "writer")):
        clock = time.monotonic()
        done = small.hyper(*command, check=False)
        assert done.returncode == 125
        assert "disk is full: free some" in done.stderr
        assert time.monotonic() - clock < 9, "the agent was asked, and waited for"
    before = len(small.hyper("logs", "writer").stdout.splitlines())
    small.free()
    wait_for(lambda: "stopped" not in status(small, "writer"), "it goes on")
    assert small.hyper("exec", "writer", "true").returncode == 0
    wait_for(lambda: len(small.hyper("logs", "writer").stdout.splitlines()) > before + 1, "it writes")
    told = [action for action in actions(small, began) if action in {"halt", "resume"}]
    assert told == ["halt", "resume"]
    assert "I/O error" not in (small.data_dir / "containers" / shown["id"] / "console.log").read_text()
    log = small.hyperd.log.read_text()
    assert log.count("container writer stands still") == 1
    # In one that stands still nobody can be asked to end: it is ended at once.
    small.fill()
    wait_for(lambda: small.inspect("writer")["halted"], "it stands still again")
    small.hyper("stop", "writer")
    assert small.inspect("writer")["state"] == "exited"
