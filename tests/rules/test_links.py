"""An alert's link opens a dashboard that is there, set to what the alert is about."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = {
    one["uid"]: {variable["name"] for variable in one["templating"]["list"]}
    for one in (json.loads(path.read_text()) for path in (ROOT / "dashboards/generated").glob("*.json"))
}


def test_links_lead_to_dashboards_that_know_their_variables() -> None:
    groups = yaml.safe_load((ROOT / "alerts/generated/hyper.rules.yml").read_text())["groups"]
    links = {
        rule["alert"]: rule["annotations"]["dashboard_url"]
        for one in groups
        for rule in one["rules"]
        if "alert" in rule
    }
    found = set()
    for alert, link in links.items():
        parts = urlsplit(link)
        uid = parts.path.rpartition("/d/")[2]
        assert uid in DASHBOARDS, alert
        given = {name.removeprefix("var-") for name, _ in parse_qsl(parts.query)}
        assert given <= DASHBOARDS[uid], alert
        found.add(uid)
    assert {"hyper-container", "hyper-host", "hyper-remediation"} <= found
