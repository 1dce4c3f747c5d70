"""When a container that has ended is started again."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import restarts
from runtime.record import Lifecycle
from runtime.spec import RestartSpec

RUNNING = Lifecycle("running", "running", 1.0, started_at=100.0, epoch=1)


@pytest.mark.parametrize(
    ("policy", "exit_code", "again", "desired"),
    [
        ("no", 0, False, "stopped"),
        ("no", 1, False, "running"),
        ("on-failure", 0, False, "stopped"),
        ("on-failure", 1, True, "running"),
        ("always", 0, True, "running"),
        ("always", 1, True, "running"),
        ("unless-stopped", 0, True, "running"),
    ],
)
def test_policies(policy: str, exit_code: int, again: bool, desired: str) -> None:
    found = restarts.ending(RestartSpec.model_validate({"policy": policy}), RUNNING, exit_code, 101.0)
    assert (found.retry_at is not None, found.desired) == (again, desired)


def test_the_delay_doubles_up_to_a_minute_and_begins_anew_after_a_long_run() -> None:
    life, now, delays = RUNNING, 101.0, []
    for _ in range(12):
        found = restarts.ending(RestartSpec(policy="always"), life, 1, now)
        assert found.retry_at == now + found.retry_delay_s
        delays.append(found.retry_delay_s)
        life = dataclasses.replace(life, retry_delay_s=found.retry_delay_s, started_at=found.retry_at)
        now = found.retry_at + 9.9
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60])
    assert restarts.ending(RestartSpec(policy="always"), life, 1, now + 0.2).retry_delay_s == 0.1


def test_retries_are_bounded() -> None:
    twice = RestartSpec(policy="on-failure", max_retries=2)
    for retries, again in ((0, True), (1, True), (2, False), (3, False)):
        found = restarts.ending(twice, dataclasses.replace(RUNNING, retries=retries), 1, 101.0)
        assert (found.retry_at is not None) is again
        assert found.desired == "running", "what failed is missed"


def test_a_host_that_goes_down_is_no_failure_of_the_container() -> None:
    for policy, again in (("no", False), ("on-failure", False), ("always", True), ("unless-stopped", True)):
        spec = RestartSpec.model_validate({"policy": policy})
        found = restarts.ending(spec, dataclasses.replace(RUNNING, retry_delay_s=60), 137, 101.0, with_host=True)
        assert (found.retry_at is not None, found.desired) == (again, "running")
        assert found.retry_delay_s in {0.0, restarts.FIRST_DELAY_S}


def test_at_boot() -> None:
    stopped = Lifecycle("exited", "stopped", 1.0, epoch=1)
    started = {policy: restarts.at_boot(RestartSpec.model_validate({"policy": policy}), stopped)
               for policy in ("no", "on-failure", "always", "unless-stopped")}  # fmt: skip
    assert started == {"no": False, "on-failure": False, "always": True, "unless-stopped": False}
    assert not restarts.at_boot(RestartSpec(policy="always"), dataclasses.replace(stopped, epoch=0)), "never started"


@given(
    planned=st.floats(0, 2e9), now=st.floats(0, 2e9), delay_s=st.floats(restarts.FIRST_DELAY_S, restarts.MAX_DELAY_S)
)
def test_a_clock_that_jumps_makes_nobody_wait_long(planned: float, now: float, delay_s: float) -> None:
    life = Lifecycle("exited", "running", 1.0, retry_at=planned, retry_delay_s=delay_s)
    assert 0 <= restarts.left_s(life, now) <= delay_s


@pytest.mark.parametrize("raw", [{"policy": "always", "max_retries": 1}, {"policy": "never"}, {"max_retries": -1}])
def test_wrong_policies_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"max_retries|policy"):
        RestartSpec.model_validate(raw)


def test_starts_that_fail_after_a_long_run_come_ever_later() -> None:
    life, now, delays = RUNNING, 4000.0, []
    for _ in range(4):
        found = restarts.ending(RestartSpec(policy="always"), life, 1, now, ran=False)
        delays.append(found.retry_delay_s)
        life = dataclasses.replace(life, retry_delay_s=found.retry_delay_s)
    assert delays == [0.1, 0.2, 0.4, 0.8]
