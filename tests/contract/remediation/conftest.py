from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.remediation.harness import Controller, FakeHyperd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def hyperd(tmp_path: Path) -> Iterator[FakeHyperd]:
    fake = FakeHyperd(tmp_path / "hyperd.sock", directory=tmp_path / "hyperd/evidence")
    fake.start()
    yield fake
    fake.mode = "ok"
    fake.stop()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    program = Controller(tmp_path)
    yield program
    if program.process is not None and program.process.poll() is None:
        program.kill()


@pytest.fixture(scope="module")
def shared_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    program = Controller(tmp_path_factory.mktemp("shared"))
    program.start()
    yield program
    assert program.end() == 0
