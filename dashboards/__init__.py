"""Grafana dashboards, generated with grafanalib from the metric catalogue.

`python -m dashboards --write` writes the JSON in `dashboards/generated`, which is committed and provisioned. A panel
takes its metrics from the catalogue, so that one which queries what nothing exports fails a type check or a test.
"""
