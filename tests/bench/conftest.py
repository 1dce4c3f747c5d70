"""Fixtures of the end-to-end suite serve the benchmarks as well; and podman, to be measured beside."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import host, images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Images

__all__ = ["host", "images", "podman"]


@pytest.fixture
def podman(tmp_path: Path, images: Images) -> Iterator[list[str]]:
    """podman with runc and overlay, its storage in the test's directory, the image loaded."""
    program = shutil.which("podman")
    assert program, "podman is missing: apt-get install podman runc"
    config = tmp_path / "containers.conf"
    config.write_text('[containers]\ndefault_ulimits=["nofile=1024:4096","nproc=1024:4096"]\n')
    os.environ["CONTAINERS_CONF"] = str(config)
    run = tempfile.mkdtemp(prefix="hyper-")  # podman takes at most 50 characters
    command = [program, "--root", str(tmp_path / "root"), "--runroot", run, "--runtime", "runc"]
    command += ["--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"]
    subprocess.run([*command, "pull", "-q", "--tls-verify=false", images.busybox], check=True, capture_output=True)
    yield command
    subprocess.run([*command, "rmi", "-f", "-a"], check=False, capture_output=True)
    del os.environ["CONTAINERS_CONF"]
    shutil.rmtree(run, ignore_errors=True)
