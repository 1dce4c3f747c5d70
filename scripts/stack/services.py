"""The programs of the stack, in the order in which they start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alerts import generate
from alerts.alertmanager import prometheus_config
from alerts.thresholds import Routing, Thresholds
from scripts.stack.service import Service
from tests.images import registry

if TYPE_CHECKING:
    from scripts.stack.settings import Settings


def services(settings: Settings) -> tuple[Service, ...]:
    """Every service of the stack."""
    exporter, remediation = settings.config.exporter_listen, settings.config.remediation_listen
    return (
        _registry(settings),
        _influx(settings),
        Service(
            name="hyperd",
            argv=(_program("hyperd"),),
            ready_url="http://hyperd/v1/ping",
            ready_socket=settings.hyperd_socket,
            variable="HYPER_STATE_DIR",
            ready_timeout_s=90.0,  # a host whose KVM hangs is found out by booting a guest with a deadline
            stop_timeout_s=30.0,
        ),
        Service(
            name="hyper-exporter",
            argv=(_program("hyper-exporter"),),
            ready_url=f"http://{exporter}/metrics",
            address=exporter,
            variable="HYPER_EXPORTER_LISTEN",
            environment={
                "HYPER_INTERVAL_S": "5",  # a look does not wait for long
                "HYPER_INFLUX_URL": f"http://127.0.0.1:{settings.influx_port}",
                "HYPER_ALERTMANAGER_URL": f"http://{_alertmanager_address(settings)}",
            },
        ),
        Service(
            name="hyper-remediation",
            argv=(_program("hyper-remediation"),),
            ready_url=f"http://{remediation}/healthz",
            address=remediation,
            variable="HYPER_REMEDIATION_LISTEN",
        ),
        _alertmanager(settings),
        _prometheus(settings),
    )


def _registry(settings: Settings) -> Service:
    file = settings.run_dir / "registry.yml"
    config = registry.config(settings.registry, settings.data_dir / "registry")
    return Service(
        name="registry",
        argv=("docker-registry", "serve", str(file)),
        ready_url=f"http://{settings.registry}/v2/",
        address=settings.registry,
        variable="DEMO_REGISTRY_PORT",
        files={file: json.dumps(config)},
    )


def _influx(settings: Settings) -> Service:
    """VictoriaMetrics: it takes the v2 writes of InfluxDB, which the InfluxDB that Debian 12 has (1.6) does not."""
    address = f"127.0.0.1:{settings.influx_port}"
    return Service(
        name="victoria-metrics",
        argv=(
            "victoria-metrics",
            f"-httpListenAddr={address}",
            f"-storageDataPath={settings.data_dir / 'victoria-metrics'}",
            "-retentionPeriod=2d",
            "-search.latencyOffset=0s",  # by default it tells nothing of the last half minute
        ),
        ready_url=f"http://{address}/health",
        address=address,
        variable="DEMO_INFLUX_PORT",
    )


def _alertmanager_address(settings: Settings) -> str:
    return f"127.0.0.1:{settings.alertmanager_port}"


def _alertmanager(settings: Settings) -> Service:
    address = _alertmanager_address(settings)
    file = settings.run_dir / "alertmanager.yml"
    routing = Routing(webhook_url=f"http://{settings.config.remediation_listen}/alertmanager")
    return Service(
        name="alertmanager",
        argv=(
            "prometheus-alertmanager",
            f"--config.file={file}",
            f"--storage.path={settings.data_dir / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ),
        ready_url=f"http://{address}/-/ready",
        address=address,
        variable="DEMO_ALERTMANAGER_PORT",
        files={file: generate.contents(routing=routing)[generate.ALERTMANAGER_FILE]},
    )


def _prometheus(settings: Settings) -> Service:
    address = f"127.0.0.1:{settings.prometheus_port}"
    file, rules = settings.run_dir / "prometheus.yml", settings.run_dir / generate.RULES_FILE
    config = prometheus_config(
        Thresholds(),
        rule_file=str(rules),
        alertmanager=_alertmanager_address(settings),
        exporter=settings.config.exporter_listen,
        remediation=settings.config.remediation_listen,
        scrape_interval="5s",
    )
    return Service(
        name="prometheus",
        argv=(
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={settings.data_dir / 'prometheus'}",
            "--storage.tsdb.retention.time=2d",
            f"--web.listen-address={address}",
        ),
        ready_url=f"http://{address}/-/ready",
        address=address,
        variable="DEMO_PROMETHEUS_PORT",
        files={file: json.dumps(config, indent=2), rules: generate.contents()[generate.RULES_FILE]},
    )


def _program(name: str) -> str:
    """A console script of the environment that this interpreter belongs to."""
    return str(Path(sys.executable).parent / name)
