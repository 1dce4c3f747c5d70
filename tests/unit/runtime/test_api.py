"""The application over an engine that is only told of: what it answers to anything."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from httpx import ASGITransport, AsyncClient, Response

from runtime.api import build
from runtime.errors import NotFound
from runtime.images.image import Image, ImageConfig
from runtime.images.index import ImageIndex
from runtime.volumes import Volumes
from runtime.volumes.index import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HALF = "a\ud800"
DIGEST = "sha256:" + "a" * 64
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    """An engine with a store of images and of volumes, and no containers."""
    volumes = Volumes(tmp_path, 32 << 20, list)
    index = ImageIndex(tmp_path / "hyper.db", tmp_path / "images")

    async def images() -> list[Image]:
        return list(index.all())

    def find(ref: str) -> Any:
        raise NotFound(f"there is no container {ref}", field="container")

    yield SimpleNamespace(
        images=SimpleNamespace(list=images, data_dir=tmp_path, index=index),
        volumes=volumes,
        lives=SimpleNamespace(all=list, find=find),
    )
    volumes.close()
    index.close()


def ask(engine: Any, method: str, path: str, content: bytes | None = None) -> Response:
    transport = ASGITransport(build(engine, {"version": HALF}), raise_app_exceptions=False)

    async def one() -> Response:
        async with AsyncClient(transport=transport, base_url="http://hyperd") as client:
            return await client.request(method, path, content=content, headers=JSON)

    return asyncio.run(one())


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    "config",
    [
        ImageConfig(env=(f"A={HALF}",)),
        ImageConfig(cmd=(HALF,)),
        ImageConfig(labels={HALF: HALF}),
        ImageConfig(healthcheck={"a": deep(300)}),
    ],
)
def test_one_image_of_an_older_version_does_not_hide_the_others(engine: Any, config: ImageConfig) -> None:
    engine.images.index.put(Image(DIGEST, (), None, 1.0, 1, engine.images.data_dir, config), {})
    answer = ask(engine, "GET", "/v1/images")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    (shown,) = answer.json()
    assert (shown["digest"], len(shown["config"])) == (DIGEST, 9)
    answer.text.encode()


def test_one_volume_of_an_older_version_does_not_hide_the_others(engine: Any) -> None:
    engine.volumes._index.put_volume(Volume("old", 1.0, 1, {HALF: HALF}))
    engine.volumes.file("old").parent.mkdir()
    engine.volumes.file("old").write_bytes(b"")
    answer = ask(engine, "GET", "/v1/volumes")
    assert (answer.status_code, [one["labels"] for one in answer.json()]) == (200, [{"a?": "a?"}])
    assert ask(engine, "DELETE", "/v1/volumes/old").status_code == 204


def test_a_volume_that_could_not_be_shown_is_not_made(engine: Any) -> None:
    for labels in ({HALF: ""}, {"a": HALF}):
        answer = ask(engine, "POST", "/v1/volumes", json.dumps({"name": "v", "labels": labels}).encode())
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "--label: it has bytes that are not UTF-8"
    assert ask(engine, "GET", "/v1/volumes").json() == []


def test_what_an_error_says_is_answered_as_well(engine: Any) -> None:
    def find(_: str) -> Any:
        raise NotFound(HALF)

    engine.lives.find = find
    answer = ask(engine, "GET", "/v1/containers/x")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "a?")


@pytest.mark.parametrize("content", [b'"\xff"', b"[" * 100_000, b"{"])
def test_a_body_that_is_no_json_is_no_call_that_is_not_there(engine: Any, content: bytes) -> None:
    answer = ask(engine, "POST", "/v1/containers", content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_input")
    assert "not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/containers/?force=true"), ("GET", "/v1/containers/"), ("GET", "/v1/volumes/"), ("GET", "/v2")],
)
def test_an_empty_name_leads_to_no_other_call(engine: Any, method: str, path: str) -> None:
    answer = ask(engine, method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_what_a_call_returns_is_the_answer(engine: Any) -> None:
    assert ask(engine, "GET", "/v1/ping").json()["version"] == "a?"
    assert ask(engine, "GET", "/v1/snapshots").json() == []
    assert ask(engine, "GET", "/v1/openapi.json").json()["paths"]["/v1/volumes"]["post"]["responses"]["201"]
