"""Configuration of all programs: `HYPER_*` in the environment over `/etc/hyper/hyper.toml` over what stands here."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

CONFIG_FILE = Path(os.environ.get("HYPER_CONFIG", "/etc/hyper/hyper.toml"))
_LONGEST_PREFIX = 29
_LONGEST_LABEL = 100


class Config(BaseSettings):
    """What can be set. A member `state_dir` is `HYPER_STATE_DIR` in the environment, `state_dir` in the file."""

    model_config = SettingsConfigDict(env_prefix="HYPER_", extra="forbid", frozen=True)

    state_dir: Path = Field(Path("/run/hyper"), description="Sockets and container records.")
    data_dir: Path = Field(Path("/var/lib/hyper"), description="Images, disks, logs, templates, the database.")
    bridge: str = Field("hyper0", max_length=15, description="Bridge that the micro-VMs are attached to.")
    subnet: str = Field(
        "10.97.0.0/16", description="IPv4 network of the bridge; its first address is the bridge's own."
    )
    dns: list[str] = Field(default_factory=list, description="Name servers of containers; empty: the host's.")
    insecure_registries: list[str] = Field(
        default_factory=list, description="host:port of registries without TLS, beside those on loopback."
    )
    cgroup_parent: str = Field("hyper", pattern="^[a-z0-9_.-]+$", description="Control group that the VMs' are in.")
    guest_init: Path | None = Field(None, description="Guest PID 1; unset: /usr/lib/hyper/init or the checkout's.")
    qemu: str | None = Field(
        None,
        description="QEMU program, a name on PATH or a path. If unset: built by `make qemu`, else qemu-system-x86_64.",
    )
    qemu_dir: Path = Field(Path("/usr/local/lib/hyper/qemu"), description="Where `make qemu` puts what it builds.")
    kernel: Path | None = Field(None, description="Guest kernel; unset: the newest found.")
    accel: str = Field("auto", pattern="^(auto|kvm|tcg)$", description="auto probes KVM by booting a guest.")
    uid_base: int = Field(900_000, ge=1000, description="First of the unprivileged uids that VMs run under.")
    default_memory_bytes: int = Field(128 * 1024**2, ge=16 * 1024**2, description="Memory limit of a container.")
    default_disk_bytes: int = Field(10 * 1024**3, ge=16 * 1024**2, description="Apparent size of the writable layer.")
    log_max_bytes: int = Field(
        256 * 1024**2, ge=1024**2, description="How much of a container's log is kept for certain; at most thrice that."
    )
    template: bool = Field(default=True, description="Start VMs from a template where one is ready.")
    template_images: int = Field(
        4, ge=0, le=256, description="Templates that have an image mounted, of those started last; 50 MB each."
    )
    pool_depth: int = Field(
        2, ge=0, le=256, description="Clones that wait for each size in use, more if more were asked for; 0: no pool."
    )
    pool_limit: int = Field(16, ge=0, le=1024, description="Clones that wait in all.")
    pool_memory_bytes: int = Field(1024**3, ge=0, description="Memory that clones which wait may take in all.")
    pool_max_age_s: float = Field(3600.0, gt=0, description="Age at which a waiting clone is replaced.")
    known_good_after_s: float = Field(
        60.0, ge=0, description="How long a container must have run well for its image to be one to go back to."
    )
    node: str = Field(default_factory=lambda: os.uname().nodename, description="Name of this host in labels.")

    exporter_listen: str = Field("127.0.0.1:9720", description="Address of /metrics.")
    exporter_url: str = Field("http://127.0.0.1:9720", description="Where `hyper stats` finds the exporter.")
    interval_s: float = Field(10.0, gt=0, description="Seconds between two samples.")
    tombstone_ttl_s: float = Field(600.0, ge=0, description="How long a removed container keeps its last words.")
    info_labels: list[str] = Field(
        default_factory=list, max_length=16, description="Labels of containers that container_info has, by name."
    )
    deep: bool = Field(default=False, description="Sample all containers deep: some 130 more series each.")
    alertmanager_url: str | None = Field(
        None, pattern="^https?://", description="Alertmanager; a container that it has an alert of is sampled deep."
    )
    influx_url: str | None = Field(None, description="InfluxDB v2 endpoint; unset: no InfluxDB output.")
    influx_org: str = Field("hyper", description="InfluxDB organisation.")
    influx_bucket: str = Field("hyper", description="InfluxDB bucket.")
    influx_token_file: Path | None = Field(None, description="File that holds the InfluxDB token.")

    remediation_listen: str = Field("127.0.0.1:9721", description="Address of the Alertmanager webhook.")
    remediation_token_file: Path | None = Field(
        None, description="File with the webhook's bearer token; unset: loopback only."
    )
    remediation_policy_file: Path | None = Field(
        None, description="TOML file: what hyper-remediation may do with which containers; unset: labels alone."
    )
    remediation_feed_file: Path | None = Field(
        None,
        description="Vulnerabilities as OSV has them, a JSON list or one a line; unset: nothing is built for them.",
    )

    @field_validator("subnet")
    @classmethod
    def _is_a_network(cls, subnet: str) -> str:
        if ipaddress.IPv4Network(subnet).prefixlen > _LONGEST_PREFIX:
            raise ValueError(f"{subnet} is too small: give it room for a few guests, /{_LONGEST_PREFIX} or shorter")
        return subnet

    @field_validator("info_labels")
    @classmethod
    def _are_names_apart(cls, names: list[str]) -> list[str]:
        shown = [info_label(name) for name in names]
        for name, one in zip(names, shown, strict=True):
            if not 0 < len(name) <= _LONGEST_LABEL:
                raise ValueError(f"{name[:40]!r} is no label's name: 1 to {_LONGEST_LABEL} characters expected")
            if shown.count(one) > 1:
                raise ValueError(f"{name!r} and another would both be {one}: name one of them")
        return names

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=CONFIG_FILE)


def info_label(name: str) -> str:
    """What a container's label is called on `container_info`: as cAdvisor calls it, odd characters replaced."""
    return f"container_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}"
