"""What holds for every dashboard and every panel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import pytest

from alerts.thresholds import Thresholds
from collector.catalogue import CATALOGUE, container, hyper
from dashboards import generate, links, picture, slo
from dashboards.promql import Chosen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BOARDS: dict[str, dict[str, Any]] = {name: json.loads(text) for name, text in generate.contents().items()}
BY_UID = {board["uid"]: board for board in BOARDS.values()}
PANELS = [
    pytest.param(board, panel, id=f"{name.removesuffix('.json')}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_GRAFANA = {"__rate_interval", "__range", "__url_time_range"}
METRIC = re.compile(r"\b(?:container|microvm|machine|hyper)_\w+")


def variables(board: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in board["templating"]["list"]}


def expressions(board: dict[str, Any]) -> Iterator[str]:
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    yield from (mark["expr"] for mark in board["annotations"]["list"])


def used_in(text: str) -> set[str]:
    """Names of the variables that a text uses, without Grafana's own and those of a series or a row."""
    names = set(re.findall(r"\$(?:\{)?([a-zA-Z_]\w*)", text))
    return {name for name in names if not name.startswith("__")}


def data_links(panel: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = panel["fieldConfig"]["defaults"].get("links", [])
    return found


@pytest.mark.parametrize("name", sorted(generate.contents()))
def test_the_committed_file_is_what_the_generator_writes(name: str) -> None:
    committed = (generate.GENERATED / name).read_text()
    assert committed == generate.contents()[name], "run `python -m dashboards --write` and commit the result"


def test_there_is_no_other_committed_file() -> None:
    assert {path.name for path in generate.GENERATED.iterdir()} == set(generate.contents())


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dashboards", "--write", "--out", str(tmp_path / "new")]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "new/fleet.json").read_text()) == BOARDS["fleet.json"]
    blocked = subprocess.run([*command[:-1], "/dev/null/x"], check=False, capture_output=True, text=True)
    assert blocked.returncode == 1
    assert len(blocked.stderr.splitlines()) == 1


def test_there_is_a_dashboard_for_each_uid() -> None:
    assert set(BY_UID) == set(links.TITLES)
    assert [board["title"] for board in BOARDS.values()] == [f"Hyperpulse / {title}" for title in links.TITLES.values()]


@pytest.mark.parametrize("name", BOARDS)
def test_panel_ids_and_titles_are_unique(name: str) -> None:
    panels = BOARDS[name]["panels"]
    for key in ("id", "title"):
        values = [panel[key] for panel in panels]
        assert len(set(values)) == len(values), [value for value in values if values.count(value) > 1]


@pytest.mark.parametrize("name", BOARDS)
def test_the_grid_has_no_overlap_and_no_overhang(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert cells
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_panel_says_what_it_shows_in_which_unit_and_what_if_nothing(
    board: dict[str, Any], panel: dict[str, Any]
) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith("."), "a description is made of sentences"
    assert len(panel["description"]) > len(panel["title"])
    assert defaults["unit"]
    assert defaults["noValue"]
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["expr"]
    thresholds = [defaults["thresholds"]] + [
        item["value"]
        for override in panel["fieldConfig"]["overrides"]
        for item in override["properties"]
        if item["id"] == "thresholds"
    ]
    for one in thresholds:
        assert one["steps"][0]["value"] is None
        values = [step["value"] for step in one["steps"][1:]]
        assert values == sorted(values)


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_panel_of_the_deep_tier_says_so_where_there_is_nothing(board: dict[str, Any], panel: dict[str, Any]) -> None:
    asked = [{CATALOGUE[name.removesuffix("_bucket")].tier for name in METRIC.findall(target["expr"])
              if name.removesuffix("_bucket") in CATALOGUE} for target in panel["targets"]]  # fmt: skip
    if all("deep" in tiers for tiers in asked):
        assert "deep tier" in panel["fieldConfig"]["defaults"]["noValue"]
    elif any("deep" in tiers for tiers in asked):
        assert "deep tier" in panel["description"]


@pytest.mark.parametrize("name", BOARDS)
def test_the_variables_that_are_used_are_declared_and_choose_among_what_there_is(name: str) -> None:
    declared = variables(BOARDS[name])
    assert next(iter(declared)) == "datasource"
    assert declared["datasource"]["type"] == "datasource"
    used = {variable for expr in expressions(BOARDS[name]) for variable in used_in(expr)}
    before: set[str] = set()
    for variable, one in declared.items():
        if one["type"] == "query":
            assert one["datasource"] == SOURCE
            query = one["query"]["query"]
            assert query.startswith("label_values(")
            assert used_in(query) <= before, "a variable is narrowed by those before it alone"
            used |= used_in(query)
        before.add(variable)
    assert used <= set(declared)
    assert set(declared) - used <= {"datasource"}, "a variable that nothing uses"


@pytest.mark.parametrize("name", BOARDS)
def test_what_is_asked_of_containers_is_asked_of_the_chosen_ones(name: str) -> None:
    chosen = [variable for variable in variables(BOARDS[name]) if variable not in {"datasource", "baseline"}]
    for expr in expressions(BOARDS[name]):
        for selector in re.findall(r"\b((?:container|microvm)_\w+)(\{[^}]*\})?", re.sub(r'"[^"]*"', '""', expr)):
            metric = CATALOGUE.get(selector[0].removesuffix("_bucket"))
            if metric is not None:
                missing = {one for one in chosen if one != "digest" and f"{one}=~" not in selector[1]}
                # What is said of the whole host stands beside the container.
                assert missing in (set(), {"namespace", "pod", "container"}), f"{selector[0]}: {missing}"


@pytest.mark.parametrize("name", BOARDS)
def test_the_bar_leads_to_all_others_with_the_choice_and_the_time(name: str) -> None:
    board = BOARDS[name]
    assert [link["url"] for link in board["links"]] == [f"/d/{uid}" for uid in links.TITLES if uid != board["uid"]]
    for link in board["links"]:
        assert (link["type"], link["includeVars"], link["keepTime"]) == ("link", True, True)


@pytest.mark.parametrize(("board", "panel"), [param for param in PANELS if data_links(param.values[1])])
def test_a_link_leads_to_a_dashboard_that_has_the_variables_it_carries(
    board: dict[str, Any], panel: dict[str, Any]
) -> None:
    headings = {
        name for one in panel["transformations"] for name in one["options"].get("renameByName", {}).values()
    }  # fmt: skip
    for link in data_links(panel):
        match = re.fullmatch(r"/d/([\w-]+)\?(.*)", link["url"])
        assert match
        target = BY_UID[match[1]]
        parts = match[2].split("&")
        assert parts[:2] == ["${datasource:queryparam}", "${__url_time_range}"]
        for part in parts[2:]:
            own = re.fullmatch(r"\$\{(\w+):queryparam\}", part)
            if own:
                assert own[1] in variables(board)
                assert own[1] in variables(target)
                continue
            name, _, value = part.removeprefix("var-").partition("=")
            assert name in variables(target), f"{target['title']} has no variable {name}"
            field = re.fullmatch(r"\$\{__(?:field\.labels\.(\w+)|data\.fields\.(\w+)):percentencode\}", value)
            assert field, value
            if field[2]:
                assert field[2] in headings, "a row has what its columns are headed"
            else:
                for query in panel["targets"]:
                    assert (
                        re.search(rf"by \([^)]*\b{field[1]}\b", query["expr"])
                        or "{{" + field[1] + "}}" in (query["legendFormat"])
                    ), f"the series of {panel['title']} have no label {field[1]}"
        if target["uid"] == links.CONTAINER:
            assert {"instance", "namespace", "pod", "container"} <= {
                part.removeprefix("var-").partition("=")[0] for part in parts[2:]
            }


def test_every_dashboard_is_led_to_from_a_panel_and_leads_back() -> None:
    led = {
        (board["uid"], re.split(r"[/?]", link["url"])[2])
        for board, panel in (param.values for param in PANELS)
        for link in data_links(panel)
    }
    for there in (
        (links.FLEET, links.CONTAINER), (links.FLEET, links.HOST), (links.FLEET, links.REMEDIATION),
        (links.HOST, links.CONTAINER), (links.HOST, links.FLEET),
        (links.CONTAINER, links.HOST), (links.CONTAINER, links.IMAGES),
        (links.IMAGES, links.CONTAINER), (links.REMEDIATION, links.CONTAINER), (links.REMEDIATION, links.IMAGES),
        (links.SLO, links.CONTAINER), (links.SLO, links.FLEET),
    ):  # fmt: skip
        assert there in led


@pytest.mark.parametrize("name", BOARDS)
def test_the_picture_has_every_panel_and_is_small(name: str) -> None:
    drawn = picture.contents()[name.replace(".json", ".svg")]
    assert len(drawn.encode()) < 200 * 1024
    root = ElementTree.fromstring(drawn)  # noqa: S314 -- drawn by us a moment ago
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    for panel in BOARDS[name]["panels"]:
        if panel["type"] != "row":
            assert f"{panel['title']}: {panel['description']}" in titles


def test_marks_tell_of_starts_ends_and_images_on_the_dashboard_of_a_container() -> None:
    marks = {mark["name"]: mark for mark in BY_UID[links.CONTAINER]["annotations"]["list"]}
    names = {"Starts", "Not running", "Quarantine", "OOM kills", "Silent sources", "Image changes", "Remediation"}
    assert {*names, "Alerts"} == set(marks)
    for name, mark in marks.items():
        assert 'container=~"$container"' in mark["expr"], f"{name}: marks of other containers stand on this one's page"
    assert marks["Starts"]["useValueForTime"] is True
    assert "digest" in marks["Image changes"]["expr"]


@pytest.mark.parametrize("uid", [links.FLEET, links.HOST, links.CONTAINER])
def test_the_first_row_answers_whether_it_is_us_its_limit_or_the_host(uid: str) -> None:
    panels = BY_UID[uid]["panels"]
    assert panels[0]["title"] == "Is it us, its limit, or the host?"
    second_row = [panel for panel in panels if panel["type"] == "row"][1]["gridPos"]["y"]
    first = [panel for panel in panels[1:] if panel["gridPos"]["y"] < second_row]
    assert second_row <= 9, "it is on the first screen"
    assert {panel["title"].partition(":")[0] for panel in first} >= {"Us", "Limit", "Host"}
    assert first[0]["title"] in {"Who keeps it from the CPU?", "Down"}
    assert sum(panel["gridPos"]["w"] for panel in first) % 24 == 0
    assert all(panel["type"] == "stat" for panel in first)
    assert all(panel["options"]["colorMode"] == "background" for panel in first), "what is red is seen from afar"
    asked = " ".join(target["expr"] for panel in first for target in panel["targets"])
    for cause in ("host_cpu_seconds", "host_memory_bytes", "vmm_status", "starved_by", "working_set", "health_state"):
        assert cause in asked, f"{cause} is not told of"


def test_objectives_are_those_of_the_alerts_and_every_figure_of_one_is_coloured_by_it() -> None:
    alerts = Thresholds()
    assert alerts.slo_availability_ratio == slo.AVAILABILITY
    assert alerts.slo_start_ratio == slo.START
    assert alerts.slo_start_s == slo.START_S
    objectives = {slo.AVAILABILITY, slo.START, slo.MEASUREMENT}
    for panel in BY_UID[links.SLO]["panels"]:
        if not panel["title"].startswith(("Up", "Good samples", "Started", "Least up", "Tenants")):
            continue
        thresholds = [panel["fieldConfig"]["defaults"]["thresholds"]] + [
            item["value"]
            for override in panel["fieldConfig"]["overrides"]
            if override["matcher"]["options"] == "Up"
            for item in override["properties"]
            if item["id"] == "thresholds"
        ]
        steps = thresholds[-1]["steps"]
        assert [step["color"] for step in steps] == ["red", "orange", "green"], panel["title"]
        assert steps[-1]["value"] in objectives, panel["title"]
        if panel["type"] == "timeseries":
            custom = panel["fieldConfig"]["defaults"]["custom"]
            assert custom["thresholdsStyle"]["mode"] == "dashed"
            assert 0 < custom["axisSoftMin"] < steps[1]["value"], "a miss of the objective is seen"
            assert "min" not in panel["fieldConfig"]["defaults"]


def test_memory_that_micro_vms_share_is_never_added_up() -> None:
    found = 0
    for name in BOARDS.keys() - {"container.json"}:  # what one container shares is counted once there
        for expr in expressions(BOARDS[name]):
            for before, selector in re.findall(r"(\S*)microvm_host_memory_bytes(\{[^}]*\})", expr):
                found += 1
                assert "part=" in selector, f"{name}: {expr}"
                assert before == "max(" or "template_shared" not in selector, f"{name}: {expr}"
    assert found > 5


def test_a_selector_with_a_label_that_the_metric_has_not_is_refused() -> None:
    assert Chosen(("namespace",)).select(hyper.EXPORTER_SERIES) == "hyper_exporter_series"
    chosen = Chosen(("instance", "namespace"))
    assert chosen.select(hyper.EXPORTER_SERIES) == 'hyper_exporter_series{instance=~"$instance"}'
    assert chosen.select(container.STATE, state="exited").endswith('namespace=~"$namespace", state=~"exited"}')
    with pytest.raises(ValueError, match="container_state has no label sate"):
        chosen.select(container.STATE, sate="exited")
