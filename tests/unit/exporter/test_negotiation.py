from __future__ import annotations

import pytest

from exporter.negotiation import accepts_gzip, choose_format

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/html,*/*;q=0.8", "text"),
        (PROMETHEUS, "openmetrics"),
        ("application/openmetrics-text", "openmetrics"),
        ("application/openmetrics-text; version=0.0.1", "text"),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.9", "text"),
        ("application/openmetrics-text;q=0", "text"),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", "openmetrics"),
        ("application/openmetrics-text;q=nonsense", "text"),
    ],
)
def test_format(accept: str, form: str) -> None:
    assert choose_format(accept) == form


@pytest.mark.parametrize(
    ("header", "wanted"),
    [("", False), ("gzip", True), ("deflate, gzip;q=1.0", True), ("gzip;q=0", False), ("identity", False), ("*", True)],
)
def test_gzip(header: str, wanted: bool) -> None:
    assert accepts_gzip(header) is wanted
