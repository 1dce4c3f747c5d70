from __future__ import annotations

import re

import pytest

from collector import reference
from collector.catalogue import (
    ABSENT,
    BASE_LABELS,
    CATALOGUE,
    EXPORTED,
    container,
    hyper,
    machine,
    metric,
    microvm,
    remediation,
)
from collector.errors import UnknownMetricError
from collector.metric import Metric

MODULES = {"container": container, "microvm": microvm, "machine": machine, "hyper": hyper}


def test_a_name_that_does_not_exist_fails() -> None:
    with pytest.raises(UnknownMetricError, match="container_no_such"):
        metric("container_no_such")


def test_lookup_gives_the_declaration() -> None:
    assert metric("container_state") is container.STATE


@pytest.mark.parametrize(("word", "module"), MODULES.items())
def test_constants_are_named_as_the_metric(word: str, module: object) -> None:
    for constant, value in vars(module).items():
        if isinstance(value, Metric):
            assert value.name == f"{word}_{constant.lower()}"


def test_names_are_unique_over_all_modules() -> None:
    modules = [*MODULES.values(), remediation]
    declared = [v.name for module in modules for v in vars(module).values() if isinstance(v, Metric)]
    assert sorted(declared) == sorted(CATALOGUE)


@pytest.mark.parametrize("one", CATALOGUE.values(), ids=lambda m: m.name)
def test_declaration_follows_the_rules(one: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", one.name)
    assert one.type != "counter" or one.name.endswith("_total")
    assert one.type == "counter" or one.type == "unknown" or not one.name.endswith("_total")
    assert one.unit in {"", "seconds", "bytes"}
    assert not set(one.labels) & set(BASE_LABELS)
    assert f"{one.influx_measurement}_{one.influx_field}" == one.name
    assert one.help.endswith(".")
    assert len(one.help) < 120
    assert (one.scope == "container") == one.name.startswith(("container_", "microvm_"))
    assert one.compat != "cAdvisor" or one.name.startswith(("container_", "machine_"))


def test_the_controller_s_metrics_are_not_exported_here() -> None:
    assert {m.scope for m in EXPORTED} == {"container", "host", "self"}
    assert {m.name for m in CATALOGUE.values() if m.scope == "remediation"} == {
        name for name in CATALOGUE if name.startswith("hyper_remediation_")
    }


def test_reference_page_is_what_the_catalogue_gives() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python -m collector.reference --write"


def test_reference_page_has_every_metric() -> None:
    page = reference.page()
    assert [name for name in ABSENT if f"| `{name}` |" not in page] == []
    assert not set(ABSENT) & set(CATALOGUE)
    assert [name for name in CATALOGUE if f"| `{name}` |" not in page] == []


def test_the_page_gives_influx_names_to_what_is_written_there_alone() -> None:
    rows = [line.split("|") for line in reference.page().splitlines() if line.startswith("| `")]
    cells = {row[1].strip(" `"): row[-2].strip() for row in rows}
    written = {name for name, cell in cells.items() if name in CATALOGUE and cell}
    assert written == {one.name for one in EXPORTED}
