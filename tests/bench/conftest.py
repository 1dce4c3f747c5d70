"""Fixtures of the end-to-end suite serve the benchmarks as well; and podman, to be measured beside."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tests.host
from tests.e2e.conftest import host, images
from tests.places import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Images

__all__ = ["host", "images", "podman"]

RUN_SIZE = "512m"


@pytest.fixture(scope="session", autouse=True)
def run_in_memory() -> Iterator[Path]:
    """What belongs below `/run`, ours and podman's, is in memory, as it is on hosts that systemd has booted."""
    with small_disk(Path(f"/run/hb{secrets.token_hex(2)}"), RUN_SIZE, lazy=True) as run:
        before, tests.host.RUN = tests.host.RUN, run
        yield run
        tests.host.RUN = before
    run.rmdir()


@pytest.fixture
def podman(tmp_path: Path, images: Images, run_in_memory: Path) -> Iterator[list[str]]:
    """podman with runc and overlay, its storage in the test's directory, the image loaded."""
    program = shutil.which("podman")
    assert program, "podman is missing: apt-get install podman runc"
    config = tmp_path / "containers.conf"
    config.write_text('[containers]\ndefault_ulimits=["nofile=1024:4096","nproc=1024:4096"]\n')
    os.environ["CONTAINERS_CONF"] = str(config)
    run = tempfile.mkdtemp(dir=run_in_memory)  # podman takes at most 50 characters
    command = [program, "--root", str(tmp_path / "root"), "--runroot", run, "--runtime", "runc"]
    command += ["--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"]
    subprocess.run([*command, "pull", "-q", "--tls-verify=false", images.busybox], check=True, capture_output=True)
    yield command
    subprocess.run([*command, "rmi", "-f", "-a"], check=False, capture_output=True)
    del os.environ["CONTAINERS_CONF"]
    shutil.rmtree(run, ignore_errors=True)
