"""How patient the controller is, and what holds it back: numbers that `--set name=number` changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from alerts.remediation import guards


@dataclass(frozen=True, slots=True)
class Settings:
    """How patient the controller is. Times in seconds.

    Attributes:
        limits: The guards per container and host.
        attempts: How often hyperd is asked before giving up.
        backoff_s: Pause before the second attempt; doubles with each, with jitter.
        backoff_max_s: Longest pause between two attempts.
        settle_s: How long a container may be in transition before its epoch is taken as it stands.
        recovery_max_age_s: An unfinished action older than this is not finished after a restart.
        sustain_s: How long what hyperd alone tells has to last, or an alert that only the policy file names.
        flap_window_s: In which `flap_count` ends of a container are a loop.
        flap_count: See there.
        flap_confirm_count: Ends in that time by which hyperd bears out an alert that says the same.
        cause_ttl_s: How long an alert about host or collector is believed without being repeated.
        rest_s: How long after the host's pressure a health check has to begin to tell anything of the container.
        held_s: Pause between two looks at what the host was the cause of, and at pushes that were held back.
        feed_s: Pause between two looks at the feed of vulnerabilities and at what runs.
        feed_again_s: After which what the feed says is told again, if nothing came of it.
    """

    limits: guards.Limits = field(default_factory=guards.Limits)
    attempts: int = 6
    backoff_s: float = 0.5
    backoff_max_s: float = 10.0
    settle_s: float = 180.0
    recovery_max_age_s: float = 900.0
    sustain_s: float = 45.0
    flap_window_s: float = 900.0
    flap_count: int = 5
    flap_confirm_count: int = 2
    cause_ttl_s: float = 900.0
    rest_s: float = 30.0
    held_s: float = 5.0
    feed_s: float = 60.0
    feed_again_s: float = 3600.0
