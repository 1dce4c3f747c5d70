"""Templates that are not there yet: on disk, being built, or not to be built for now."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import GuestFailed, HostUnable
from runtime.vm import template
from runtime.vm.template import Templates

if TYPE_CHECKING:
    from runtime.vm.machine import Shape

SHAPE: Any = None


class Failing(Templates):
    """No build of it succeeds, and none is looked for on disk."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), Any, 0, Any)
        self.tries = 0

    def key(self, shape: Shape) -> str:
        return "one"

    def _load(self, key: str, shape: Shape) -> None:
        return None

    async def _build(self, key: str, shape: Shape) -> template.Template:
        self.tries += 1
        await asyncio.sleep(0)
        raise HostUnable(f"no tap, try {self.tries}")


async def test_a_template_that_failed_is_built_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(template, "time", SimpleNamespace(monotonic=lambda: clock.now))
    templates = Failing()
    for _ in range(2):
        with pytest.raises(GuestFailed, match="template failed: no tap, try 1"):
            await templates.settled(SHAPE)
    clock.now += 59
    assert await templates.get(SHAPE) == (None, "template failed: no tap, try 1")
    clock.now += 2
    templates.prepare(SHAPE)
    assert await templates.get(SHAPE) == (None, "template is being built")
    with pytest.raises(GuestFailed, match="try 2"):
        await templates.settled(SHAPE)


async def test_one_on_disk_is_waited_for() -> None:
    class OnDisk(Failing):
        def _load(self, key: str, shape: Shape) -> Any:
            time.sleep(0.05)
            return "loaded"

    assert await OnDisk().get(SHAPE) == ("loaded", None)
