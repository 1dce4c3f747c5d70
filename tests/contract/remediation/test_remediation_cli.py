from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.contract.remediation.harness import Controller, FakeHyperd, at_least, until, webhook

if TYPE_CHECKING:
    from pathlib import Path


def hyper(controller: Controller, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HYPER_REMEDIATION_LISTEN": controller.url.removeprefix("http://"), **environment}
    command = [sys.executable, "-m", "runtime.cli.program", "remediation", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_people_see_and_steer_it(hyperd: FakeHyperd, controller: Controller, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-enough-secret\n")
    controller.start(HYPER_REMEDIATION_TOKEN_FILE=str(token))
    bearer = {"Authorization": "Bearer a-long-enough-secret"}
    refused = hyper(controller, "ls")
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
    assert "remediation_token_file" in refused.stderr
    mine = {"HYPER_REMEDIATION_TOKEN_FILE": str(token)}
    assert hyper(controller, "stop", "--reason", "moving house", **mine).returncode == 0
    assert "moving house" in (tmp_path / "data/remediation.stop").read_text()
    controller.post(webhook(), **bearer)
    until(at_least(controller, 2))
    assert hyper(controller, "resume", **mine).returncode == 0
    hyperd.labels["hyper.remediation"] = "dry-run"
    controller.post(webhook(), **bearer)
    until(at_least(controller, 4))
    assert hyperd.posts == 0
    waiting = json.loads(hyper(controller, "ls", "--waiting", "--format", "json", **mine).stdout)
    done = hyper(controller, "approve", waiting[0]["id"][:6], **mine)
    assert done.stdout.split()[1:] == ["redeploy", "web"], done.stderr
    until(controller.outcomes)
    listed = hyper(controller, "ls", "--limit", "3", "--container", "web", **mine).stdout.splitlines()
    assert listed[0].split()[:3] == ["ID", "TIME", "CONTAINER"]
    assert [line.split()[4] for line in listed[1:]] == ["act", "dry_run", "skip"]
    assert "done" in listed[1]
    newest = json.loads(hyper(controller, "ls", "-n", "1", "--format", "json", **mine).stdout)
    assert newest[0]["outcome"]["outcome"] == "done"
    assert hyper(controller, "approve", waiting[0]["id"], **mine).returncode == 125
    assert controller.end() == 0
    gone = hyper(controller, "stop", HYPER_DATA_DIR=str(tmp_path / "data"), **mine)
    assert gone.returncode == 125
    assert f"touch {tmp_path}/data/remediation.stop" in gone.stderr
