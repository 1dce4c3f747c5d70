"""The systemd units are ones that systemd reads, run what is installed, and expose no daemon more than was decided."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.config import Config
from tests.units import ROOT, UNITS, parse

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("hyperd", "hyper-exporter", "hyper-remediation")
SECRETS = {"influx": "hyper-exporter", "webhook": "hyper-remediation"}
DROP_INS = {**SECRETS, "alertmanager": "hyper-exporter"}
# What `systemd-analyze security` makes of each at most: 0 is shut in, 10 is open. hyperd makes namespaces and mounts.
EXPOSURE = {"hyperd": 6.8, "hyper-exporter": 2.2, "hyper-remediation": 1.2}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Copies of the units with a program that is there, and the drop-ins where they belong."""
    for name in NAMES:
        text = (UNITS / f"{name}.service").read_text()
        (tmp_path / f"{name}.service").write_text(text.replace(f"/opt/hyperpulse/bin/{name}", "/bin/true"))
    for name, unit in DROP_INS.items():
        directory = tmp_path / f"{unit}.service.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text((UNITS / f"drop-ins/{name}.conf").read_text())
    return tmp_path


def verify(unit: Path) -> str:
    argv = ["systemd-analyze", "--man=no", "--recursive-errors=no", "verify", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_it(installed: Path, name: str) -> None:
    assert verify(installed / f"{name}.service") == ""


def test_systemd_sees_a_mistake(installed: Path) -> None:
    unit = installed / "hyperd.service"
    unit.write_text(unit.read_text().replace("KillMode=process", "KillMode=nobody"))
    assert "kill mode" in verify(unit)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_exposed_as_little_as_was_decided(name: str) -> None:
    argv = ["systemd-analyze", "--no-pager", "security", "--offline=true", str(UNITS / f"{name}.service")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    print(f"{name}: exposure {found[1]}")
    assert float(found[1]) <= EXPOSURE[name], done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_back_and_runs_a_program_of_the_project(name: str) -> None:
    unit = parse(UNITS / f"{name}.service")
    assert unit["Restart"] == ["always"]
    assert unit["ExecStart"] == [f"/opt/hyperpulse/bin/{name}"]
    assert f'{name} = "' in (ROOT / "pyproject.toml").read_text()
    assert unit["NoNewPrivileges"] == ["yes"]


def test_vms_outlive_the_daemon() -> None:
    unit = parse(UNITS / "hyperd.service")
    assert unit["KillMode"] == ["process"]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]  # the records and sockets of the VMs are there
    assert "User" not in unit


def test_the_others_have_users_that_are_made() -> None:
    made = re.findall(r"^u (\S+)", (UNITS / "hyper.sysusers").read_text(), re.MULTILINE)
    assert [parse(UNITS / f"{name}.service")["User"] for name in NAMES[1:]] == [[name] for name in made]
    assert parse(UNITS / "hyper-remediation.service")["CapabilityBoundingSet"] == []


def test_every_drop_in_is_tried_and_told_of() -> None:
    there = {path.stem for path in (UNITS / "drop-ins").glob("*.conf")}
    assert there == set(DROP_INS)
    page = (ROOT / "docs/how-to/install.md").read_text()
    assert [name for name in sorted(there) if f"{name}.conf" not in page] == []


def test_a_drop_in_names_the_setting_for_the_deep_tier() -> None:
    [setting] = parse(UNITS / "drop-ins/alertmanager.conf")["Environment"]
    variable, _, url = setting.partition("=")
    assert variable == "HYPER_ALERTMANAGER_URL"
    assert Config(alertmanager_url=url).alertmanager_url == "http://127.0.0.1:9093"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_comes_as_a_credential(name: str) -> None:
    drop_in = parse(UNITS / f"drop-ins/{name}.conf")
    [credential] = drop_in["LoadCredential"]
    assert f"%d/{credential.split(':')[0]}" in " ".join(drop_in["Environment"])
    assert re.search(r"(?i)token=[^/%]", (UNITS / f"drop-ins/{name}.conf").read_text()) is None


def test_what_is_installed_is_what_the_units_run() -> None:
    script = (ROOT / "scripts/install").read_text()
    assert f"TOP={parse(UNITS / 'hyperd.service')['ExecStart'][0].removesuffix('/bin/hyperd')}\n" in script
    daemons = re.findall(r"^DAEMONS=\((.+)\)$", script, re.MULTILINE)
    assert daemons == [" ".join(NAMES)]
    programs = re.findall(r"^(\S+) = \"\S+:main\"$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.findall(r"^PROGRAMS=\((.+)\)$", script, re.MULTILINE) == [" ".join(programs)]


@pytest.mark.parametrize("script", ["scripts/install", "scripts/stack/image"])
def test_a_script_is_one_that_the_shell_reads(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0
    done = subprocess.run([str(ROOT / "scripts/install"), "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is --remove" in done.stderr or "root is needed" in done.stderr
