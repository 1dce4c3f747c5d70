"""A container in memory with a real store, for tests of what happens to one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from runtime.events import Events
from runtime.life import Container, Lives
from runtime.record import Lifecycle, Limits, Record
from runtime.spec import Spec
from runtime.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Container, Lives]]:
    """A container that runs since now, its health `starting`, an operation open in the journal."""
    store = Store(tmp_path / "running.db")
    life = Lifecycle("running", "running", 1.0, started_at=time.time(), health="starting", epoch=1)
    record = Record("ab" * 32, "web", "nginx", "sha256:0", Limits(1 << 27, 1), life)
    slot, _ = store.insert(Spec(image="nginx"), record)
    lives = Lives(store, Events(store))
    one = Container(record.id, slot, Spec(image="nginx"), record, tmp_path / "state", tmp_path / "data")
    lives.add(one)
    yield one, lives
    store.close()
