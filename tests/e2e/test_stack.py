"""`make stack` from nothing to nothing, in a network of its own: started, again, with a taken port, and down."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import panels
from tests.host import KERNELS, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 110
# One network namespace for all: its first process holds it, and ends with its standard input.
HOLD = "ip link set lo up && echo ready && exec cat"


class Stack:
    def __init__(self, namespace: int, env: dict[str, str]) -> None:
        self.namespace, self.env = namespace, env

    def __call__(self, action: str, **more: str) -> subprocess.CompletedProcess[str]:
        argv = ["nsenter", f"--net=/proc/{self.namespace}/ns/net", sys.executable, "-m", "scripts.stack", action]
        return subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ, **self.env, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )


@pytest.fixture
def stack() -> Iterator[Stack]:
    tag = secrets.token_hex(2)
    data, run = Path(f"/var/tmp/hyper-stack-{tag}"), Path(f"/run/hyper-stack-{tag}")
    (data / "hyper").mkdir(parents=True)
    run.mkdir()
    (data / "hyper/kernels").symlink_to(KERNELS)
    env = {
        "DEMO_RUN_DIR": str(run / "demo"),
        "DEMO_DATA_DIR": str(data / "demo"),
        "HYPER_STATE_DIR": str(run / "hyper"),
        "HYPER_DATA_DIR": str(data / "hyper"),
        "HYPER_CGROUP_PARENT": f"hyper-stack-{tag}",
        "HYPER_ACCEL": "tcg",
        "HYPER_TEMPLATE": "false",
    }
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin
    assert holder.stdout
    assert holder.stdout.readline() == "ready\n"
    one = Stack(holder.pid, env)
    try:
        yield one
    finally:
        one("down")
        holder.stdin.close()
        holder.wait(10)
        holder.stdout.close()
        shutil.rmtree(data)
        shutil.rmtree(run)


def test_up_again_taken_and_down(stack: Stack) -> None:
    first = stack("up")
    assert first.returncode == 0, first.stdout
    started = re.findall(r"^stack: (\S+) is up$", first.stdout, re.MULTILINE)
    assert set(started) == {
        "registry", "hyperd", "victoria-metrics", "hyper-exporter", "hyper-remediation", "alertmanager", "prometheus",
    }  # fmt: skip
    seen = dict(re.findall(r"^stack: dashboard (\S+): (\d+) of \d+ queries have data$", first.stdout, re.MULTILINE))
    assert {f"{name}.json" for name in seen} == set(panels.dashboards())
    assert int(seen["host"]) > 0
    assert "Debian 12 has no package of it" in first.stdout
    url = "http://127.0.0.1:9720/metrics"
    told = subprocess.run(
        ["nsenter", f"--net=/proc/{stack.namespace}/ns/net", "curl", "-fs", url],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nhyper_collector_alertmanager_failures_total " in told.stdout, "the exporter asks Alertmanager"

    again = stack("up")
    assert again.returncode == 0, again.stdout
    assert again.stdout.count(" runs already") == len(started)
    assert stack("status").returncode == 0

    taken = stack("up", DEMO_RUN_DIR=f"{stack.env['DEMO_RUN_DIR']}-other")
    assert taken.returncode == 1
    assert "registry cannot be at 127.0.0.1:5000" in taken.stdout
    assert "DEMO_REGISTRY_PORT" in taken.stdout

    ended = stack("down")
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.endswith("stack: nothing runs\n")
    listening = subprocess.run(
        ["nsenter", f"--net=/proc/{stack.namespace}/ns/net", "ss", "-Hltn"], capture_output=True, text=True, check=True
    )
    assert listening.stdout == ""
    assert list(Path("/sys/fs/cgroup").glob(f"*/{stack.env['HYPER_CGROUP_PARENT']}")) == []
