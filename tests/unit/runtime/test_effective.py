"""What a container is together with its image, by Docker's rules."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.api import effective
from runtime.images.image import ImageConfig
from runtime.spec import Spec

IMAGE = ImageConfig(
    env=("PATH=/bin", "LANG=C"), cmd=("serve",), entrypoint=("/start",), user="web", working_dir="/srv",
    exposed_ports=("80/tcp", "90"), stop_signal="SIGQUIT",
    healthcheck={"Test": ["CMD", "true"], "Interval": 5 * 10**9},
)  # fmt: skip


def test_what_nobody_said_is_the_images() -> None:
    assert effective.config(Spec(image="x"), IMAGE, {"team": "shop"}) == {
        "Env": ["PATH=/bin", "LANG=C"], "Cmd": ["serve"], "Entrypoint": ["/start"], "User": "web",
        "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}, "90/tcp": {}}, "StopSignal": "SIGQUIT",
        "Labels": {"team": "shop"},
        "Healthcheck": {
            "Test": ["CMD", "true"], "Interval": 5 * 10**9, "Timeout": 30 * 10**9, "StartPeriod": 0, "Retries": 3,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"env": ["LANG=de", "A=1"]}, {"Env": ["LANG=de", "A=1", "PATH=/bin"]}),
        ({"env": ["A=1", "LANG", "NONE"]}, {"Env": ["A=1", "PATH=/bin"]}),
        ({"args": ["other"]}, {"Entrypoint": ["/start"], "Cmd": ["other"]}),
        ({"entrypoint": ["/own"]}, {"Entrypoint": ["/own"], "Cmd": []}),
        ({"entrypoint": ["/own"], "args": ["a"]}, {"Entrypoint": ["/own"], "Cmd": ["a"]}),
        ({"entrypoint": []}, {"Entrypoint": [], "Cmd": []}),
        ({"user": "0", "cwd": "/tmp", "stop_signal": "INT"}, {"User": "0", "WorkingDir": "/tmp", "StopSignal": "INT"}),
        ({"user": ""}, {"User": "web"}),
        ({"health": {"test": ["CMD-SHELL", ""]}}, {"Healthcheck": {
            "Test": ["CMD", "true"], "Interval": 5 * 10**9, "Timeout": 30 * 10**9, "StartPeriod": 0, "Retries": 3}}),
        ({"ports": [{"container_port": 53, "protocol": "udp"}]},
         {"ExposedPorts": {"80/tcp": {}, "90/tcp": {}, "53/udp": {}}}),
        ({"health": {"test": ["NONE"]}}, {"Healthcheck": None}),
        ({"health": {"test": ["CMD-SHELL", "exit 1"], "retries": 1}},
         {"Healthcheck": {"Test": ["CMD-SHELL", "exit 1"], "Interval": 5 * 10**9, "Timeout": 30 * 10**9,
                          "StartPeriod": 0, "Retries": 1}}),
    ],
)  # fmt: skip
def test_what_was_given_wins(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = effective.config(Spec.model_validate({"image": "x", **given}), IMAGE, {})
    assert {name: found[name] for name in expected} == expected


def test_the_network_that_all_are_in() -> None:
    assert effective.network("10.97.0.0/16") == {"gateway": "10.97.0.1", "prefix_length": 16}
