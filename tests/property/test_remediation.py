"""Whatever is told in whatever order, the controller never does more than its guards allow."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.remediation import policy
from alerts.remediation.actions import Performer
from alerts.remediation.controller import Controller
from alerts.remediation.feed import FeedFile
from alerts.remediation.guards import Limits
from alerts.remediation.hyperd import Evidence, Rollout
from alerts.remediation.journal import Decision, Journal, Outcome
from alerts.remediation.policyfile import PolicyFile
from alerts.remediation.pressure import Pressure
from alerts.remediation.settings import Settings
from alerts.remediation.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = Limits(
    bucket_size=3, refill_s=500, cooldown_s=20, cooldown_max_s=24, quiet_s=2000, host_bucket_size=3, host_refill_s=300,
    rollback_window_s=1000, change_window_s=1500, recovery_s=400, give_up_count=2,
)  # fmt: skip
NAMES = ("web", "db")


@dataclass
class World:
    """hyperd in memory: what it is asked to do changes what it says. It stands for the exporter as well."""

    now: float = 1000.0
    stopped: bool = False
    defied: bool = False
    busy: set[str] = field(default_factory=set)  # whom the host keeps from the CPU
    blamed: bool = False  # somebody was started anew for what the host did
    containers: dict[str, policy.Container] = field(default_factory=dict)
    histories: dict[str, list[policy.Revision]] = field(default_factory=dict)
    acts: list[tuple[float, str, str]] = field(default_factory=list)

    def change(self, name: str, **members: Any) -> policy.Container:
        self.containers[name] = self.containers[name].model_copy(update=members)
        return self.containers[name]

    def act(self, kind: str, name: str) -> None:
        self.defied = self.defied or self.stopped
        slow = self.containers[name].state == "running" and kind in {"restart", "redeploy"}
        self.blamed = self.blamed or (slow and name in self.busy)
        self.acts.append((self.now, kind, name))
        self.change(name, state="running", health="healthy", epoch=self.containers[name].epoch + 1)

    async def lines(self, _: Callable[[bytes], bool]) -> bytes:
        starved = (f'microvm_starved_by{{id="{self.containers[name].id}",by="host"}} 1\n' for name in self.busy)
        return "".join(starved).encode()

    def find(self, ref: str) -> policy.Container:
        return next(one for one in self.containers.values() if ref in {one.id, one.name})

    async def container(self, ref: str) -> policy.Container:
        await asyncio.sleep(0)
        return self.find(ref)

    async def history(self, ref: str) -> list[policy.Revision]:
        return self.histories[self.find(ref).name]

    async def events(self, *_: object) -> list[str]:
        return ["die"] * 5

    async def evidence(self, *_: object) -> Evidence:
        return Evidence(path="/nowhere/x")

    async def restart(self, ref: str) -> policy.Container:
        self.act("restart", self.find(ref).name)
        return self.find(ref)

    async def redeploy(self, ref: str, *_: object) -> policy.Container:
        self.act("redeploy", self.find(ref).name)
        return self.find(ref)

    async def quarantine(self, ref: str, *_: object) -> policy.Container:
        name = self.find(ref).name
        self.act("quarantine", name)
        return self.change(name, quarantine={"since": self.now}, desired="stopped")

    async def rollback(self, ref: str, *_: object) -> Rollout:
        name = self.find(ref).name
        self.act("rollback", name)
        self.change(name, image_digest="good")
        self.histories[name].insert(0, policy.Revision(time=self.now, digest="good", kind="rollback"))
        return Rollout(id="r", state="done")

    def update(self, name: str, number: int) -> None:
        self.change(name, image_digest=f"bad{number}")
        self.histories[name].insert(0, policy.Revision(time=self.now, digest=f"bad{number}", kind="update"))


class Silent:
    """Observes nothing."""

    def decided(self, decision: Decision) -> None:
        pass

    def concluded(self, decision: Decision, outcome: Outcome) -> None:
        pass

    def audit_failed(self) -> None:
        raise AssertionError

    def feed(self, **_: object) -> None:
        raise AssertionError


class NoEvidence:
    """Saves nothing, which prevents nothing."""

    async def save(self, *_: object) -> str:
        return "not saved"


names = st.sampled_from(NAMES)
# What does lead to actions, for without it chance would rarely come near a guard.
trouble = st.tuples(
    st.just("trouble"), names, st.sampled_from(["exited", "unhealthy"]), st.booleans(), st.sampled_from([1, 2, 6])
)
busy = st.tuples(st.just("busy"), names)
steps = st.lists(
    st.one_of(
        trouble,
        trouble,
        trouble,
        busy,
        busy,
        st.tuples(st.just("tell"), names, st.sampled_from([*policy.RULES, "HyperDiskFull"]), st.integers(0, 3)),
        st.tuples(st.just("over"), names, st.sampled_from([*policy.RULES]), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 25.0, 120.0, 700.0])),
        st.tuples(st.just("fail"), names, st.sampled_from(["exited", "unhealthy", "stopping", "removed"])),
        st.tuples(st.just("update"), names),
        st.tuples(st.just("switch"), st.booleans()),
        st.tuples(st.just("lift"), names),
        st.tuples(st.just("crash")),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=50)
@given(steps, st.sampled_from(["restart", "redeploy", "rollback", "full"]))
def test_never_more_than_the_guards_allow(told: list[tuple[Any, ...]], level: str) -> None:
    # What is tried is what is decided, not the disk.
    with TemporaryDirectory() as directory, patch("alerts.remediation.journal.os.fsync"):
        asyncio.run(_play(told, level, Path(directory)))


async def _play(told: list[tuple[Any, ...]], level: str, root: Path) -> None:
    world, stop = World(), root / "stop"
    for number, name in enumerate(NAMES):
        world.containers[name] = policy.Container(
            id=f"{number}" * 64, name=name, state="running", desired="running", epoch=1, image_digest="good",
            labels={policy.POLICY_LABEL: level},
        )  # fmt: skip
        world.histories[name] = [policy.Revision(time=1.0, digest="good", kind="create", good=True)]
    patience = Settings(LIMITS, attempts=1, settle_s=0.0)
    journal = Journal(root / "audit")

    def controller() -> Controller:
        hyperd: Any = world
        saver: Any = NoEvidence()
        file = PolicyFile()
        performer = Performer(hyperd, saver, stop, patience, file.follow, FeedFile(None, Silent()), lambda: world.now)
        pressure = Pressure(hyperd, patience.cause_ttl_s, patience.rest_s, lambda: world.now)
        return Controller(journal, hyperd, performer, Silent(), stop, file, pressure, patience, lambda: world.now)

    one = controller()
    for count, (what, *rest) in enumerate(told):
        if what in {"tell", "over"}:
            name, alert, number = rest
            signal = Signal("alertmanager", alert, f"{name}/{alert}/{number}", 0.0, firing=what == "tell",
                            labels={"name": name})  # fmt: skip
            for _ in range(2):
                one.submit_signal(signal)
        elif what == "trouble":
            name, how, changed, times = rest
            alert = policy.UNHEALTHY if how == "unhealthy" else policy.DOWN
            if changed:
                world.update(name, count)
            for again in range(times):
                world.change(name, **({"health": how} if how == "unhealthy" else {"state": how}))
                incident = f"trouble/{count}/{again}"
                one.submit_signal(Signal("alertmanager", alert, incident, 0.0, labels={"name": name}))
                await one.drain(20)
                world.now += 25.0
        elif what == "wait":
            await one.drain(20)
            world.now += rest[0]
        elif what == "fail":
            name, how = rest
            world.change(name, **({"health": how} if how == "unhealthy" else {"state": how}))
        elif what == "update":
            world.update(rest[0], count)
        elif what == "switch":
            await one.drain(20)
            world.stopped = rest[0]
            stop.touch() if rest[0] else stop.unlink(missing_ok=True)
        elif what == "busy":
            await one.drain(20)
            world.busy ^= {rest[0]}
            world.now += 2.0
        elif what == "lift":
            world.change(rest[0], quarantine=None, desired="running")
        else:
            await one.drain(20)
            journal.close()
            journal = Journal(root / "audit")
            one = controller()
    await one.drain(20)
    journal.close()
    _check(world)


def _check(world: World) -> None:
    assert not world.defied, "an action under the stop switch"
    assert not world.blamed, "a restart for what the host did"
    healing = [act for act in world.acts if act[1] != "quarantine"]
    for name in NAMES:
        times = [at for at, _, who in healing if who == name]
        for first in range(len(times)):
            for last in range(first, len(times)):
                most = LIMITS.bucket_size + (times[last] - times[first]) / LIMITS.refill_s
                assert last - first + 1 <= most, f"{name}: {world.acts}"
        assert all(later - earlier >= LIMITS.cooldown_s for earlier, later in itertools.pairwise(times))
        back = [at for at, kind, who in world.acts if (kind, who) == ("rollback", name)]
        assert all(b - a >= LIMITS.rollback_window_s for a, b in itertools.pairwise(back)), world.acts
    times = [at for at, _, _ in healing]
    for first in range(len(times)):
        for last in range(first, len(times)):
            most = LIMITS.host_bucket_size + (times[last] - times[first]) / LIMITS.host_refill_s
            assert last - first + 1 <= most, world.acts
