"""Starting and ending VMs that are only pretended: what a start that fails leaves, and what a kill ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock, MagicMock

import pytest

from runtime import supervisor
from runtime.config import Config
from runtime.errors import GuestFailed, HostUnable
from runtime.images.image import ImageConfig
from runtime.network import nft
from runtime.network.ports import PortReservations
from runtime.output import last_words
from runtime.record import Cgroups, Network, Port, Vm
from runtime.spec import PortSpec, RestartSpec
from runtime.startup import Running
from runtime.supervisor import Supervisor
from tests.host import free_port

if TYPE_CHECKING:
    from runtime.life import Container, Lives

GROUPS = Cgroups(v2="/hyper/one")


class World:
    """The host: its QEMUs, control groups and rules."""

    def __init__(self, one: Container, lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
        one.directory.mkdir(exist_ok=True)
        one.data_directory.mkdir(exist_ok=True)
        self.process = AsyncMock(signal=MagicMock())
        self.rules = ""
        self.nft_works = True
        self.ports = PortReservations()
        self.host_cgroups = SimpleNamespace(remove=AsyncMock(), oom_kills=lambda _: None)
        image = SimpleNamespace(config=ImageConfig())
        self.supervisor = Supervisor(
            Config(), lives, MagicMock(resolve=AsyncMock(return_value=image)), MagicMock(start=self.start),
            self.host_cgroups, MagicMock(), self.ports, MagicMock(), on_end=MagicMock(),  # type: ignore[arg-type]  # pretended
        )  # fmt: skip
        monkeypatch.setattr(nft, "apply", self.apply)

    async def start(self, container: Container, _image: object, ports: tuple[Port, ...]) -> Running:
        network = Network("tap", "bridge", "10.0.0.2", "mac", ports)
        vm = Vm(1, 1, 1 << 27, 1, "tcg", "microvm", 1, "6.1", start_path="cold")
        assert container.state == "starting"
        return Running(MagicMock(process=self.process), vm, network, GROUPS, {}, 1.0)

    async def apply(self, text: str) -> None:
        if not self.nft_works:
            raise HostUnable("nft refused the rules")
        self.rules = text


@pytest.fixture
def world(running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch) -> World:
    return World(*running, monkeypatch)


@pytest.mark.parametrize(("retry", "policy"), [(False, "always"), (True, "always"), (True, "no")])
async def test_a_start_whose_ports_cannot_be_published_has_failed(
    world: World, running: tuple[Container, Lives], retry: bool, policy: str
) -> None:
    one, lives = running
    port = PortSpec(host_ip="127.0.0.1", host_port=free_port(), container_port=80)
    restart = one.spec.restart.model_copy(update={"policy": policy})
    lives.change(one, "exited", spec=one.spec.model_copy(update={"ports": (port,), "restart": restart}))
    world.nft_works = False
    with pytest.raises(HostUnable):
        await world.supervisor.start(one, retry=retry)
    lifecycle = one.record.lifecycle
    assert (lifecycle.state, lifecycle.error, lifecycle.desired) == ("exited", "nft refused the rules", "running")
    assert (lifecycle.retry_at is not None) == (retry and policy == "always")
    world.process.kill.assert_awaited_once()
    world.host_cgroups.remove.assert_awaited_once_with(GROUPS)
    assert (one.watcher, one.record.network) == (None, None)
    words = last_words(one.log_path, 0)
    assert words is not None
    assert words.exit_code == lifecycle.exit_code == HostUnable.exit_code
    world.ports.reserve("another", (Port(**port.model_dump()),))
    world.ports.release("another")


async def test_a_vm_that_is_said_to_run_is_published(
    world: World, running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, lives = running
    monkeypatch.setattr(world.supervisor, "attend", MagicMock())
    port = PortSpec(host_ip="127.0.0.1", host_port=free_port(), container_port=80)
    lives.change(one, "exited", spec=one.spec.model_copy(update={"ports": (port,)}))
    await world.supervisor.start(one)
    assert (one.state, "10.0.0.2 . 80" in world.rules) == ("running", True)
    world.rules = ""
    await world.supervisor.publish()
    assert world.rules.count("10.0.0.2 . 80") == 1
    world.ports.release(one.id)


@pytest.mark.parametrize(
    ("stop_epoch", "with_host", "follows"),
    [
        (None, False, ("running", True)), (1, False, ("running", True)), (2, False, ("stopped", False)),
        (None, True, ("running", True)), (2, True, ("stopped", False)),
    ],
)  # fmt: skip
async def test_a_signal_that_is_to_stop_it_ends_what_runs_and_no_later_start(
    world: World, running: tuple[Container, Lives], stop_epoch: int | None, with_host: bool, follows: tuple[str, bool]
) -> None:
    one, lives = running
    spec = one.spec.model_copy(update={"restart": RestartSpec(policy="unless-stopped")})
    lives.change(one, epoch=2, stop_epoch=stop_epoch, spec=spec)
    await world.supervisor.after_end(one, with_host=with_host)
    lifecycle = one.record.lifecycle
    assert (lifecycle.state, lifecycle.desired, lifecycle.retry_at is not None) == ("exited", *follows)


async def test_one_that_got_such_a_signal_and_is_stopped_to_be_started_is_wanted(
    world: World, running: tuple[Container, Lives]
) -> None:
    one, lives = running
    lives.change(one, "stopping", stop_epoch=1)
    await world.supervisor.after_end(one)
    assert one.record.lifecycle.desired == "running"


async def test_a_kill_cuts_a_stop_short_whose_guest_does_not_obey(
    world: World, running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = running
    monkeypatch.setattr(supervisor, "_ENDING_S", 0.05)
    ended, asked = asyncio.Event(), asyncio.Event()
    signals = []

    async def call(_: str, __: float, **arguments: object) -> None:
        signals.append(arguments)
        asked.set()

    one.agent = MagicMock(call=call)
    one.process = MagicMock(signal=lambda _: ended.set(), wrote_at_ns=lambda: 0)
    one.watcher = asyncio.create_task(ended.wait())  # type: ignore[arg-type]  # pretended
    async with asyncio.timeout(5):
        stop = asyncio.create_task(world.supervisor.stop(one, 600, 15))
        await asked.wait()
        await world.supervisor.kill(one)
        await stop
    assert signals == [{"signal": 15, "all": False}, {"signal": 9, "all": True}]


async def test_a_kill_beside_a_restart_ends_no_later_vm(world: World, running: tuple[Container, Lives]) -> None:
    one, _ = running
    ended, later = asyncio.Event(), MagicMock()
    later_watcher = asyncio.create_task(asyncio.Event().wait())

    async def call(*_: object, **__: object) -> None:
        ended.set()
        one.process, one.watcher = later, later_watcher  # type: ignore[assignment]  # pretended
        raise GuestFailed("the connection is gone")

    one.agent = MagicMock(call=call)
    one.process = MagicMock()
    one.watcher = asyncio.create_task(ended.wait())  # type: ignore[arg-type]  # pretended
    async with asyncio.timeout(5):
        await world.supervisor.kill(one)
    later.signal.assert_not_called()
    later_watcher.cancel()


async def test_a_guest_that_writes_its_files_out_after_a_kill_has_time_to(
    world: World, running: tuple[Container, Lives], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = running
    monkeypatch.setattr(supervisor, "_SILENT_S", 0.05)
    written, killed = iter([1, 2, 2, 3, 3, 4, *[4] * 100]), asyncio.Event()

    async def call(*_: object, **__: object) -> None:
        raise GuestFailed("it did not answer: it writes")

    async def goes_on_until_killed() -> None:
        await killed.wait()

    one.agent = MagicMock(call=call)
    one.process = MagicMock(signal=lambda _: killed.set(), wrote_at_ns=lambda: next(written))
    one.watcher = asyncio.create_task(goes_on_until_killed())
    async with asyncio.timeout(5):
        await world.supervisor.kill(one)
    assert next(written) == 4, "it was looked at until it wrote no more"


async def test_a_stop_waits_though_the_signal_was_not_confirmed(world: World, running: tuple[Container, Lives]) -> None:
    one, _ = running
    asked = []

    async def call(_: str, timeout_s: float, **arguments: object) -> None:
        asked.append((timeout_s, arguments["signal"]))
        raise GuestFailed("it writes its files out, since its container has ended")

    one.agent = MagicMock(call=call)
    one.process = MagicMock()
    one.watcher = asyncio.create_task(asyncio.sleep(0.2))
    await world.supervisor.stop(one, 30, 15)
    assert asked == [(30, 15)], "its turn may come late, and nothing is killed that ends by itself"
    one.process.signal.assert_not_called()
