"""When a log is cut, and its guest given credit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import consoles, rotation
from runtime.logs import STDOUT, LogRecord
from runtime.rotation import Rotation

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 64 * 1024
RECORD = LogRecord(STDOUT, 1, b"x" * 1000).encode()


class Agent:
    """Takes credit."""

    def __init__(self) -> None:
        self.credits: list[int] = []

    async def call(self, name: str, timeout_s: float, *, credit: int) -> None:
        del name, timeout_s
        self.credits.append(credit)


def a_container(path: Path, records: int) -> Any:
    log = path / "container.log"
    log.write_bytes(RECORD * records)
    record = SimpleNamespace(name="one", lifecycle=SimpleNamespace(epoch=1))
    return SimpleNamespace(id="a" * 64, log_path=log, state="running", agent=Agent(), record=record)


async def looked_after(container: Any, seconds: float = 0.5) -> Rotation:
    """A new daemon's rotation, which has looked for so long."""
    one = Rotation(SimpleNamespace(all=lambda: [container]), MAX_BYTES)  # type: ignore[arg-type]  # no more is used
    task = asyncio.create_task(one.run())
    await asyncio.sleep(seconds)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return one


@pytest.mark.parametrize("records", [200, 20])
async def test_a_new_daemon_cuts_nothing_before_those_who_read_can_be_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    monkeypatch.setattr(rotation, "_RETURN_S", 60.0)
    container = a_container(tmp_path, records)
    one = await looked_after(container)
    assert one.begin(container) == 0
    # Of a long log it gets no more, and keeps what it has.
    assert container.agent.credits == ([] if records == 200 else [MAX_BYTES - records * len(RECORD)])


async def test_after_that_a_log_is_cut_and_its_guest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_RETURN_S", 0.0)
    container = a_container(tmp_path, 200)
    one = await looked_after(container)
    assert one.begin(container) == 200 * len(RECORD) - MAX_BYTES - (200 * len(RECORD) - MAX_BYTES) % len(RECORD)
    assert container.agent.credits == [MAX_BYTES]


CONSOLES = [
    "state/containers/a/qemu.log", "state/pool/b/qemu.log", "data/containers/a/console.log", "data/pool/b.console",
    "data/templates/.c.1/console.log", "data/templates/.c.1/qemu.log",
]  # fmt: skip


@pytest.mark.parametrize("name", CONSOLES)
def test_what_guests_kernels_and_qemu_say_is_bounded(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    with path.open("ab", buffering=0) as qemus:
        qemus.write(b"x" * 2 * consoles.KEPT_BYTES)
        consoles.cut(tmp_path / "state", tmp_path / "data")
        assert b"\0" not in path.read_bytes(), "not more than it may be"
        for words in (b"first", b"then"):
            qemus.write(b"x" * consoles.KEPT_BYTES + words)
            consoles.cut(tmp_path / "state", tmp_path / "data")
            assert path.stat().st_blocks * 512 <= 2 * consoles.KEPT_BYTES
            assert path.read_bytes()[-consoles.KEPT_BYTES :].strip(b"x") == words
        assert path.stat().st_size == 4 * consoles.KEPT_BYTES + len(b"firstthen")


def test_where_there_are_no_holes_they_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_holes(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes")

    monkeypatch.setattr(consoles, "punch", no_holes)
    path = tmp_path / CONSOLES[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * (2 * consoles.KEPT_BYTES + 4096))
    consoles.cut(tmp_path / "state", tmp_path)
    assert path.read_bytes() == b""


async def test_a_guest_that_uses_its_credit_before_its_answer_comes_gets_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "_RETURN_S", 0.0)
    container = a_container(tmp_path, 0)

    class Hasty(Agent):
        async def call(self, name: str, timeout_s: float, *, credit: int) -> None:
            await super().call(name, timeout_s, credit=credit)
            with container.log_path.open("ab") as log:
                log.write(RECORD * (credit // len(RECORD)))
            await asyncio.sleep(0.1)  # meanwhile it is looked at

    container.agent = Hasty()
    await looked_after(container, 1.5)
    assert len(container.agent.credits) > 5
