from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from alerts.errors import NoSamples
from alerts.remediation import policy, pressure
from alerts.remediation.pressure import Pressure, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

ID, OTHER = "1" * 64, "2" * 64


def line(by: str, container_id: str = ID, value: str = "1") -> str:
    return f'microvm_starved_by{{id="{container_id}",name="web",by="{by}"}} {value}\n'


def waited(seconds: float, age_s: float = 0.0, ran_s: float = 0.0) -> str:
    """What the host alone tells."""
    mine = f'id="{ID}",name="web"'
    return (
        f"microvm_host_vcpu_wait_seconds_total{{{mine}}} {seconds}\n"
        f'microvm_host_cpu_seconds_total{{{mine},part="vcpu"}} {ran_s}\n'
        f'microvm_host_cpu_seconds_total{{{mine},part="main"}} 1000\n'
        f'microvm_sample_age_seconds{{{mine},source="host"}} {age_s}\n'
        f'microvm_sample_age_seconds{{{mine},source="guest"}} 1000\n'
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (line("host"), {ID: Sample("host")}),
        (line("host", value="1.0"), {ID: Sample("host")}),
        (line("host", value="1 1700000000000") + line("none", OTHER), {ID: Sample("host"), OTHER: Sample("none")}),
        (line("host", value="0"), {ID: Sample()}),
        (line("self") + waited(2.5, 0.25), {ID: Sample("self", 2.5, 0.0, 0.25)}),
        (line("host").replace(" 1\n", "\n"), {}),
        (line("host", value="many"), {}),
        (line("none").replace("web", '\\",by=\\"host\\",x=\\"'), {ID: Sample("none")}),
        ("# HELP microvm_starved_by 1 for what\n\nnonsense\n\xff\x00{} 1\n", {}),
    ],
)
def test_the_samples_of_each_container_are_read(text: str, found: dict[str, Sample]) -> None:
    assert pressure.parse_samples(text.encode()) == found


class Exporter:
    """Says what it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.says: str | None = line("host")
        self.asked = 0

    async def lines(self, wanted: Callable[[bytes], bool]) -> bytes:
        self.asked += 1
        if self.says is None:
            raise NoSamples("no answer")
        return b"".join(one for one in self.says.encode().splitlines(keepends=True) if wanted(one))


def container(**members: Any) -> policy.Container:
    return policy.Container.model_validate(
        {"id": ID, "name": "web", "state": "running", "desired": "running", "epoch": 1, "labels": {},
         "health": "unhealthy", **members}
    )  # fmt: skip


def test_it_explains_what_is_slow_and_until_a_check_was_made_in_peace() -> None:
    async def play() -> None:
        now, exporter = 1000.0, Exporter()
        anything: Any = exporter
        host = Pressure(anything, 100.0, 3.0, lambda: now)
        sick = policy.RULES[policy.UNHEALTHY]

        def held(rule: policy.Rule = sick, **members: Any) -> bool:
            return host.judge(rule, container(**members)) is not None

        assert not held(), "nobody has looked"
        await host.look()
        await host.look()
        assert exporter.asked == 1, "one answer serves all decisions of a moment"
        assert held()
        assert held(policy.Rule("alert_rule", (), ("restart",)), health="none")
        assert not held(id=OTHER)
        assert not held(state="exited")
        for name in (policy.DOWN, policy.FLAPPING, policy.OUT_OF_MEMORY, policy.NEAR_LIMIT):
            assert not held(policy.RULES[name]), name
        exporter.says, now = None, 1010.0
        await host.look()
        assert exporter.asked == 2
        assert held(checks=[{"began": 990.0}, {"began": 999.0}]), "the last check was made on the busy host"
        assert held(checks=[{"began": 999.0}, {"began": 1002.0}]), "nor does one tell that was made soon after"
        assert not held(checks=[{"began": 999.0}, {"began": 1005.0}])
        assert not held(health="healthy")
        assert not held(policy.Rule("alert_rule", (), ("restart",)), health="none")
        now = 1101.0
        assert not held(checks=[{"began": 999.0}]), "a check that is never made again holds nothing back for ever"

    asyncio.run(play())


def test_the_host_tells_whether_a_silent_guest_is_starved_or_wedged() -> None:
    async def play() -> None:
        now, exporter = 1000.0, Exporter()
        anything: Any = exporter
        host = Pressure(anything, 100.0, 3.0, lambda: now)
        looks = [
            (waited(50.0), False),  # since when is not known
            (waited(58.0), True),
            (waited(58.0, age_s=10.0), True),  # the same sample once more
            (waited(60.0), False),
            (waited(69.0), True),
            (waited(78.0, ran_s=10.0), False),  # there are several, which run for longer than they wait
            (waited(87.0, ran_s=11.0) + line("none"), True),  # it has slept through it
            (waited(96.0, ran_s=11.0) + line("limit"), False),  # so a quota looks as well
            (waited(3.0), False),  # it was started anew
            (waited(12.0), True),
            (waited(90.0, age_s=-60.0), False),  # over so long it tells nothing of now
            ("", False),
        ]
        for says, starved in looks:
            exporter.says = says
            await host.look()
            found = host.judge(policy.RULES[policy.UNHEALTHY], container(checks=[{"began": now + 4}]))
            assert (found is not None) is starved, (says, now)
            now += 10.0

    asyncio.run(play())


def test_whoever_is_to_decide_waits_for_a_second_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "FRESH_S", 0.001)

    async def play() -> None:
        now = 1000.0

        def clock() -> float:
            nonlocal now
            now += 1.0
            return now

        class Interval(Exporter):
            async def lines(self, wanted: Callable[[bytes], bool]) -> bytes:
                rounds, age_s = divmod(now + 1.0 - 1000.0, 10.0)
                self.says = waited(9.0 * rounds, age_s)
                return await super().lines(wanted)

        exporter = Interval()
        anything: Any = exporter
        host = Pressure(anything, 1000.0, 3.0, clock)
        await host.look(OTHER)
        assert exporter.asked == 1, "of that one nothing will ever be told"
        await host.look(ID)
        assert exporter.asked > 2
        assert host.judge(policy.RULES[policy.UNHEALTHY], container()) is not None

    asyncio.run(play())
