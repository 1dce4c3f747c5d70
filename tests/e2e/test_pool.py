"""The pool: containers take rehearsed clones, each once; and what a crash leaves of it is swept."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.host import Host, about, free_port, get, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images


@pytest.fixture(scope="module")
def pooled(images: Images) -> Iterator[Host]:
    with running_host(images.busybox, images.nginx, pool_depth=2) as one:
        yield one


def for_any(pooled: Host) -> int:
    """How many clones wait that any image can have."""
    now = about(pooled)
    return int(now["pool_waiting"] - now["pool_waiting_for_images"])


def members(pooled: Host) -> list[psutil.Process]:
    """QEMUs of the clones that wait."""
    names = {f"hyper-{directory.name}" for directory in (pooled.state_dir / "pool").iterdir()}
    return [one for one in psutil.process_iter(["cmdline"]) if names.intersection(one.info["cmdline"] or ())]


def replaced(pooled: Host, killed: list[psutil.Process]) -> bool:
    """Whether as many wait as are wanted at least, and none of them was killed."""
    others = [one for one in members(pooled) if one not in killed]
    return for_any(pooled) >= 2 and len(others) >= about(pooled)["pool_waiting"]


def test_a_container_from_the_pool_is_like_any_other(pooled: Host, images: Images) -> None:
    wait_for(lambda: for_any(pooled) > 0, "a clone waits", 60)
    port = free_port()
    pooled.run("--name", "web", "-p", f"{port}:80", "--hostname", "shop", images.nginx)
    found = pooled.inspect("web")
    assert (found["vm"]["start_path"], found["vm"]["start_path_reason"]) == ("pool", None)
    assert "Hello" in wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "nginx answers")
    assert pooled.hyper("exec", "web", "hostname").stdout == "shop\n"
    assert "rehears" not in pooled.hyper("logs", "web").stdout
    assert pooled.hyper("exec", "web", "ls", "/tmp").stdout == "", "nothing of the rehearsal is there"
    memory = pooled.hyper("exec", "web", "cat", "/sys/fs/cgroup/memory.max").stdout
    assert int(memory) == found["limits"]["memory_bytes"]
    pooled.hyper("stop", "web")
    wait_for(lambda: for_any(pooled) > 0, "refilled", 60)
    pooled.hyper("start", "web")
    assert "Hello" in wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "nginx answers again")
    pooled.hyper("rm", "-f", "web")


def test_the_layer_that_a_member_waits_with_becomes_the_containers(pooled: Host, images: Images) -> None:
    wait_for(lambda: for_any(pooled) > 0, "a clone waits", 60)
    pooled.run("--name", "one", images.busybox, "sh", "-c", "echo started >> /mine; sleep 600")
    written = ("exec", "one", "sh", "-c", "cat /mine 2>&1")
    wait_for(lambda: pooled.hyper(*written, check=False).stdout == "started\n", "it writes to its disk")
    wait_for(lambda: for_any(pooled) > 0, "a clone waits", 60)
    pooled.hyper("restart", "-t", "0", "one")
    assert pooled.inspect("one")["vm"]["start_path"] == "pool"
    wait_for(lambda: pooled.hyper(*written).stdout == "started\n" * 2, "it has the layer that it had")
    assert "barrier" in pooled.hyper("exec", "one", "cat", "/proc/fs/ext4/vdb/options").stdout.split()
    assert not list((pooled.data_dir / "pool").glob(f"{pooled.inspect('one')['id']}*"))
    pooled.hyper("rm", "-f", "one")


def test_an_image_that_is_started_again_has_clones_of_its_own(images: Images) -> None:
    script = "cat /proc/self/mountinfo | grep -c overlay; cat /mine 2>/dev/null; echo was >> /mine; sleep 600"
    with running_host(images.busybox, images.nginx, pool_depth=2) as host:  # no other image is started twice there

        def waits() -> bool:
            return bool(about(host)["pool_waiting_for_images"])

        for _ in range(2):
            host.hyper("run", "--rm", "--entrypoint", "true", images.nginx)
        wait_for(waits, "a clone waits for it", 60)
        other = host.hyper("run", "--rm", images.busybox, "ls", "/usr/sbin/nginx", check=False)
        assert other.returncode == 1, "it is not for another image"
        host.run("--name", "own", "--hostname", "shop", "--entrypoint", "sh", images.nginx, "-c", script)
        for lines in ("1\n", "1\n1\nwas\n"):
            vm = host.inspect("own")["vm"]
            assert (vm["start_path"], vm["image_ready"]) == ("pool", True), vm
            wait_for(lambda: host.hyper("logs", "own").stdout == lines, "with the layer that is its own")  # noqa: B023
            assert host.hyper("exec", "own", "hostname").stdout == "shop\n"
            assert "barrier" in host.hyper("exec", "own", "cat", "/proc/fs/ext4/vdb/options").stdout.split()
            wait_for(waits, "another waits for it", 60)
            host.hyper("restart", "-t", "0", "own")
        host.hyper("rm", "-f", "own")
        host.hyper("rmi", images.nginx)
        wait_for(lambda: not waits(), "an image that is gone has no clones", 60)


def test_each_clone_is_handed_out_once(pooled: Host, images: Images) -> None:
    wait_for(lambda: for_any(pooled) >= 2, "the pool is full", 60)
    script = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum; hostname; sleep 600"
    names = [f"many{number}" for number in range(4)]
    threads = [
        threading.Thread(target=pooled.run, args=("--name", n, images.busybox, "sh", "-c", script)) for n in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = [pooled.inspect(name) for name in names]
    assert {one["state"] for one in found} == {"running"}
    for what in ("pid", "uid"):
        assert len({one["vm"][what] for one in found}) == 4
    paths = sorted(one["vm"]["start_path"] for one in found)
    assert paths.count("pool") >= 2
    assert all(one["vm"]["start_path"] == "pool" or one["vm"]["start_path_reason"] for one in found), "and says why not"
    said: list[list[str]] = []

    def all_said() -> bool:
        said[:] = [pooled.hyper("logs", name).stdout.splitlines() for name in names]
        return all(len(lines) == 3 for lines in said)

    wait_for(all_said, "each has written its three lines")
    for line in zip(*said, strict=True):
        assert len(set(line)) == 4, "no two clones are twins"
    pooled.hyper("rm", "-f", *names)


def test_a_dead_member_is_not_handed_out(pooled: Host, images: Images) -> None:
    wait_for(lambda: for_any(pooled) >= 2, "the pool is full", 60)
    killed = members(pooled)
    assert len(killed) >= 2
    for one in killed:
        one.kill()
    assert pooled.hyper("run", "--rm", images.busybox, "echo", "well").stdout == "well\n"
    wait_for(lambda: replaced(pooled, killed), "others wait", 60)


def test_a_dead_member_is_replaced_though_nobody_asks_for_it(pooled: Host) -> None:
    wait_for(lambda: for_any(pooled) >= 2, "the pool is full", 60)
    killed = members(pooled)
    for one in killed:
        one.kill()
    wait_for(lambda: replaced(pooled, killed), "others wait", 60)


def test_a_crash_leaves_no_member(pooled: Host, images: Images) -> None:
    wait_for(lambda: for_any(pooled) >= 2, "the pool is full", 60)
    pooled.run("--name", "kept", images.busybox, "sleep", "600")
    assert pooled.inspect("kept")["vm"]["start_path"] == "pool"
    pid = pooled.inspect("kept")["vm"]["pid"]
    pooled.hyperd.kill()
    pooled.start()
    assert pooled.inspect("kept")["vm"]["pid"] == pid, "a VM that came from the pool is adopted"
    assert pooled.hyper("exec", "kept", "echo", "well").stdout == "well\n"
    wait_for(lambda: for_any(pooled) == 2, "refilled", 60)
    processes = [one for one in pooled.leftovers() if one.startswith("process")]
    assert len(processes) == 3, processes
    pooled.hyper("rm", "-f", "kept")


def test_an_image_that_is_started_again_has_a_template_of_its_own(images: Images) -> None:
    script = "cat /proc/self/mountinfo | grep -c overlay; cat /mine 2>/dev/null; echo was >> /mine; sleep 600"
    with running_host(images.busybox, images.nginx, template_images=1) as host:

        def own(image: str) -> bool:
            host.hyper("run", "-d", "--name", "tried", "--entrypoint", "sleep", image, "60")
            ready: bool = host.inspect("tried")["vm"]["image_ready"]
            host.hyper("rm", "-f", "tried")
            return ready

        assert not own(images.nginx)
        assert not own(images.nginx)
        wait_for(lambda: own(images.nginx), "its template is there", 60)
        assert not own(images.busybox)
        for name in ("one", "two"):
            host.run("--name", name, "--entrypoint", "sh", images.nginx, "-c", script)
            assert (host.inspect(name)["vm"]["start_path"], host.inspect(name)["vm"]["image_ready"]) == (
                "template",
                True,
            )
        host.hyper("restart", "-t", "0", "one")
        wait_for(lambda: host.hyper("logs", "one").stdout == "1\n1\nwas\n", "with the layer that is its own")
        assert host.hyper("logs", "two").stdout == "1\n"
        host.hyper("rm", "-f", "one", "two")
        host.hyperd.stop()
        host.hyperd.start()
        host.hyperd.ready(lambda: host.hyper("info", check=False).returncode == 0)
        wait_for(lambda: own(images.nginx), "it is on disk", 60)
        wait_for(lambda: own(images.busybox), "another image takes its place", 60)
        wait_for(lambda: len(list((host.data_dir / "templates").iterdir())) == 2, "and the first one is gone")
