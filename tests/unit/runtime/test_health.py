"""Which check a container has, and what its results mean, with a container whose guest the test plays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from collector.definitions import container as container_metrics
from collector.sources import healthchecks
from runtime import health, healthcounts, sessions
from runtime.images.image import ImageConfig
from runtime.spec import HealthSpec
from runtime.vm.streams import Exit, Output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runtime.life import Lives

SECOND = 10**9


def effective(spec: dict[str, Any] | None, image: dict[str, Any] | None) -> health.Healthcheck | None:
    return health.effective(HealthSpec.model_validate(spec) if spec else None, ImageConfig(healthcheck=image))


def test_defaults_are_dockers() -> None:
    assert effective({"test": ["CMD", "true"]}, None) == health.Healthcheck(("true",), 30.0, 30.0, 0.0, 3)
    assert effective(None, None) is None


def test_what_is_given_wins_over_the_image_member_by_member() -> None:
    image = {"Test": ["CMD-SHELL", "curl x"], "Interval": 5 * SECOND, "Timeout": SECOND, "Retries": 7}
    assert effective(None, image) == health.Healthcheck(("/bin/sh", "-c", "curl x"), 5.0, 1.0, 0.0, 7)
    assert effective({"interval_s": 0.5, "start_period_s": 2}, image) == health.Healthcheck(
        ("/bin/sh", "-c", "curl x"), 0.5, 1.0, 2.0, 7
    )
    assert effective({"test": ["NONE"]}, image) is None


def test_a_probe_that_is_a_command_is_a_check() -> None:
    asked = {"hyper.probe": "exec:pg_isready | grep ok", "hyper.probe.interval": "500ms", "hyper.probe.timeout": "x"}
    image = ImageConfig(healthcheck={"Test": ["CMD", "image"], "Retries": 7})
    shell = ("/bin/sh", "-c", "pg_isready | grep ok")
    assert health.effective(None, image, asked) == health.Healthcheck(shell, 0.5, 30.0, 0.0, 7)
    asked_for = HealthSpec(test=("CMD", "spec"))
    checked = health.effective(asked_for, image, asked)
    assert checked is not None
    assert checked.args == ("spec",), "what is asked for by option goes before the label"
    assert health.effective(HealthSpec(test=("NONE",)), image, asked) is None
    for other in ("http:80/", "tcp:80", "exec:", "exec:a\0b"):
        assert health.effective(None, ImageConfig(), {"hyper.probe": other}) is None


@pytest.mark.parametrize(
    "image",
    [{}, {"Test": "x"}, {"Test": []}, {"Test": ["CMD"]}, {"Test": [1]}, {"Test": ["CMD-SHELL"]}, {"Test": ["NONE"]}],
)
def test_an_image_that_says_it_wrongly_has_no_check(image: dict[str, Any]) -> None:
    assert effective(None, image) is None
    assert effective(None, {"Test": ["CMD", "x"], "Interval": "soon", "Retries": -1}) == health.Healthcheck(
        ("x",), 30.0, 30.0, 0.0, 3
    )


@pytest.mark.parametrize(
    "spec",
    [{"test": ["RUN", "x"]}, {"test": ["CMD"]}, {"test": []}, {"retries": 0}, {"interval_s": 0}, {"timeout_s": 1e9}],
)
def test_wrong_checks_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"test|retries|interval_s|timeout_s"):
        HealthSpec.model_validate(spec)


class Guest:
    """Answers the sessions of a check: with these exit codes, one after the other; None never ends."""

    def __init__(self, codes: list[int | None]) -> None:
        self.codes = codes
        self.asked = 0

    async def output(self, session: int) -> AsyncIterator[Output | Exit]:
        code = self.codes[min(session, len(self.codes) - 1)]
        yield Output(1, b"x" * 10_000)
        if code is None:
            await asyncio.Event().wait()
        yield Exit(code or 0, None)


async def run(
    monkeypatch: pytest.MonkeyPatch, container: Any, lives: Lives, codes: list[int | None], check: health.Healthcheck,
    enough: int,
) -> None:  # fmt: skip
    guest = Guest(codes)

    async def begin(_container: object, _spec: object) -> int:
        guest.asked += 1
        return guest.asked - 1

    monkeypatch.setattr(sessions, "begin", begin)
    container.streams = guest
    checker = asyncio.create_task(health.Checker(container, lives, check).run())
    async with asyncio.timeout(10):
        while len(container.checks) < enough:  # noqa: ASYNC110 -- the code under test has no event for it
            await asyncio.sleep(0)
    checker.cancel()
    await asyncio.gather(checker, return_exceptions=True)


FAST = health.Healthcheck(("x",), 0.001, 5.0, 0.0, 3)


@pytest.mark.parametrize(
    ("codes", "found"),
    [
        ([1, 1], "starting"),
        ([1, 1, 1], "unhealthy"),
        ([1, 0], "healthy"),
        ([1, 1, 1, 0], "healthy"),
        ([0, 1, 1], "healthy"),
    ],
)
async def test_retries(monkeypatch: pytest.MonkeyPatch, running: Any, codes: list[int | None], found: str) -> None:
    container, lives = running
    # Those after the last that the test gives hang, so that it sees the state after exactly these.
    await run(monkeypatch, container, lives, [*codes, None], FAST, len(codes))
    assert container.record.lifecycle.health == found
    assert len(container.checks[0].output) == health.MAX_OUTPUT_BYTES


async def test_the_first_success_is_a_phase_of_the_start(monkeypatch: pytest.MonkeyPatch, running: Any) -> None:
    container, lives = running
    lives.change(container, start_phases={"vm": 0.1})
    await run(monkeypatch, container, lives, [1, 1, 1, None], FAST, 3)
    assert container.record.start_phases == {"vm": 0.1}
    container.checks.clear()
    await run(monkeypatch, container, lives, [0, None], FAST, 1)
    first = dict(container.record.start_phases)
    assert first == {"vm": 0.1, "healthy": container.checks[0].ended - container.record.lifecycle.started_at}
    container.checks.clear()
    await run(monkeypatch, container, lives, [1, 1, 1, 0, None], FAST, 5)
    assert container.record.start_phases == first, "what succeeds later is another recovery"


async def test_failures_of_the_start_period_do_not_count(monkeypatch: pytest.MonkeyPatch, running: Any) -> None:
    container, lives = running
    await run(monkeypatch, container, lives, [1] * 10, health.Healthcheck(("x",), 0.001, 5.0, 3600.0, 1), 5)
    assert (container.record.lifecycle.health, container.failing_streak) == ("starting", 0)


async def test_a_check_that_hangs_is_made_once(monkeypatch: pytest.MonkeyPatch, running: Any) -> None:
    container, lives = running
    await run(monkeypatch, container, lives, [None], health.Healthcheck(("x",), 0.001, 0.001, 0.0, 2), 5)
    assert container.record.lifecycle.health == "unhealthy"
    assert "did not end" in container.checks[0].output
    assert "still runs" in container.checks[-1].output


async def test_durations_and_failures_are_counted_for_the_collector(
    monkeypatch: pytest.MonkeyPatch, running: Any
) -> None:
    container, lives = running
    await run(monkeypatch, container, lives, [0, 1, 0, None], health.Healthcheck(("x",), 0.001, 0.2, 0.0, 9), 4)

    def told() -> dict[tuple[str, ...], float]:
        points = healthchecks.HealthReader(container.directory).read(container.record.lifecycle.epoch)
        return {(point.metric.name, *point.label_values): point.value for point in points}

    first = told()
    assert first["container_healthcheck_duration_seconds_count",] == 3, "one did not end"
    assert first["container_healthcheck_duration_seconds_bucket", "+Inf"] == 3
    assert 0 < first["container_healthcheck_duration_seconds_sum",] < 3 * 0.2
    assert first["container_healthcheck_failures_total", "exit"] == 1
    assert first["container_healthcheck_failures_total", "timeout"] == 1
    container.checks.clear()
    await run(monkeypatch, container, lives, [1, None], FAST, 1)
    assert told()["container_healthcheck_duration_seconds_count",] == 4, "another daemon goes on"
    assert healthchecks.HealthReader(container.directory).read(99) == (), "of another start there is nothing to tell"


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9}', '{"schema": 1, "epoch": 1, "buckets": "x"}'])
def test_counts_that_are_none_are_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "health.json").write_text(text)
    healthcounts.HealthCounts(tmp_path, 1).add(0.5, None)
    count = container_metrics.HEALTHCHECK_DURATION_SECONDS.part("count")
    assert [p.value for p in healthchecks.HealthReader(tmp_path).read(1) if p.metric.name == count.name] == [1]


def test_both_sides_have_the_same_bounds() -> None:
    assert healthcounts.BOUNDS_S == container_metrics.DURATION_BOUNDS
