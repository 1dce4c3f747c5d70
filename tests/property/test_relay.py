"""Whatever an application sends, what is exported of it is valid in both formats, and says nothing about others."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from collector import asked, relay
from collector.catalogue import BASE_LABELS
from collector.errors import SourceError
from collector.snapshot import ContainerSnapshot, Snapshot, Summary
from collector.sources import httpanswer
from collector.sources.apptext import parse_text
from exporter.exposition import Exposition
from tests.steps import outcome

VALUES = ("one", "web", "image", "tenant", "pod", "web")
BUDGET = 12

words = st.sampled_from(["a", "b", "a_total", "a_count", "a_bucket", "a_sum", "a_created", "up", "container_x", "x:y"])
values = st.sampled_from(["0", "1", "2", "-1", "1.5", "NaN", "+Inf", "-Inf", "18446744073709551616", "1e308"])
label_names = st.sampled_from(["le", "quantile", "id", "exported_id", "job", "path"])
label_values = st.one_of(
    st.sampled_from(["1", "1.0", "0.5", "+Inf", "10000000", ""]), st.text(max_size=5).filter(lambda t: "\n" not in t)
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 3)) == 0:
        kind = draw(st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped", "info"]))
        word = draw(st.sampled_from(["HELP", "TYPE"]))
        return f"# {word} {draw(words)} {kind}"
    labels = draw(st.dictionaries(label_names, label_values, max_size=3))
    text = ",".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in labels.items()
    )
    return f"{draw(words)}{{{text}}} {draw(values)}" if labels else f"{draw(words)} {draw(values)}"


texts = st.lists(lines(), max_size=25).map("\n".join)
keeps = st.none() | st.frozensets(label_names, max_size=3)
histograms = st.builds(
    lambda counts, total: (
        "# TYPE a histogram\n"
        + "".join(f'a_bucket{{le="{n}"}} {count}\n' for n, count in enumerate(counts))
        + f'a_bucket{{le="+Inf"}} {total}\na_count {total}\na_sum 1\n'
    ),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 6),
)


def snapshot(names: relay.Names, *bodies: bytes, keep: frozenset[str] | None = None) -> Snapshot:
    containers = {}
    for number, body in enumerate(bodies):
        families: Any = ()
        with contextlib.suppress(SourceError):
            families, dropped = outcome(relay.select(parse_text(body), names, str(number), BUDGET, keep))
            assert relay.series(families) <= BUDGET
            assert all(dropped.values())
        containers[str(number)] = ContainerSnapshot(
            str(number), "web", "running", (str(number), *VALUES[1:]), (), Summary(), 0, 0.0, relayed=families
        )
    return Snapshot(1, 0.0, containers, ())


def check(*bodies: bytes, keep: frozenset[str] | None = None) -> None:
    exposition = Exposition()
    taken = snapshot(relay.Names(), *bodies, keep=keep)
    exposition.update(taken)
    text = list(parse_prometheus(exposition.render("text", [], 0.0).decode()))
    openmetrics = list(parse_openmetrics(exposition.render("openmetrics", [], 0.0).decode()))
    found, again = (
        sorted(
            (s.name, sorted(s.labels.items()), "NaN" if math.isnan(s.value) else s.value)
            for family in families
            for s in family.samples
        )
        for families in (text, openmetrics)
    )
    assert found == again
    assert len(found) == exposition.series == sum(relay.series(one.relayed) for one in taken.containers.values())
    assert len({(name, tuple(labels)) for name, labels, _ in found}) == len(found), "no series is there twice"
    for name, labels, _ in found:
        assert not relay.is_reserved(name)
        ours = {key: value for key, value in labels if key in BASE_LABELS}
        assert ours["id"] in taken.containers
        assert tuple(ours[key] for key in BASE_LABELS[1:]) == VALUES[1:]
    declared = [family.name for family in text if family.samples]
    assert len(declared) == len(set(declared)), "a name has one type"


@settings(max_examples=300)
@given(texts, texts, keeps)
def test_two_applications_at_odds(one: str, other: str, keep: frozenset[str] | None) -> None:
    check(one.encode(errors="replace"), other.encode(errors="replace"), keep=keep)


@settings(max_examples=100)
@given(histograms, texts, keeps)
def test_histograms(one: str, other: str, keep: frozenset[str] | None) -> None:
    check(one.encode(), other.encode(errors="replace"), keep=keep)


@settings(max_examples=100)
@given(st.binary(max_size=200), texts)
def test_bytes(one: bytes, other: str) -> None:
    check(one, other.encode(errors="replace"))


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest))
def test_an_answer_is_one_or_malformed(data: bytes) -> None:
    for ended in (True, False):
        with contextlib.suppress(SourceError):
            answer = httpanswer.parse_answer(data, ended=ended)
            assert 100 <= answer.status < 600
            assert len(answer.body) <= len(data)


@given(st.dictionaries(st.sampled_from(["hyper.metrics", "hyper.metrics.budget", "hyper.probe"]), st.text(max_size=20)))
def test_labels_are_settings_or_named(labels: dict[str, str]) -> None:
    with contextlib.suppress(asked.LabelError):
        wanted = asked.parse_relay(labels)
        assert wanted is None or (wanted.path.isascii() and wanted.path.isprintable() and " " not in wanted.path)
    with contextlib.suppress(asked.LabelError):
        asked.parse_probe(labels)


def test_a_snapshot_without_relayed_series_has_none() -> None:
    exposition = Exposition()
    taken = snapshot(relay.Names(), b"a 1\n")
    exposition.update(taken)
    assert exposition.series == 1
    without = {key: replace(one, relayed=()) for key, one in taken.containers.items()}
    exposition.update(Snapshot(2, 0.0, without, ()))
    assert exposition.series == 0
    assert exposition.render("text", [], 0.0) == b""
