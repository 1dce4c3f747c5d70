"""Where the stack lives: directories and ports, each movable by a variable of the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from runtime.config import Config


class StackError(Exception):
    """What stopped the stack; the message says what to do."""


def _directory(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, default))


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"{variable}={text} is not a port: give a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True, slots=True)
class Settings:
    """`run_dir` has logs and process files, `data_dir` what outlives them; ports are on loopback."""

    run_dir: Path = field(default_factory=lambda: _directory("DEMO_RUN_DIR", "/run/hyper-demo"))
    data_dir: Path = field(default_factory=lambda: _directory("DEMO_DATA_DIR", "/var/lib/hyper-demo"))
    page_port: int = field(default_factory=lambda: _port("DEMO_PORT", 8080))
    registry_port: int = field(default_factory=lambda: _port("DEMO_REGISTRY_PORT", 5000))
    prometheus_port: int = field(default_factory=lambda: _port("DEMO_PROMETHEUS_PORT", 9090))
    alertmanager_port: int = field(default_factory=lambda: _port("DEMO_ALERTMANAGER_PORT", 9093))
    influx_port: int = field(default_factory=lambda: _port("DEMO_INFLUX_PORT", 8086))
    config: Config = field(default_factory=Config)

    @property
    def registry(self) -> str:
        """host:port of the registry."""
        return f"127.0.0.1:{self.registry_port}"

    @property
    def hyperd_socket(self) -> Path:
        """The socket of hyperd's API."""
        return self.config.state_dir / "hyperd.sock"
