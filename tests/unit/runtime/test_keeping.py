"""What goes on for ever goes on after an error, and says so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from runtime import keeping
from runtime.errors import HostUnable


async def test_it_is_begun_anew_and_an_error_that_comes_again_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "AGAIN_S", 0.001)
    monkeypatch.setattr(keeping, "time", SimpleNamespace(monotonic=lambda: 0.0))
    errors = [HostUnable("no tap"), HostUnable("no tap"), OSError("full"), KeyError("odd"), HostUnable("no tap")]
    comes = iter(errors)
    goes = asyncio.Event()

    async def run() -> None:
        await asyncio.sleep(0)
        for error in comes:
            raise error
        goes.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(keeping.keep("the thing", run))
    async with asyncio.timeout(5):
        await goes.wait()
    told = [(one.getMessage(), one.exc_info is not None) for one in caplog.records]
    assert told == [
        ("the thing: no tap", False),
        ("the thing: full", False),
        ("the thing: a defect", True),
        ("the thing: no tap", False),
    ]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
