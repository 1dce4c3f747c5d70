"""Filters of `ps`."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cli import choosing
from runtime.client import ClientError


def one(name: str, number: int, **members: Any) -> dict[str, Any]:
    return {
        "name": name, "id": f"{number}" * 64, "image": "docker.io/library/nginx:latest",
        "image_digest": f"sha256:{'ab' * 32}",
        "state": "running", "created_at": float(number), "labels": {}, "health": "none", "exit_code": None,
        "network": None, "spec": {}, **members,
    }  # fmt: skip


PORTS = {"ports": [{"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "protocol": "tcp"}]}
FOUND = [
    one("web", 3, labels={"team": "shop", "tier": "1"}, network=PORTS, health="healthy"),
    one(
        "job",
        2,
        state="exited",
        exit_code=3,
        image="127.0.0.1:5000/job:v2",
        spec={
            "volumes": [
                {"source": "data", "target": "/d"},
                {"source": None, "target": "/cache"},
            ]
        },
    ),
    one("flaps", 1, state="exited", exit_code=1, retry_at=5.0),
]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], ["web", "job", "flaps"]),
        (["name=e"], ["web"]),
        (["name=^(web|job)$"], ["web", "job"]),
        (["name=^/(web|job)$"], ["web", "job"]),
        (["name=^/e"], []),
        (["id=22"], ["job"]),
        (["status=running"], ["web"]),
        (["status=exited"], ["job"]),
        (["status=restarting"], ["flaps"]),
        (["status=running", "status=exited"], ["web", "job"]),
        (["exited=3"], ["job"]),
        (["label=team"], ["web"]),
        (["label=team=shop", "label=tier=1"], ["web"]),
        (["label=team=shop", "label=tier=2"], []),
        (["health=healthy"], ["web"]),
        (["health=none"], ["job", "flaps"]),
        (["ancestor=nginx"], ["web", "flaps"]),
        (["ancestor=nginx:latest"], ["web", "flaps"]),
        (["ancestor=127.0.0.1:5000/job"], []),
        (["ancestor=127.0.0.1:5000/job:v2"], ["job"]),
        (["ancestor=" + "ab" * 6], ["web", "job", "flaps"]),
        (["publish=8080"], ["web"]),
        (["publish=8000-9000/tcp"], ["web"]),
        (["expose=80/udp"], []),
        (["volume=data"], ["job"]),
        (["volume=/cache"], ["job"]),
        (["volume=/"], []),
        (["before=job"], ["flaps"]),
        (["since=job"], ["web"]),
        (["since=web", "before=job"], []),
        (["before=job", "before=web"], ["job", "flaps"]),
        (["since=job", "since=flaps"], ["web", "job"]),
        (["since=flaps", "before=web"], ["job"]),
        (["name=web", "name=job"], ["web", "job"]),
        (["name=web", "name=job", "status=exited"], ["job"]),
        (["status=exited", "name=web"], []),
    ],
)
def test_filters(filters: list[str], names: list[str]) -> None:
    assert [one["name"] for one in choosing.choose(FOUND, choosing.parse(filters))] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status", "write KEY=VALUE"),
        ("status=", "write KEY=VALUE"),
        ("colour=red", "there is no filter 'colour'; there are: ancestor"),
        ("status=gone", "write one of created"),
        ("health=fine", "write one of starting"),
        ("exited=bad", "write an exit code"),
        ("publish=http", "write a port"),
        ("name=(", "no regular expression"),
        ("since=nobody", "there is no container nobody"),
    ],
)
def test_wrong_filters_name_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ClientError, match=message) as raised:
        choosing.choose(FOUND, choosing.parse([text]))
    assert text.partition("=")[0] in str(raised.value)
