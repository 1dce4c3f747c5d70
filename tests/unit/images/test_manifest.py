from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import RuntimeFault, Upstream, WrongDigest, WrongPlatform
from runtime.images import manifest

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
LAYERS = {"schemaVersion": 2, "config": {"digest": DIGEST, "size": 1}, "layers": [{"digest": OTHER, "size": 7}]}


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def index(*platforms: dict[str, str]) -> bytes:
    items = [{"digest": DIGEST, "size": 1, "platform": platform} for platform in platforms]
    return encode({"schemaVersion": 2, "manifests": items})


def test_manifest() -> None:
    parsed = manifest.parse(encode(LAYERS), "x")
    assert parsed == manifest.Manifest(manifest.Descriptor(DIGEST, 1), (manifest.Descriptor(OTHER, 7),))


def test_index_skips_what_is_no_image() -> None:
    parsed = manifest.parse(
        index({"os": "unknown", "architecture": "unknown"}, {"os": "linux", "architecture": "arm", "variant": "v7"}),
        "x",
    )
    assert isinstance(parsed, manifest.Index)
    with pytest.raises(WrongPlatform, match=r"^x is for linux/arm/v7; this host needs linux/amd64"):
        parsed.choose("x")


def test_index_gives_ours() -> None:
    parsed = manifest.parse(index({"os": "linux", "architecture": "amd64"}), "x")
    assert isinstance(parsed, manifest.Index)
    assert parsed.choose("x") == DIGEST


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        encode({"schemaVersion": 1, "fsLayers": []}),
        encode(LAYERS | {"layers": []}),
        encode(LAYERS | {"layers": {}}),
        encode(LAYERS | {"layers": [{"digest": "sha256:../../etc", "size": 1}]}),
        encode(LAYERS | {"layers": [{"digest": OTHER, "size": -1}]}),
        encode(LAYERS | {"layers": [{"digest": OTHER, "size": "1"}]}),
        encode(LAYERS | {"layers": [{"digest": OTHER, "size": 1}] * 501}),
        encode(LAYERS | {"config": None}),
        encode({"schemaVersion": 2, "manifests": [None]}),
        encode({"schemaVersion": 2, "manifests": 3}),
        encode({"schemaVersion": 2, "manifests": [{"digest": DIGEST, "platform": "linux"}]}),
    ],
)
def test_not_a_manifest(content: bytes) -> None:
    with pytest.raises(Upstream) as caught:
        manifest.parse(content, "x")
    assert caught.type is Upstream


def test_verify() -> None:
    manifest.verify(b"x", manifest.digest_of(b"x"), "x")
    with pytest.raises(WrongDigest, match=DIGEST):
        manifest.verify(b"x", DIGEST, "x")


def test_config() -> None:
    content = encode(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {"Env": None, "Cmd": ["a"], "Healthcheck": {"Test": ["CMD"]}},
        }
    )
    config, created = manifest.parse_config(content, "x")
    assert (config.env, config.cmd, config.healthcheck, created) == ((), ("a",), {"Test": ["CMD"]}, None)


@pytest.mark.parametrize(
    "part",
    [
        {"Env": "A=B"},
        {"Env": [1]},
        {"Cmd": {}, "Entrypoint": 3},
        {"User": 5},
        {"Labels": ["x"]},
        {"ExposedPorts": 80},
        {"Healthcheck": "CMD"},
        {"Healthcheck": {"Test": [["CMD"]]}},
        {"Healthcheck": {"a": {"a": 1}}},
        [],
    ],
)
def test_wrong_config(part: Any) -> None:
    content = encode({"os": "linux", "architecture": "amd64", "config": part})
    if part == []:
        assert manifest.parse_config(content, "x")[0] == manifest.ImageConfig()
        return
    with pytest.raises(Upstream):
        manifest.parse_config(content, "x")


HALF = "a\ud800"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("Env", [f"A={HALF}"]),
        ("Cmd", [HALF]),
        ("Entrypoint", [HALF]),
        ("User", HALF),
        ("WorkingDir", HALF),
        ("ExposedPorts", {HALF: {}}),
        ("StopSignal", HALF),
        ("Labels", {"a": HALF}),
        ("Labels", {HALF: "a"}),
        ("Healthcheck", {"Test": ["CMD", HALF]}),
    ],
)
def test_half_a_character_is_refused_by_its_member(member: str, value: Any) -> None:
    content = encode({"os": "linux", "architecture": "amd64", "config": {"A": "fine", member: value}})
    with pytest.raises(Upstream, match=f"^x: the image's configuration is wrong: '{member}' has half a character"):
        manifest.parse_config(content, "x")


def test_whole_characters_are_taken() -> None:
    content = encode({"os": "linux", "architecture": "amd64", "config": {"Env": ["A=\U0001f600é"]}})
    assert manifest.parse_config(content, "x")[0].env == ("A=\U0001f600é",)


@pytest.mark.parametrize(
    "platform", [{"os": "windows", "architecture": "amd64"}, {"os": "linux", "architecture": "arm64"}, {}]
)
def test_config_of_another_platform(platform: dict[str, str]) -> None:
    with pytest.raises(WrongPlatform):
        manifest.parse_config(encode(platform), "x")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1.0),
        ("1970-01-01T01:00:01.123456789+01:00", 1.123456),
        ("yesterday", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_time(text: object, seconds: float | None) -> None:
    assert manifest.parse_time(text) == seconds


def test_faults_fit_in_an_answer() -> None:
    with pytest.raises(RuntimeFault) as caught:
        manifest.parse(encode(LAYERS | {"layers": [{"digest": "x" * 100_000, "size": 1}]}), "x")
    assert len(caught.value.message) < 1000
