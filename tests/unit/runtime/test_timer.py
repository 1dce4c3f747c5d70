"""What a guest says of its timer."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.vm.timer import TimerWrong, check

BROADCAST = "Tick Device: mode:     1\nBroadcast device\nClock Event Device: pit\n max_delta_ns:   1\n\n"
WELL = 268435456  # 62.5 MHz as a part of 1 GHz, times 2^32


def timers(device: str = "lapic", mult: object = WELL, shift: object = 32) -> str:
    return (
        f"{BROADCAST}Tick Device: mode:     1\nPer CPU device: 0\nClock Event Device: {device}\n"
        f" max_delta_ns:   34359738352\n min_delta_ns:   1000\n mult:           {mult}\n shift:          {shift}\n"
    )


class Agent:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def call(self, command: str, **arguments: object) -> Any:
        assert (command, arguments) == ("hyper-read", {"files": ["/proc/timer_list"]})
        return self.answer


async def ask(answer: object, tolerance: float = 0.02) -> None:
    agent: Any = Agent(answer)
    await check(agent, tolerance)


@pytest.mark.parametrize(
    "text", [timers(), timers(mult=int(WELL * 1.015)), timers(mult=int(WELL * 0.985)), timers("lapic-deadline", 5)]
)
async def test_good(text: str) -> None:
    await ask({"files": [{"path": "/proc/timer_list", "data": text}]})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (timers(mult=int(WELL * 1.14)), "off by +14.0%"),
        (timers(mult=WELL // 400), "off by -99.8%"),
        (timers(mult=1), "off by -100.0%"),
        (timers("pit"), "there is none"),
        (timers("<NULL>"), "there is none"),
        (timers(shift=9**999), "there is none"),
        (timers(mult=10**400, shift=0), "there is none"),
        (f"{BROADCAST}Tick Device: mode:     1\nPer CPU device: 0\nClock Event Device: <NULL>\n", "there is none"),
        ("", "there is none"),
    ],
)
async def test_wrong(text: str, found: str) -> None:
    with pytest.raises(TimerWrong) as raised:
        await ask({"files": [{"path": "/proc/timer_list", "data": text}]})
    assert raised.value.found == found


@pytest.mark.parametrize("answer", [None, [], {}, {"files": []}, {"files": [{"error": "ENOENT"}]}, {"files": [None]}])
async def test_said_nothing(answer: object) -> None:
    with pytest.raises(TimerWrong):
        await ask(answer)
