"""The same everyday things on each kernel that is here: one of a distribution, and ours where it has been built."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests import kernels
from tests.host import Host, free_port, get, running_host, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

PRESENT = kernels.present()


@pytest.fixture(scope="module", params=PRESENT, ids=kernels.name)
def kernel_host(request: pytest.FixtureRequest, images: Images) -> Iterator[Host]:
    """A host that runs this kernel, with the images pulled; the tests of the module share it."""
    with running_host(images.busybox, images.nginx, kernel=request.param) as one:
        yield one


@pytest.fixture(autouse=True)
def _removed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "kernel_host" in request.fixturenames:
        own: Host = request.getfixturevalue("kernel_host")
        if names := own.hyper("ps", "-a", "-q", "--no-trunc").stdout.split():
            own.hyper("rm", "-f", *names)


def test_boots_with_two_cpus(kernel_host: Host, images: Images) -> None:
    kernel_host.run("--name", "cold", "--cpus", "2", images.busybox, "sleep", "600")
    vm = kernel_host.inspect("cold")["vm"]
    assert (vm["start_path"], vm["vcpus"]) == ("cold", 2)
    info = json.loads(kernel_host.hyper("info", "--format", "json").stdout)
    assert vm["kernel"] == info["kernel"]
    assert "HYPER_KERNEL" in info["kernel_reason"]
    assert kernel_host.hyper("exec", "cold", "nproc").stdout.strip() == "2"
    # With the slow timer a tick would come 250 times a second, asked for or not, and from one source for all.
    timers = kernel_host.hyper("exec", "cold", "cat", "/proc/interrupts").stdout
    local = next(line.split() for line in timers.splitlines() if "Local timer" in line)
    assert int(local[1]) > 0 < int(local[2]), "each CPU has a timer of its own"


def test_clones(kernel_host: Host, images: Images) -> None:
    kernel_host.hyper("run", "--rm", images.busybox, "true")
    wait_for(lambda: "templates ready: 0" not in kernel_host.hyper("info").stdout, "a template is ready", 90)
    kernel_host.run("--name", "clone", images.busybox, "sh", "-c", "echo out; echo err >&2; exec sleep 600")
    told = kernel_host.inspect("clone")["vm"]
    assert told["start_path"] in {"template", "pool"}, told["start_path_reason"]

    def kept() -> tuple[str, str]:
        logs = kernel_host.hyper("logs", "clone")
        return logs.stdout, logs.stderr

    wait_for(lambda: kept() == ("out\n", "err\n"), "its output is kept")
    assert kernel_host.hyper("exec", "clone", "sh", "-c", "exit 5", check=False).returncode == 5
    for command, code in ((("sh", "-c", "exit 77"), 77), (("nosuch",), 127), (("/etc/passwd",), 126)):
        assert kernel_host.hyper("run", "--rm", images.busybox, *command, check=False).returncode == code


def test_a_published_port_answers(kernel_host: Host, images: Images) -> None:
    port = free_port()
    kernel_host.run("-p", f"{port}:80", images.nginx)
    assert "Hello" in wait_for(lambda: get(f"http://127.0.0.1:{port}/"), "nginx answers")


def test_the_memory_limit_is_kept_and_told(kernel_host: Host, images: Images) -> None:
    done = kernel_host.hyper(
        "run", "--memory", "32m", "--name", "big", images.busybox, "tail", "/dev/zero", check=False
    )
    assert done.returncode == 137
    assert kernel_host.inspect("big")["oom_killed"] is True


def test_programs_find_what_they_call(kernel_host: Host, images: Images) -> None:
    """A small kernel goes without what nobody asked for: these are asked for."""
    paths = [f"/sys/fs/cgroup/{name}" for name in ("memory.current", "memory.peak", "memory.swap.current")]
    paths += [f"/sys/fs/cgroup/{name}" for name in ("cpu.stat", "cpu.pressure", "io.pressure", "pids.current")]
    paths += [f"/proc/{name}" for name in ("vmstat", "self/io", "self/smaps", "pressure/memory", "sysvipc/shm")]
    paths += [f"/proc/sys/kernel/{name}" for name in ("hostname", "msgmax", "core_pattern")]
    paths += ["/proc/net/if_inet6", "/dev/ptmx", "/dev/pts", "/dev/mqueue", "/dev/shm"]
    script = f"for path in {' '.join(paths)}; do test -r $path || echo $path; done"
    assert kernel_host.hyper("run", "--rm", images.busybox, "sh", "-c", script).stdout == ""


def test_a_modular_kernel_without_its_modules_is_refused_in_one_line(tmp_path: Path) -> None:
    found = [path for path in PRESENT if (path.parent / "modules").is_dir()]
    assert found, "the setup has put one there"
    alone = tmp_path / "vmlinuz"
    shutil.copy(found[0], alone)
    host = Host(accel="tcg", kernel=alone)
    try:
        host.hyperd.start()
        assert host.hyperd.process is not None
        assert host.hyperd.process.wait(timeout=30) == 1
        said = host.hyperd.log.read_text()
        assert "Traceback" not in said
        assert "make kernel" in said.splitlines()[-1]
    finally:
        host.hyperd.env["HYPER_KERNEL"] = str(found[0])  # what cleans up must be able to start
        host.close()
