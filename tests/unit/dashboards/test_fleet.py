from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from collector.catalogue import container, hyper
from dashboards import generate, promql
from dashboards.fleet import fleet

if TYPE_CHECKING:
    from pathlib import Path

DASHBOARD = fleet()
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
WITH_DATA = [panel for panel in PANELS if panel["type"] != "row"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", sorted(generate.contents()))
def test_the_committed_file_is_what_the_generator_writes(name: str) -> None:
    committed = (generate.GENERATED / name).read_text()
    assert committed == generate.contents()[name], "run `python -m dashboards --write` and commit the result"


def test_there_is_no_other_committed_file() -> None:
    assert {path.name for path in generate.GENERATED.iterdir()} == set(generate.contents())


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dashboards", "--write", "--out", str(tmp_path / "new")]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "new/fleet.json").read_text()) == DASHBOARD
    blocked = subprocess.run([*command[:-1], "/dev/null/x"], check=False, capture_output=True, text=True)
    assert blocked.returncode == 1
    assert len(blocked.stderr.splitlines()) == 1


def test_panel_ids_and_titles_are_unique() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_the_grid_has_no_overlap_and_no_overhang() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert cells
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", WITH_DATA, ids=[panel["title"] for panel in WITH_DATA])
def test_a_panel_says_what_it_shows_in_which_unit_and_what_if_nothing(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert defaults["noValue"]
    assert panel["fieldConfig"]["overrides"] == []
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["expr"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    assert all(isinstance(step["value"], int | float) for step in steps[1:])


def test_what_grafana_has_dropped_is_not_written() -> None:
    assert DASHBOARD["schemaVersion"] == 39
    assert not {"rows", "style", "hideControls", "sharedCrosshair", "gnetId"} & set(DASHBOARD)
    assert "null" not in [
        step["value"] for panel in WITH_DATA for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    ]


def test_the_variables_choose_among_what_there_is() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "container"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("namespace", "container"):
        assert variables[name]["includeAll"]
        assert variables[name]["datasource"] == SOURCE
    assert '{namespace=~"$namespace"}' in variables["container"]["definition"]


def test_every_container_metric_is_asked_for_by_the_chosen_containers() -> None:
    for panel in WITH_DATA:
        for target in panel["targets"]:
            asked = target["expr"].count("container_") + target["expr"].count("microvm_")
            assert target["expr"].count('namespace=~"$namespace", container=~"$container"') == asked, panel["title"]


def test_a_selector_with_a_label_that_the_metric_has_not_is_refused() -> None:
    assert promql.select(hyper.EXPORTER_SERIES) == "hyper_exporter_series"
    assert promql.select(container.STATE, state="exited").endswith(', state=~"exited"}')
    with pytest.raises(ValueError, match="container_state has no label sate"):
        promql.select(container.STATE, sate="exited")
