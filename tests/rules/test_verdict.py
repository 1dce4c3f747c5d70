"""The first row of Fleet and Host, and what SLO counts, by a real Prometheus' word."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from dashboards import fleet, host, slo, verdict
from dashboards.promql import Chosen
from tests.panels import filled

if TYPE_CHECKING:
    from pathlib import Path

ALL = Chosen(("instance", "namespace"))
FULL, WELL = "full:9720", "well:9720"


def of(metric: str, container: str, instance: str = FULL, **labels: str) -> str:
    own = {"id": container, "name": container, "namespace": "shop", "pod": container, "container": container}
    every = ", ".join(f'{name}="{value}"' for name, value in {**own, "instance": instance, **labels}.items())
    return f"{metric}{{{every}}}"


def asked(tmp_path: Path, series: dict[str, str], expected: dict[str, list[tuple[str, float]]], at: str) -> None:
    """Ask promtool for each expression at a time; series come every 30 s."""
    test = {
        "rule_files": ["none.yml"],
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": filled(expr),
                        "eval_time": at,
                        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
                    }
                    for expr, samples in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "none.yml").write_text("groups: []\n")
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def panel(board: dict[str, Any], title: str) -> str:
    expr: str = next(one for one in board["panels"] if one["title"] == title)["targets"][0]["expr"]
    return expr


def test_what_held_most_of_the_time_counts_and_a_sample_does_not(tmp_path: Path) -> None:
    series = {
        of("microvm_starved_by", "a", by="host"): "1x30",
        # One sample in ten: `none` has the others.
        of("microvm_starved_by", "b", by="none"): "1x24 stale",
        of("microvm_starved_by", "b", by="host"): "_x25 1x5",
        of("microvm_starved_by", "c", by="self"): "1x30",
        of("container_state", "a", state="running"): "1x30",
    }
    asked(
        tmp_path,
        series,
        {
            f"count({verdict.starved(ALL, 'host')})": [("{}", 1)],
            f"count({verdict.starved(ALL, 'self')})": [("{}", 1)],
            panel(fleet.fleet(), "Limit: short of CPU"): [("{}", 0)],
        },
        at="13m",
    )


def test_a_full_disk_and_a_host_that_is_gone_are_told_of_their_hosts(tmp_path: Path) -> None:
    series = {
        f'hyper_containers{{instance="{FULL}"}}': "2x60",
        f'hyper_containers{{instance="{WELL}"}}': "1x60",
        'hyper_containers{instance="gone:9720"}': "3x20 stale",
        f'hyper_reserve_missing_bytes{{instance="{FULL}"}}': "262144x60",
        f'hyper_reserve_missing_bytes{{instance="{WELL}"}}': "0x60",
        of("microvm_vmm_status", "a", status="io-error"): "1x60",
        of("microvm_vmm_status", "w", WELL, status="running"): "1x60",
        of("container_pressure_io_waiting_seconds_total", "a"): "0+15x60",
        of("container_pressure_io_waiting_seconds_total", "b"): "0+10x60",
        of("container_pressure_io_waiting_seconds_total", "w", WELL): "0+1x60",
        # What two clones share is there once, and is nobody's own.
        **{of("microvm_host_memory_bytes", one, part="template_shared"): "600x60" for one in "ab"},
        **{of("microvm_host_memory_bytes", one, part="guest_ram"): "200x60" for one in "ab"},
        f'machine_memory_bytes{{instance="{FULL}"}}': "1000x60",
    }
    asked(
        tmp_path,
        series,
        {
            verdict.disk_full(ALL): [(f'{{instance="{FULL}"}}', 1), (f'{{instance="{WELL}"}}', 0)],
            panel(fleet.fleet(), "Host: disk full"): [("{}", 1)],
            panel(fleet.fleet(), "Host: gone silent"): [("{}", 1)],
            panel(fleet.fleet(), "Host: waits for its disk"): [(f'{{instance="{FULL}"}}', 2)],
            panel(host.host(), "Host: memory taken"): [(f'{{instance="{FULL}"}}', 0.4)],
        },
        at="25m",
    )


def test_the_objective_counts_quarantine_as_away_and_what_a_person_paused_not_at_all(tmp_path: Path) -> None:
    series = {
        **{of("container_desired_running", one): "1x10" for one in ("runs", "paused", "held")},
        **{of("container_health_state", one): "-1x10" for one in ("runs", "paused", "held")},
        of("container_state", "runs", state="running"): "1x10",
        of("container_state", "paused", state="paused"): "1x10",
        of("container_state", "held", state="paused"): "1x10",
        of("container_quarantine_start_time_seconds", "held"): "60x10",
        of("microvm_source_up", "runs", source="guest"): "1x10",
    }
    asked(tmp_path, series, {panel(slo.slo(), "Up now"): [("{}", 0.5)]}, at="4m")
