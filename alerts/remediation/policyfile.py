"""The policy file: levels, rules and maintenance windows for containers by tenant and name, in TOML.

```toml
dry_run = false                  # true: everything is written down, nothing done

[[containers]]                   # how far the controller may go where the container's label says nothing
names = "web-.*"
level = "rollback"

[[rules]]                        # what an alert calls for; the first that fits counts
alerts = ["HyperMemoryPressure"]
tenants = "shop"
after_change = ["rollback"]
otherwise = ["restart", "redeploy"]

[[maintenance]]                  # nothing is done then
days = ["sat", "sun"]
start = "22:00"                  # UTC
duration = "4h"

[follow]                         # containers with the label hyper.remediation.follow=true
hosts = { "registry:5000" = "127.0.0.1:5000" }
watch_s = 60
```

Patterns are regular expressions that have to fit the whole name.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from alerts import tomlfile
from alerts.errors import BadSetting
from alerts.remediation import policy
from alerts.remediation.ladder import Allowance
from alerts.remediation.policy import Action, Container, Judgement, Level, Rule
from alerts.thresholds import seconds

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_DURATION_S: Final = 7 * 86400.0
MAX_BYTES: Final = 1 << 20


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as err:
        raise ValueError(f"no regular expression: {err}") from err
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_compiles)]
AlertName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Step = Literal["restart", "redeploy", "rollback", "quarantine"]
Host = Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,256}$")]


REBUILD_CANARY_S: Final = 60.0


class _Chosen(BaseModel):
    """Something for some containers: all of them unless patterns say otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Pattern = ".*"
    tenants: Pattern = ".*"

    def fits(self, container: Container) -> bool:
        """Whether it is for this container."""
        return bool(re.fullmatch(self.names, container.name) and re.fullmatch(self.tenants, container.tenant))


class ContainerRule(_Chosen):
    """How far the controller may go by itself."""

    level: Level


class AlertRule(_Chosen):
    """What an alert calls for, instead of what is built in."""

    alerts: tuple[AlertName, ...] = Field(min_length=1)
    after_change: tuple[Step, ...] = ()
    otherwise: tuple[Step, ...] = ()
    dry_run: bool = False

    def to_rule(self, alert: str) -> Rule:
        """As the ladder reads it; hyperd has to bear it out as for the built-in rule, if there is one."""
        built_in = policy.RULES.get(alert)
        reason = built_in.reason if built_in else "alert_rule"
        return Rule(reason, self.after_change or self.otherwise, self.otherwise)


class Window(_Chosen):
    """A time in every week, in UTC, in which nothing is done. It may run over midnight."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(DAYS, min_length=1)
    start: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    duration: Annotated[str, StringConstraints(pattern=r"^([0-9]+(s|m|h|d))+$")]

    @model_validator(mode="after")
    def _is_within_a_week(self) -> Self:
        if not 0 < seconds(self.duration) <= MAX_DURATION_S:
            raise ValueError(f"duration {self.duration}: above 0 and up to 7d is needed")
        return self

    def holds(self, now: float) -> bool:
        """Whether `now`, seconds since 1970, lies in it."""
        moment = datetime.fromtimestamp(now, UTC)
        hour, minute = map(int, self.start.split(":"))
        for back in range(8):
            day = moment - timedelta(days=back)
            if DAYS[day.weekday()] not in self.days:
                continue
            began = day.replace(hour=hour, minute=minute, second=0, microsecond=0).timestamp()
            if began <= now < began + seconds(self.duration):
                return True
        return False


class Follow(BaseModel):
    """How containers follow their tag.

    Without `canary_s` a rebuild is observed, where two can run, and an update is not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: dict[Host, Host] = Field(default_factory=dict)
    canary_s: float | None = Field(None, ge=0, le=3600)
    watch_s: float = Field(60.0, ge=0, le=3600)

    def canary_for(self, action: Action) -> float:
        """How long old and new run side by side before the switch."""
        if self.canary_s is not None:
            return self.canary_s
        # What was pushed somebody has tried; what was built a minute ago nobody has seen.
        return REBUILD_CANARY_S if action == "rebuild" else 0.0


class PolicyFile(BaseModel):
    """The whole file; without one all has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dry_run: bool = False
    containers: tuple[ContainerRule, ...] = ()
    rules: tuple[AlertRule, ...] = ()
    maintenance: tuple[Window, ...] = ()
    follow: Follow = Field(default_factory=Follow)

    def names(self, alert: str) -> bool:
        """Whether some rule, built in or of the file, is about this alert."""
        return alert in policy.RULES or any(alert in one.alerts for one in self.rules)

    def rule(self, alert: str, container: Container) -> tuple[Rule, bool, str] | None:
        """The rule for an alert of a container, whether it is for writing down only, and where it stands."""
        for number, one in enumerate(self.rules, 1):
            if alert in one.alerts and one.fits(container):
                return one.to_rule(alert), one.dry_run, f"rule {number} of the policy file"
        built_in = policy.RULES.get(alert)
        return (built_in, False, "built-in rule") if built_in is not None else None

    def allowance(self, container: Container, *, dry_run: bool, source: str) -> Allowance | Judgement:
        """How far the controller may go with a container, or why it may do nothing."""
        chosen = next((one.level for one in self.containers if one.fits(container)), policy.DEFAULT_LEVEL)
        level = policy.level_of(container, chosen)
        if isinstance(level, Judgement):
            return level
        return Allowance(level, dry_run or self.dry_run, f"level {level}, {source}")

    def in_maintenance(self, container: Container, now: float) -> bool:
        """Whether nothing is to be done with this container now."""
        return any(one.fits(container) and one.holds(now) for one in self.maintenance)


def load(path: Path | None) -> PolicyFile:
    """Read the file; without one, the defaults.

    Raises:
        BadSetting: it cannot be read, is no TOML, or has a member that cannot be; the message names it.
    """
    if path is None:
        return PolicyFile()
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise BadSetting(f"remediation_policy_file {path}: {err.strerror}") from err
    if len(raw) > MAX_BYTES:
        raise BadSetting(f"{path}: longer than {MAX_BYTES} bytes")
    return tomlfile.parse(path, raw, PolicyFile)
