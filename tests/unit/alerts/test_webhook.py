from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.errors import BadSetting, BadWebhook
from alerts.remediation import main
from alerts.remediation.guards import Limits
from alerts.remediation.policy import container_named_by
from alerts.remediation.settings import Settings
from alerts.remediation.webhook import parse_webhook

ALERT = {
    "status": "firing", "labels": {"alertname": "A"}, "annotations": {}, "startsAt": "2026-01-01T00:00:00.123456789Z",
    "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "abcd",
}  # fmt: skip
BODY = {"version": "4", "groupKey": "k", "alerts": [ALERT], "somethingNew": 1}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


def test_a_notification_of_alertmanager_is_read() -> None:
    webhook = parse_webhook(json.dumps(BODY).encode())
    assert webhook.alerts[0].incident == "abcd/1767225600.123"
    again = json.dumps({**BODY, "alerts": [{**ALERT, "startsAt": "2026-01-01T01:00:00.123+01:00"}]})
    assert parse_webhook(again.encode()).alerts[0].incident == webhook.alerts[0].incident


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(BadWebhook) as caught:
        parse_webhook(body)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(sorted(BODY)), json_values, st.sampled_from(sorted(ALERT)), json_values)
def test_any_member_may_be_anything(member: str, value: object, of_alert: str, alert_value: object) -> None:
    body = {**BODY, "alerts": [{**ALERT, of_alert: alert_value}], member: value}
    try:
        webhook = parse_webhook(json.dumps(body).encode())
    except BadWebhook as err:
        assert "\n" not in str(err)  # noqa: PT017 -- either it is read, or refused in one line
        assert len(str(err)) < 500  # noqa: PT017 -- as above
    else:
        assert len(webhook.alerts) <= 1000


@given(st.dictionaries(st.sampled_from(["id", "name"]), st.text()))
def test_no_label_becomes_more_than_one_part_of_a_path(labels: dict[str, str]) -> None:
    ref = container_named_by(labels)
    assert ref is None or (quote(ref, safe="") == ref and ref not in {"", ".", ".."})


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a%2fb", "a\n", "é", "a" * 129, "-a"])
def test_what_is_no_name_names_nothing(name: str) -> None:
    assert container_named_by({"name": name}) is None


def test_a_whole_id_goes_before_a_name_and_a_part_of_one_does_not() -> None:
    assert container_named_by({"id": "ab" * 32, "name": "web"}) == "ab" * 32
    assert container_named_by({"id": "ab", "name": "web"}) == "web"


@pytest.mark.parametrize(
    ("listen", "host", "port", "loopback"),
    [
        ("127.0.0.1:9721", "127.0.0.1", 9721, True),
        ("[::1]:0", "::1", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("127.8.8.8:1", "127.8.8.8", 1, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("[::]:1", "::", 1, False),
        ("host.example:65535", "host.example", 65535, False),
    ],
)
def test_an_address_is_read_and_known_to_be_local_or_not(listen: str, host: str, port: int, loopback: bool) -> None:
    assert main.parse_listen(listen) == (host, port)
    assert main.is_loopback(host) is loopback


@pytest.mark.parametrize("listen", ["", "9721", ":9721", "host:", "host:65536", "host:-1", "host:²"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(BadSetting, match="host:port"):
        main.parse_listen(listen)


def test_settings_are_read_by_name() -> None:
    assert main.parse_settings([]) == Settings()
    assert main.parse_settings(["cooldown_s=5", "attempts=2"]) == Settings(Limits(cooldown_s=5.0), attempts=2)
    for pair in ("cooldown=5", "cooldown_s=0", "cooldown_s=nan", "attempts=1.5", "bucket_size", "limits=1"):
        with pytest.raises(BadSetting, match=pair):
            main.parse_settings([pair])
