"""What a container looks like to a client, at given times."""

from __future__ import annotations

import time

import pytest
from freezegun import freeze_time

from runtime import view
from runtime.record import Lifecycle

NOON = "2026-01-01 12:00:00"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
    ],
)
def test_durations_are_dockers(seconds: float, words: str) -> None:
    assert view.duration(seconds) == words


def test_status_moves_with_the_clock() -> None:
    with freeze_time(NOON) as clock:
        lifecycle = Lifecycle("running", "running", time.time(), started_at=time.time())
        assert view.status(lifecycle, time.time()) == "Up Less than a second"
        clock.tick(180)
        assert view.status(lifecycle, time.time()) == "Up 3 minutes"
        ended = Lifecycle("exited", "running", 1.0, finished_at=time.time(), exit_code=3)
        clock.tick(2)
        assert view.status(ended, time.time()) == "Exited (3) 2 seconds ago"


@freeze_time(NOON)
def test_a_clock_that_jumped_back_shows_no_negative_time() -> None:
    lifecycle = Lifecycle("running", "running", 1.0, started_at=time.time() + 3600)
    assert view.status(lifecycle, time.time()) == "Up Less than a second"


@pytest.mark.parametrize(
    ("lifecycle", "words"),
    [
        (Lifecycle("created", "stopped", 1.0), "Created"),
        (Lifecycle("starting", "running", 1.0), "Starting"),
        (Lifecycle("running", "running", 1.0, started_at=90.0, health="healthy"), "Up 10 seconds (healthy)"),
        (Lifecycle("paused", "running", 1.0, started_at=90.0), "Up 10 seconds (Paused)"),
    ],
)
def test_status_of_other_states(lifecycle: Lifecycle, words: str) -> None:
    assert view.status(lifecycle, 100.0) == words
