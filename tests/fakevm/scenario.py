"""Scenario folders of `tests/golden`: raw input laid over `base`, and what must come out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.record import Cgroups, Lifecycle, Limits, Network, Record, Vm
from tests.fakevm import FakeApp, FakeVm

if TYPE_CHECKING:
    from collections.abc import Mapping

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BASE = GOLDEN / "base"
CONTAINER_ID = "3f" * 32
NOW_S = 1795478300.0
PID, START_TICKS = 4711, 241748


def base_record(container_id: str = CONTAINER_ID, **changes: Any) -> Record:
    """The record of the VM that `base` was captured from."""
    record = Record(
        id=container_id,
        name="web",
        image="127.0.0.1:5000/busybox:latest",
        image_digest="sha256:" + "0" * 64,
        limits=Limits(134217728, 1, 0.5),
        lifecycle=Lifecycle("running", "running", 1795478140.0, 1795478144.8, epoch=1, health="healthy"),
        tenant="shop",
        project="store",
        vm=Vm(PID, START_TICKS, 192 << 20, 1, "tcg", "microvm", 900001, "6.1.0-56-cloud-amd64", "cold", "no template"),
        network=Network("hyp3f", "hyper0", "10.97.0.2", "52:54:0a:61:00:02"),
        start_phases={"pull": 2.5, "vm": 0.06, "agent": 1.9, "healthy": 4.0},
    )
    return replace(record, **changes)


def read_json(scenario: str, name: str) -> Any:
    """A JSON file of the scenario, or of `base`; None if neither has it."""
    for folder in (GOLDEN / scenario, BASE):
        if (folder / name).exists():
            return json.loads((folder / name).read_text())
    return None


def guest_files(scenario: str = "base") -> dict[str, bytes]:
    """Guest files by path; a scenario's own come over those of `base`."""
    return _files(BASE / "guest", GOLDEN / scenario / "guest")


def later_files(scenario: str) -> dict[str, bytes]:
    """Guest files that are others from the second round on."""
    return _files(GOLDEN / scenario / "later")


def _files(*folders: Path) -> dict[str, bytes]:
    files = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files["/" + str(path.relative_to(folder))] = path.read_bytes()
    return files


def host_root(scenario: str, root: Path) -> Path:
    """Lay out the host's files below `root`."""
    setting = read_json(scenario, "scenario.json") or {}
    folders = [BASE, *(GOLDEN / name for name in (setting.get("host_of"), scenario) if name)]
    for folder in (one / "host" for one in folders):
        if folder.exists():
            shutil.copytree(folder, root, dirs_exist_ok=True)
    return root


def fake_vm(state_dir: Path, scenario: str = "base", container_id: str = CONTAINER_ID, **changes: Any) -> FakeVm:
    """The VM of a scenario, below `state_dir`; `scenario.json` names cgroups, QMP returns, faults, absent sources."""
    setting = read_json(scenario, "scenario.json") or {}
    cgroups = setting.get("cgroups", {})
    record = base_record(container_id, cgroups=Cgroups(cgroups.get("v2"), cgroups.get("v1", {})))
    assert record.vm
    record = replace(record, vm=replace(record.vm, accel=setting.get("accel", "tcg")), labels=setting.get("labels", {}))
    agent = read_json(scenario, "agent.json")
    return FakeVm(
        directory=state_dir / "containers" / container_id,
        record=replace(record, **changes),
        qmp={**read_json(scenario, "qmp.json"), **setting.get("qmp", {})},
        status=agent["hyper-status"],
        read=agent["hyper-read"],
        files=guest_files(scenario),
        faults=dict(setting.get("faults", {})),
        absent=frozenset(setting.get("absent", ())),
        stock=read_json(scenario, "qemu-ga.json"),
        app=_application(scenario, setting.get("ports", {})),
    )


def _application(scenario: str, ports: Mapping[str, str]) -> FakeApp | None:
    """Servers by port; what each answers is a file of the scenario's folder `app`."""
    folder = GOLDEN / scenario / "app"
    return FakeApp({int(port): (folder / name).read_bytes() for port, name in ports.items()}) if ports else None
