"""Each folder beside this file is a scenario: raw input laid over `base`, and `expected.prom`.

A guest that lies is honest once: `later` holds its files, and `faults_later` its faults, of the second of two rounds.

`REGENERATE=1 pytest tests/golden` writes what comes out now; look at the difference before you commit it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from collector import application, views
from collector.rounds import Collector
from collector.watch import Settings
from exporter.exposition import Exposition
from tests.fakevm import running
from tests.fakevm.scenario import GOLDEN, NOW_S, fake_vm, host_root, later_files, read_json

if TYPE_CHECKING:
    from pathlib import Path

SCENARIOS = sorted(path.parent.name for path in GOLDEN.glob("*/scenario.json"))
MEASURED_BY_THE_CLOCK = "hyper_collector_"


def test_there_are_scenarios() -> None:
    assert {
        "application",
        "balloon",
        "cgroup-v1",
        "cgroup-v2",
        "cgroup-v2-delegated",
        "cgroup-hybrid",
        "dead-agent",
        "deep",
        "deep-kvm",
        "lying-2-64",
        "lying-application",
        "lying-backwards",
        "lying-labels",
        "lying-nan",
        "qemu-ga",
        "wedged-qemu",
    } <= set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_scenario(scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MIN_INTERVAL_S", 0.0)  # however soon the second round comes, it is compared
    monkeypatch.setattr(application, "PATIENCE_S", 30.0)  # however slow the machine, applications are waited for
    state_dir = tmp_path / "state"
    setting = read_json(scenario, "scenario.json")
    settings = Settings(
        "node1",
        host_root(scenario, tmp_path / "root"),
        deadline_s=0.3,
        clock=lambda: NOW_S,
        deep=setting.get("deep", False),
    )
    collector = Collector(state_dir, settings)
    exposition = Exposition()
    async with running(fake_vm(state_dir, scenario)) as vm:
        snapshot = await collector.round()
        if setting.get("rounds") == 2:
            vm.files.update(later_files(scenario))
            vm.faults.update(setting.get("faults_later", {}))
            snapshot = await collector.round()
        exposition.update(snapshot)
        collector.close()
    lines = exposition.render("text", [], NOW_S).decode().splitlines(keepends=True)
    text = "".join(line for line in lines if MEASURED_BY_THE_CLOCK not in line)
    expected = GOLDEN / scenario / "expected.prom"
    if os.environ.get("REGENERATE") == "1":
        expected.write_text(text)
    assert text == expected.read_text()
