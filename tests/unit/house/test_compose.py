"""docker-compose.yml: `docker compose config` takes it; pinned versions, loopback, health, rights with reasons."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.config import Config
from scripts.stack.runtime_lock import subset
from tests.units import UNITS, parse

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
DAEMONS = {"hyperd", "hyper-exporter", "hyper-remediation"}
SECRETS = ("INFLUX_PASSWORD", "INFLUX_TOKEN", "GRAFANA_PASSWORD")
DOCKERFILE = ROOT / "scripts/stack/Dockerfile"


@pytest.fixture(scope="module")
def compose() -> str:
    """Docker Compose 2; it needs no Docker to read a file."""
    found = subprocess.run([ROOT / "scripts/docker-compose"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def config(compose: str, *files: Path, without: str = "") -> subprocess.CompletedProcess[str]:
    """`docker compose config` of the files, on a machine whose user has set all secrets but one."""
    environ = {name: f"the {name}" for name in SECRETS if name != without}
    names = [word for file in files for word in ("-f", file)]
    command = [compose, "--project-directory", ROOT, *names, "config", "--format", "json"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("added", [[], ["scripts/stack/kvm.yml"]], ids=["alone", "with KVM"])
def test_docker_compose_config_takes_it(compose: str, added: list[str]) -> None:
    found = config(compose, ROOT / "docker-compose.yml", *(ROOT / file for file in added))
    assert (found.returncode, found.stderr) == (0, "")
    services = json.loads(found.stdout)["services"]
    assert set(services) == set(SERVICES)
    devices = {device["target"] for device in services["hyperd"]["devices"]}
    assert devices == {"/dev/net/tun", *(["/dev/kvm"] if added else [])}


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("restart: unless-stopped", "restrat: always", "restrat"),
        ("hyperd: {condition: service_healthy}", "hyperdd: {condition: service_healthy}", "hyperdd"),
        ("secrets: [influx_token]", "secrets: [influx_tokn]", "influx_tokn"),
    ],
)
def test_docker_compose_config_sees_a_mistake(compose: str, tmp_path: Path, right: str, wrong: str, told: str) -> None:
    file = tmp_path / "docker-compose.yml"
    assert right in TEXT
    file.write_text(TEXT.replace(right, wrong))
    found = config(compose, file)
    assert found.returncode != 0
    assert told in found.stderr


@pytest.mark.parametrize("secret", SECRETS)
def test_docker_compose_asks_for_what_is_missing(compose: str, secret: str) -> None:
    found = config(compose, ROOT / "docker-compose.yml", without=secret)
    assert found.returncode != 0
    assert f"set {secret}" in found.stderr


def test_the_daemons_and_what_stands_around_are_there() -> None:
    assert set(SERVICES) == DAEMONS | {"prometheus", "alertmanager", "influxdb", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_versions_are_pinned(name: str) -> None:
    repository, _, tag = SERVICES[name]["image"].rpartition(":")
    assert "/" in repository
    assert ("build" in SERVICES[name]) == (name in DAEMONS)
    assert [part.isdigit() for part in tag.removeprefix("v").split(".")] == [True] * 3


@pytest.mark.parametrize("name", SERVICES)
def test_each_tells_its_health_and_waits_for_that_of_others(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    for other, wait in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert wait == {"condition": "service_healthy"}
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", sorted(DAEMONS))
def test_a_daemon_asks_for_no_more_than_its_unit_has(name: str) -> None:
    service, unit = SERVICES[name], parse(UNITS / f"{name}.service")
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged", False)
    wanted = {f"CAP_{capability}" for capability in service.get("cap_add", ())}
    # The exporter is root in its container: what its unit's user writes to by privilege is its own there.
    instead = {"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}
    assert wanted == (instead if name == "hyper-exporter" else set(unit["CapabilityBoundingSet"]))


def test_the_images_have_the_targets_and_the_programs() -> None:
    text = DOCKERFILE.read_text()
    targets = {line.split(" AS ")[1] for line in text.splitlines() if line.startswith("FROM ")}
    for name in DAEMONS:
        build = SERVICES[name]["build"]
        assert ROOT / build["dockerfile"] == DOCKERFILE
        assert build["target"] in targets
    assert "--require-hashes" in text
    copied = [word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    missing = [word for word in copied if not word.startswith(("--from", "/")) and not (ROOT / word).exists()]
    assert missing == []
    sent = [
        line[1:] for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    inside = [word for word in copied if not word.startswith(("--from", "/")) and word.split("/")[0] != "scripts"]
    assert set(inside) - {"runtime/guest"} <= set(sent)


def test_what_an_image_installs_is_what_the_programs_need() -> None:
    lock = (
        "a==1 \\\n    --hash=sha256:1\n    # via hyperpulse (pyproject.toml)\n"
        "b.c==2 \\\n    --hash=sha256:2\n    # via\n    #   a\n    #   d\n"
        "d==3 \\\n    --hash=sha256:3\n    # via hyperpulse (pyproject.toml)\n"
        "e==4 \\\n    --hash=sha256:4\n    # via b-c\n"
    )
    assert [line for line in subset(lock, ["A>=1"]).splitlines() if "==" in line] == ["a==1 \\", "b.c==2 \\", "e==4 \\"]
    with pytest.raises(KeyError):
        subset(lock, ["unknown"])


@pytest.mark.parametrize("name", SERVICES)
def test_it_listens_on_loopback_alone(name: str) -> None:
    service = SERVICES[name]
    assert service["network_mode"] == "host"
    if name in DAEMONS:  # they do unless told otherwise
        assert "LISTEN" not in str(service["environment"])
        assert Config.model_fields["exporter_listen"].default.startswith("127.0.0.1:")
        assert Config.model_fields["remediation_listen"].default.startswith("127.0.0.1:")
        return
    settings = [
        *service.get("command", ()),
        *(f"{key}={value}" for key, value in service.get("environment", {}).items()),
    ]
    listening = [s for s in settings if "listen-address=1" in s or "BIND_ADDRESS" in s or "HTTP_ADDR" in s]
    assert len(listening) == 1
    assert "=127.0.0.1" in listening[0]


def test_the_exporter_asks_the_alertmanager_that_is_there() -> None:
    url = SERVICES["hyper-exporter"]["environment"]["HYPER_ALERTMANAGER_URL"]
    assert f"--web.listen-address={url.removeprefix('http://')}" in SERVICES["alertmanager"]["command"]


def test_what_is_mounted_is_there() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    files = [source for source in sources if source.startswith("./")]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
    named = {source for source in sources if not source.startswith((".", "/"))}
    assert named == set(yaml.safe_load(TEXT)["volumes"])


def test_no_secret_stands_in_it() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if key.endswith(("PASSWORD", "TOKEN")):  # a daemon's comes as a file
                assert value.startswith("${"), key
                assert ":?" in value, f"{key} must not be empty"
