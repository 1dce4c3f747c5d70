"""Pulls are counted by how they end: of a registry that is out of reach nothing else tells but who wants an image."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from runtime.api.images import ImagesApi
from runtime.counts import Counts
from runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from pathlib import Path


class Registry:
    """An image store whose registry has one image alone."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    async def pull(self, reference: str, **_: Any) -> Any:
        if reference != "there":
            raise RuntimeFault("certificate has expired")
        return SimpleNamespace(digest="sha256:a", to_dict=dict)


def test_pulls_are_counted_by_how_they_end(tmp_path: Path) -> None:
    counts = Counts(tmp_path / "runtime.json", {}, dict)
    engine: Any = SimpleNamespace(
        images=Registry(tmp_path), counts=counts, events=SimpleNamespace(tell=lambda *_: None)
    )
    app = FastAPI()
    app.include_router(ImagesApi(engine).router())

    async def ask() -> list[str]:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://hyperd") as client:
            asked = [await client.post("/v1/images/pull", json={"reference": one}) for one in ("there", "no", "no")]
            return [answer.text for answer in asked]

    answers = asyncio.run(ask())
    assert "image" in json.loads(answers[0].splitlines()[-1])
    assert all("certificate has expired" in answer for answer in answers[1:])
    counts.write()
    told = json.loads((tmp_path / "runtime.json").read_text())["operations"]["pull"]
    assert (told["ok"], told["failed"]) == (1, 2)
